//! What a spec can't say, and what a host can't do of it.

use std::collections::BTreeSet;

use super::{Autostart, ContainerOptions, RestartPolicy, opening};
use crate::id::ContainerName;
use crate::runtime::Runtime;

/// The most entries of one kind (variables, binds, secrets, labels, openings) in a spec.
const MAX_ENTRIES: usize = 128;
/// The most bytes of all options together, as JSON: revisions of them must fit into one entry of the state.
const MAX_OPTIONS_BYTES: usize = 32 * 1024;
/// The longest text of an entry, in bytes.
const MAX_TEXT_BYTES: usize = 8 * 1024;
/// The longest that a restart may be put off, in seconds: a day.
const MAX_DELAY_SECONDS: u32 = 24 * 3600;

impl ContainerOptions {
    /// Checks that what runs the containers of a host can do all that these ask for.
    ///
    /// # Errors
    /// The field that it can't do, and why.
    pub fn check_runtime(&self, runtime: Runtime) -> Result<(), String> {
        let lacking = match runtime {
            Runtime::Systemd => None,
            Runtime::Nspawn => [
                ("limits", !self.limits.is_empty()),
                ("restart", self.restart != RestartPolicy::default()),
                ("autostart", self.autostart != Autostart::default()),
                ("after", !self.after.is_empty()),
            ]
            .into_iter()
            .find_map(|(field, asked)| asked.then_some(field)),
        };
        lacking.map_or(Ok(()), |field| Err(runtime.cant(field)))
    }

    /// Checks what can be checked without a host, for the container of this name.
    ///
    /// # Errors
    /// What is wrong, where, and what would be right.
    pub fn check(&self, name: &ContainerName) -> Result<(), String> {
        for (field, entries) in [
            ("environment", self.environment.len()),
            ("secrets", self.secrets.len()),
            ("binds", self.binds.len()),
            ("labels", self.labels.len()),
            ("allow", self.allow.len()),
            ("after", self.after.len()),
        ] {
            if entries > MAX_ENTRIES {
                return Err(format!(
                    "{field} has {entries} entries, at most {MAX_ENTRIES} are allowed"
                ));
            }
        }
        for (variable, value) in &self.environment {
            check_variable(variable)?;
            check_text(&format!("environment.{variable}"), value)?;
        }
        for (credential, file) in &self.secrets {
            check_credential(credential)?;
            check_path(&format!("secrets.{credential}"), file)?;
        }
        let mut targets = BTreeSet::new();
        for bind in &self.binds {
            check_path("binds: source", &bind.source)?;
            check_path("binds: target", bind.target())?;
            check_target(bind.target())?;
            if !targets.insert(bind.target()) {
                return Err(format!("binds: two have the target {}", bind.target()));
            }
        }
        for (label, value) in &self.labels {
            if label.is_empty() || label.len() > 128 || label.chars().any(char::is_control) {
                return Err(format!("labels: {label:?} can't be the name of a label"));
            }
            check_text(&format!("labels.{label}"), value)?;
        }
        self.limits.check()?;
        self.restart.check()?;
        let bytes = serde_json::to_vec(self).map_or(0, |json| json.len());
        if bytes > MAX_OPTIONS_BYTES {
            return Err(format!(
                "the spec has {bytes} bytes, at most {MAX_OPTIONS_BYTES} are allowed; large values belong into files and secrets"
            ));
        }
        if self.after.contains(name) {
            return Err(format!("after: {name} can't come after itself"));
        }
        opening::check(&self.allow, name)
    }
}

impl RestartPolicy {
    fn check(&self) -> Result<(), String> {
        let Self {
            delay_seconds,
            max_delay_seconds,
            ..
        } = self;
        if *max_delay_seconds > MAX_DELAY_SECONDS {
            return Err(format!(
                "restart.max_delay_seconds: at most {MAX_DELAY_SECONDS}, not {max_delay_seconds}"
            ));
        }
        if *delay_seconds == 0 || delay_seconds > max_delay_seconds {
            return Err(format!(
                "restart.delay_seconds: from 1 to max_delay_seconds, which is {max_delay_seconds}, not {delay_seconds}"
            ));
        }
        Ok(())
    }
}

/// Variables by which what runs a container speaks to its init; a spec can't set them.
const RESERVED_VARIABLES: [&str; 10] = [
    "container",
    "container_host_id",
    "container_host_version_id",
    "container_uuid",
    "CREDENTIALS_DIRECTORY",
    "HOST_ADDRESS",
    "HOST_ADDRESS6",
    "LOCAL_ADDRESS",
    "LOCAL_ADDRESS6",
    "NOTIFY_SOCKET",
];

fn check_variable(name: &str) -> Result<(), String> {
    let shape = name.len() <= 128
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !shape {
        return Err(format!(
            "environment: {name:?} can't be the name of a variable: letters, digits and '_', no digit first"
        ));
    }
    if RESERVED_VARIABLES.contains(&name) {
        return Err(format!("environment: {name} is set by the leaf itself"));
    }
    Ok(())
}

/// Checks the name of a credential (systemd.exec(5), "LoadCredential=").
///
/// # Errors
/// What is wrong with it.
pub fn check_credential(name: &str) -> Result<(), String> {
    let shape = name.len() <= 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if shape {
        Ok(())
    } else {
        Err(format!(
            "{name:?} can't be the name of a credential: letters, digits, '.', '_' and '-', at most 64"
        ))
    }
}

