use clap::Args;
use leaf_core::command::SetContainer;
use serde_json::{Map, Value};

use super::settle::change;
use super::verb::Named;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Change parts of a container's spec.
///
/// For example: `leafctl container set web limits.memory_bytes=512MiB environment.MODE=edge limits.tasks=`
#[derive(Debug, Args)]
pub(crate) struct Set {
    #[command(flatten)]
    container: Named,
    /// FIELD=VALUE, the field as printed by `container diff`. The value is JSON, or else a string; an empty one removes
    /// the field.
    #[arg(required = true, value_name = "PLACE=VALUE")]
    changes: Vec<String>,
}

impl Set {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = SetContainer {
            name: self.container.name,
            patch: patch(&self.changes).map_err(Error::Usage)?,
            if_generation: self.container.if_generation,
        };
        change(session, &request, "setting the container", output).await
    }
}

/// Returns the changes as one merge patch (RFC 7396).
fn patch(changes: &[String]) -> Result<Value, String> {
    let mut patch = Map::new();
    for change in changes {
        let (place, text) = change
            .split_once('=')
            .filter(|(place, _)| place.split('.').all(|part| !part.is_empty()))
            .ok_or_else(|| format!("{change:?} is not FIELD=VALUE, such as limits.memory_bytes=512MiB"))?;
        // Values of environment variables and labels are always strings.
        let is_text = place.starts_with("environment.") || place.starts_with("labels.");
        let value = match text {
            "" => Value::Null,
            text if is_text => Value::String(text.to_owned()),
            text => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
        };
        let (parents, last) = place
            .rsplit_once('.')
            .map_or((None, place), |(p, l)| (Some(p), l));
        let mut target = &mut patch;
        for part in parents.into_iter().flat_map(|parents| parents.split('.')) {
            let slot = target.entry(part).or_insert_with(|| Value::Object(Map::new()));
            target = match slot {
                Value::Object(inner) => inner,
                _ => {
                    return Err(format!(
                        "{change:?} is inside a field that another change sets as a whole"
                    ));
                }
            };
        }
        if target.insert(last.to_owned(), value).is_some() {
            return Err(format!("{place} is set twice"));
        }
    }
    Ok(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(changes: &[&str]) -> Result<Value, String> {
        patch(
            &changes
                .iter()
                .map(|change| (*change).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn changes_become_one_merge_patch() {
        let patch = made(&[
            "limits.memory_bytes=512MiB",
            "limits.tasks=64",
            "limits.cpu_percent=",
            "environment.PORT=80",
            r#"allow=[{"type":"ingress","host_port":80}]"#,
        ]);
        let wanted = serde_json::json!({
            "limits": {"memory_bytes": "512MiB", "tasks": 64, "cpu_percent": null},
            "environment": {"PORT": "80"},
            "allow": [{"type": "ingress", "host_port": 80}],
        });
        assert_eq!(patch, Ok(wanted));
    }

    #[test]
    fn an_invalid_change_is_refused() {
        assert!(made(&["limits"]).expect_err("no value").contains("FIELD=VALUE"));
        assert!(
            made(&["limits..x=1"])
                .expect_err("an empty part")
                .contains("FIELD=VALUE")
        );
        assert!(
            made(&["run=running", "run=stopped"])
                .expect_err("twice")
                .contains("twice")
        );
        assert!(
            made(&["limits=", "limits.tasks=1"])
                .expect_err("both")
                .contains("as a whole")
        );
    }
}
