//! Validates a spec: values that are never allowed, and features that this host lacks.

use std::collections::BTreeSet;

use super::{Autostart, ContainerOptions, RestartPolicy, SecretSource, opening};
use crate::id::ContainerName;
use crate::runtime::Runtime;

/// The maximum number of entries of one kind (variables, binds, secrets, labels, openings) in a spec.
const MAX_ENTRIES: usize = 128;
/// The maximum size of all options as JSON, in bytes: all revisions must fit into one entry of the state.
const MAX_OPTIONS_BYTES: usize = 32 * 1024;
/// The maximum length of a text, in bytes.
const MAX_TEXT_BYTES: usize = 8 * 1024;
/// The maximum delay of a restart, in seconds: a day.
const MAX_DELAY_SECONDS: u32 = 24 * 3600;

impl ContainerOptions {
    /// Checks that a runtime supports these options.
    ///
    /// # Errors
    /// The unsupported field, and the reason.
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
        lacking.map_or(Ok(()), |field| Err(runtime.unsupported_text(field)))
    }

    /// Validates everything that doesn't depend on a host, for the container of this name.
    ///
    /// # Errors
    /// The place, what is wrong, and what is valid.
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
        for (credential, source) in &self.secrets {
            check_credential(credential)?;
            match source {
                SecretSource::File(file) => check_path(&format!("secrets.{credential}"), file)?,
                // Its name is valid.
                SecretSource::Secret(_) => {}
            }
        }
        let mut targets = BTreeSet::new();
        for bind in &self.binds {
            check_path("binds: source", &bind.source)?;
            check_path("binds: target", bind.target())?;
            check_target(bind.target())?;
            if !targets.insert(bind.target()) {
                return Err(format!("binds: the target {} is listed twice", bind.target()));
            }
        }
        for (label, value) in &self.labels {
            if label.is_empty() || label.len() > 128 || label.chars().any(char::is_control) {
                return Err(format!("labels: {label:?} is not a valid label name"));
            }
            check_text(&format!("labels.{label}"), value)?;
        }
        self.limits.check()?;
        self.restart.check()?;
        let bytes = serde_json::to_vec(self).map_or(0, |json| json.len());
        if bytes > MAX_OPTIONS_BYTES {
            return Err(format!(
                "the spec has {bytes} bytes, at most {MAX_OPTIONS_BYTES} are allowed; put large values into files and secrets"
            ));
        }
        if self.after.contains(name) {
            return Err(format!("after: {name} can't be started after itself"));
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
                "restart.max_delay_seconds: must be at most {MAX_DELAY_SECONDS}, not {max_delay_seconds}"
            ));
        }
        if *delay_seconds == 0 || delay_seconds > max_delay_seconds {
            return Err(format!(
                "restart.delay_seconds: must be from 1 to max_delay_seconds, which is {max_delay_seconds}, not {delay_seconds}"
            ));
        }
        Ok(())
    }
}

/// Environment variables that the runtime passes to the init of a container; a spec can't set them.
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
            "environment: {name:?} is not a valid variable name: only letters, digits and '_' are allowed, and no digit first"
        ));
    }
    if RESERVED_VARIABLES.contains(&name) {
        return Err(format!("environment: {name} is reserved for the leaf"));
    }
    Ok(())
}

/// Checks the name of a credential (systemd.exec(5), "LoadCredential=").
///
/// # Errors
/// The reason why it is invalid.
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
            "{name:?} is not a valid credential name: only letters, digits, '.', '_' and '-' are allowed, at most 64"
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
        return Err(format!("{field} has a control character, which is not allowed"));
    }
    Ok(())
}

/// Checks that a text is a plain absolute path, which no program that it is passed to can misinterpret.
///
/// # Errors
/// The reason why it is invalid.
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
            "{field}: {path:?} is not a plain absolute path, without '.', '..', empty parts and : , \\ \" ' % $"
        ))
    }
}

/// Directories of a container that are reserved for the leaf.
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
            "binds: the target {target} is in {reserved}, which is reserved for the leaf"
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
    fn errors_of_invalid_specs_name_the_place_and_what_is_valid() {
        for (options, says) in [
            (r#""colour":1"#, "unknown field `colour`"),
            (
                r#""limits":{"memory_bytes":0}"#,
                "limits.memory_bytes: must be from 1048576",
            ),
            (r#""limits":{"memory_bytes":-1}"#, "are negative"),
            (
                r#""limits":{"memory_bytes":"10 EiB"}"#,
                "limits.memory_bytes: must be from 1048576",
            ),
            (r#""limits":{"memory_bytes":"100 EiB"}"#, "is too large"),
            (r#""limits":{"memory_bytes":"lots"}"#, "not a number of bytes"),
            (r#""limits":{"tasks":0}"#, "limits.tasks: must be from 1"),
            (r#""limits":{"tasks":-3}"#, "-3"),
            (
                r#""limits":{"cpu_percent":0}"#,
                "limits.cpu_percent: must be from 1",
            ),
            (r#""limits":{"io_write_bytes_per_second":0}"#, "limits.io_write"),
            (r#""limits":{"disk":1}"#, "unknown field `disk`"),
            (r#""environment":{"A B":"x"}"#, "is not a valid variable name"),
            (r#""environment":{"NOTIFY_SOCKET":"x"}"#, "reserved for the leaf"),
            (r#""environment":{"A":"x\u0000"}"#, "control character"),
            (
                r#""secrets":{"a/b":"/run/secrets/a"}"#,
                "not a valid credential name",
            ),
            (
                r#""secrets":{"a":"/run/../etc/shadow"}"#,
                "not a plain absolute path",
            ),
            (r#""secrets":{"a":{"secret":"../a"}}"#, "is not a secret's name"),
            (
                r#""secrets":{"a":{"secret":"a","on_change":"reload"}}"#,
                "unknown variant `reload`",
            ),
            (
                r#""secrets":{"a":{"secret":"a","file":"/a"}}"#,
                "unknown field `file`",
            ),
            (r#""secrets":{"a":["a"]}"#, "a secret is a path, or an object"),
            (r#""binds":[{"source":"srv"}]"#, "not a plain absolute path"),
            (r#""binds":[{"source":"/srv:/etc"}]"#, "not a plain absolute path"),
            (
                r#""binds":[{"source":"/srv","target":"/proc/x"}]"#,
                "reserved for the leaf",
            ),
            (
                r#""binds":[{"source":"/a","target":"/x"},{"source":"/b","target":"/x"}]"#,
                "is listed twice",
            ),
            (
                r#""restart":{"delay_seconds":0}"#,
                "restart.delay_seconds: must be from 1",
            ),
            (r#""restart":{"max_delay_seconds":99999999}"#, "at most 86400"),
            (r#""after":["web"]"#, "can't be started after itself"),
            (
                r#""allow":[{"type":"container","name":"db","port":0}]"#,
                "0 is not a port",
            ),
            (
                r#""allow":[{"type":"container","name":"web","port":1}]"#,
                "can reach itself",
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