fn check_text(field: &str, text: &str) -> Result<(), String> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(format!(
            "{field} has {} bytes, at most {MAX_TEXT_BYTES} are allowed",
            text.len()
        ));
    }
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err(format!(
            "{field} has a control character, which can't be passed on"
        ));
    }
    Ok(())
}

/// Checks that a text is a plain absolute path, which nothing on its way could read as something else.
///
/// # Errors
/// What is wrong with it.
pub fn check_path(field: &str, path: &str) -> Result<(), String> {
    let plain = path.starts_with('/')
        && path.len() <= 4095
        && !path.contains([':', ',', '\\', '"', '\'', '%', '$'])
        && !path.chars().any(char::is_control)
        && path[1..].split('/').all(|part| !matches!(part, "" | "." | ".."));
    if plain {
        Ok(())
    } else {
        Err(format!(
            "{field}: {path:?} is not a plain absolute path: no '.', '..' or empty part, none of : , \\ \" ' % $"
        ))
    }
}

/// Directories of a container that are the leaf's to fill.
const RESERVED_TARGETS: [&str; 5] = ["/nix/store", "/proc", "/sys", "/dev", "/run"];

fn check_target(target: &str) -> Result<(), String> {
    let reserved = RESERVED_TARGETS.iter().find(|reserved| {
        target == **reserved
            || target
                .strip_prefix(**reserved)
                .is_some_and(|rest| rest.starts_with('/'))
    });
    match reserved {
        Some(reserved) => Err(format!(
            "binds: the target {target} is in {reserved}, which the leaf fills itself"
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::ContainerSpec;
    use super::*;

    fn spec(json: &str) -> Result<ContainerSpec, String> {
        let spec: ContainerSpec = serde_json::from_str(json).map_err(|e| e.to_string())?;
        spec.options.check(&ContainerName::new("web").expect("a name"))?;
        Ok(spec)
    }

    fn with(options: &str) -> Result<ContainerSpec, String> {
        spec(&format!(
            r#"{{"source":{{"type":"template","name":"minimal"}},{options}}}"#
        ))
    }

    #[test]
    fn bad_specs_say_where_and_what_would_be_right() {
        for (options, says) in [
            (r#""colour":1"#, "unknown field `colour`"),
            (
                r#""limits":{"memory_bytes":0}"#,
                "limits.memory_bytes: from 1048576",
            ),
            (r#""limits":{"memory_bytes":-1}"#, "less than none"),
            (
                r#""limits":{"memory_bytes":"10 EiB"}"#,
                "limits.memory_bytes: from 1048576",
            ),
            (
                r#""limits":{"memory_bytes":"100 EiB"}"#,
                "more than can be counted",
            ),
            (r#""limits":{"memory_bytes":"lots"}"#, "not a number of bytes"),
            (r#""limits":{"tasks":0}"#, "limits.tasks: from 1"),
            (r#""limits":{"tasks":-3}"#, "-3"),
            (r#""limits":{"cpu_percent":0}"#, "limits.cpu_percent: from 1"),
            (r#""limits":{"io_write_bytes_per_second":0}"#, "limits.io_write"),
            (r#""limits":{"disk":1}"#, "unknown field `disk`"),
            (r#""environment":{"A B":"x"}"#, "can't be the name of a variable"),
            (r#""environment":{"NOTIFY_SOCKET":"x"}"#, "set by the leaf itself"),
            (r#""environment":{"A":"x\u0000"}"#, "control character"),
            (r#""secrets":{"a/b":"/run/secrets/a"}"#, "name of a credential"),
            (
                r#""secrets":{"a":"/run/../etc/shadow"}"#,
                "not a plain absolute path",
            ),
            (r#""binds":[{"source":"srv"}]"#, "not a plain absolute path"),
            (r#""binds":[{"source":"/srv:/etc"}]"#, "not a plain absolute path"),
            (
                r#""binds":[{"source":"/srv","target":"/proc/x"}]"#,
                "the leaf fills itself",
            ),
            (
                r#""binds":[{"source":"/a","target":"/x"},{"source":"/b","target":"/x"}]"#,
                "two have the target",
            ),
            (
                r#""restart":{"delay_seconds":0}"#,
                "restart.delay_seconds: from 1",
            ),
            (r#""restart":{"max_delay_seconds":99999999}"#, "at most 86400"),
            (r#""after":["web"]"#, "can't come after itself"),
            (
                r#""allow":[{"type":"container","name":"db","port":0}]"#,
                "0 is not a port",
            ),
            (
                r#""allow":[{"type":"container","name":"web","port":1}]"#,
                "reaches itself",
            ),
            (
                r#""allow":[{"type":"outside","to":"10.0.0.1/8"}]"#,
                "write the network itself",
            ),
            (
                r#""allow":[{"type":"outside","to":"10.0.0.0/33"}]"#,
                "neither an address",
            ),
            (
                r#""allow":[{"type":"ingress","host_port":80},{"type":"ingress","host_port":80,"port":1}]"#,
                "twice",
            ),
            (r#""run":"maybe""#, "unknown variant `maybe`"),
        ] {
            let error = with(options).expect_err(options);
            assert!(error.contains(says), "{options} gave {error:?}");
        }
        assert!(
            spec("{}")
                .expect_err("no source")
                .contains("missing field `source`")
        );
    }
}
