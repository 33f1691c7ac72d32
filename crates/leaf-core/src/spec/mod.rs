//! The spec of a container: the user's description of its desired state. [`ContainerOptions::check`] validates it.
//!
//! Everything in it is a value or a reference: a secret is named by its name, or by the file that contains it on the leaf.
//! Specs never contain secrets, since they are in the event log.

mod check;
mod diff;
mod limits;
mod opening;
mod source;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de};
use serde_json::{Map, Value};

use crate::id::{ContainerName, SecretName};

pub use check::{check_credential, check_path};
pub use diff::{SpecChange, SpecDiff, spec_diff};
pub use limits::{ByteSize, Limits};
pub use opening::{Destination, Opening, Protocol};
pub use source::ContainerSource;

/// The spec of a container: the user's description of its desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Map<String, Value>")]
pub struct ContainerSpec {
    /// The source of its system.
    pub source: ContainerSource,
    /// Whether it should run.
    #[serde(default)]
    pub run: SpecRun,
    /// Whether it should be paused while it runs: its processes are frozen once it is ready.
    #[serde(default, skip_serializing_if = "is_default")]
    pub paused: bool,
    /// The other options.
    #[serde(flatten)]
    pub options: ContainerOptions,
}

/// Whether a container should run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpecRun {
    /// It should run.
    Running,
    /// It should exist, but not run.
    #[default]
    Stopped,
}

/// The options of a container: its desired state apart from its system and whether it runs. The default is closed and
/// unlimited: no access to the host, no opening, no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerOptions {
    /// The environment of its init, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Its secrets: the name of a systemd credential, and where its content comes from.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretSource>,
    /// Directories and files of the leaf that are mounted into it. A setting of the leaf limits what may be mounted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<Bind>,
    /// Its resource limits.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// The restart policy: what happens when it ends by itself.
    #[serde(skip_serializing_if = "is_default")]
    pub restart: RestartPolicy,
    /// What starts it when the host boots, if it should run: systemd, or `leafd` once it is up.
    #[serde(skip_serializing_if = "is_default")]
    pub autostart: Autostart,
    /// Containers to start before it, if both are started at boot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<ContainerName>,
    /// Labels of your own, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The openings of its closed network, in addition to its leaf's NATS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Opening>,
    /// The mapping of its users to the host's.
    #[serde(skip_serializing_if = "is_default")]
    pub users: Users,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Where the content of a container's credential comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, try_from = "Value")]
pub enum SecretSource {
    /// The absolute path of a file on the leaf. A setting of the leaf limits the directories of such files.
    File(String),
    /// A secret that was set with `secret.set`.
    Secret(NamedSecret),
}

/// A secret of the leaf that a container uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedSecret {
    /// The secret's name.
    pub secret: SecretName,
    /// What is done with the container when the secret changes.
    #[serde(default)]
    pub on_change: OnChange,
}

impl TryFrom<Value> for SecretSource {
    type Error = serde_json::Error;

    /// Parses a source; the error says what is wrong in it.
    fn try_from(value: Value) -> Result<Self, serde_json::Error> {
        match value {
            Value::String(file) => Ok(Self::File(file)),
            Value::Object(_) => serde_json::from_value(value).map(Self::Secret),
            _ => Err(de::Error::custom(
                "a secret is a path, or an object with the field `secret`",
            )),
        }
    }
}

/// What is done with a container when a secret that it uses changes. A running one can't be given another content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnChange {
    /// It is restarted, if it runs.
    #[default]
    Restart,
    /// Nothing: it gets the secret at its next start.
    Nothing,
}

/// A directory or file of the leaf that is mounted into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// The absolute path of the directory or file on the leaf.
    pub source: String,
    /// The absolute path of the mount in the container; by default that of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether the container may write to it. Its root then acts as the directory's owner.
    #[serde(default, skip_serializing_if = "is_default")]
    pub writable: bool,
}

impl Bind {
    /// Returns the path of the mount in the container.
    #[must_use]
    pub fn target(&self) -> &str {
        self.target.as_deref().unwrap_or(&self.source)
    }
}

/// What happens when a container ends by itself. One whose init requests a reboot is always started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestartPolicy {
    /// The condition for a restart.
    pub when: RestartWhen,
    /// The delay of the first restart, in seconds.
    pub delay_seconds: u32,
    /// The maximum delay of a restart, in seconds: the delay grows up to it while the container keeps ending soon.
    pub max_delay_seconds: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            when: RestartWhen::Never,
            delay_seconds: 1,
            max_delay_seconds: 60,
        }
    }
}

/// The condition for restarting a container that ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartWhen {
    /// Never.
    Never,
    /// When it ended with a failure.
    OnFailure,
    /// Always.
    Always,
}

/// What starts a container that should run when the host boots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Autostart {
    /// `leafd` starts it, once it is up.
    #[default]
    WithLeafd,
    /// systemd starts it (`machines.target`), even if `leafd` does not start.
    WithHost,
}

/// The mapping of a container's users to the host's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Users {
    /// A user namespace of its own: its root is an unprivileged user on the host.
    #[default]
    Private,
    /// The host's users: its root is the host's root. For adopted containers, and for those that you trust like the
    /// host.
    Host,
}

impl TryFrom<Map<String, Value>> for ContainerSpec {
    type Error = serde_json::Error;

    /// Parses a spec; an unknown field is an error.
    fn try_from(mut fields: Map<String, Value>) -> Result<Self, serde_json::Error> {
        let source = fields
            .remove("source")
            .ok_or_else(|| de::Error::missing_field("source"))?;
        let run = fields.remove("run").map(serde_json::from_value).transpose()?;
        let paused = fields.remove("paused").map(serde_json::from_value).transpose()?;
        Ok(Self {
            source: serde_json::from_value(source)?,
            run: run.unwrap_or_default(),
            paused: paused.unwrap_or_default(),
            options: serde_json::from_value(Value::Object(fields))?,
        })
    }
}

impl ContainerSpec {
    /// Returns the spec with a JSON merge patch (RFC 7396) applied: `null` removes a field, objects are merged, other
    /// values replace.
    ///
    /// # Errors
    /// The parser's error if the result is not a spec.
    pub fn patched(&self, patch: &Value) -> Result<Self, serde_json::Error> {
        let mut spec = serde_json::to_value(self)?;
        merge(&mut spec, patch);
        serde_json::from_value(spec)
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

impl ContainerOptions {
    /// Returns whether a container with these options uses a secret of the leaf.
    #[must_use]
    pub fn uses_secret(&self, name: &SecretName) -> bool {
        self.secrets
            .values()
            .any(|source| matches!(source, SecretSource::Secret(named) if named.secret == *name))
    }

    /// Returns whether all options have their defaults.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: &str) -> ContainerSpec {
        serde_json::from_str(json).expect("a spec")
    }

    #[test]
    fn a_parsed_spec_serializes_to_the_same_text() {
        let text = r#"{"source":{"type":"template","name":"minimal"},"run":"running",
            "limits":{"memory_bytes":"512 MiB","cpu_percent":50},"restart":{"when":"on_failure"},
            "allow":[{"type":"ingress","host_port":8080,"port":80},{"type":"outside","to":"10.1.0.0/16"}]}"#;
        let read = spec(text);
        assert_eq!(
            read.options.check(&ContainerName::new("web").expect("a name")),
            Ok(())
        );
        assert_eq!(read.options.limits.memory_bytes, Some(ByteSize(512 << 20)));
        let written = serde_json::to_string(&read).expect("JSON");
        assert_eq!(spec(&written), read);
    }

    #[test]
    fn the_defaults_are_closed_and_unlimited() {
        let read = spec(r#"{"source":{"type":"template","name":"minimal"}}"#);
        assert_eq!(read.options, ContainerOptions::default());
        assert_eq!(read.run, SpecRun::Stopped);
        assert_eq!(read.options.users, Users::Private);
    }

    #[test]
    fn a_patch_changes_the_named_fields_and_removes_null_ones() {
        let read = spec(
            r#"{"source":{"type":"template","name":"minimal"},
                "limits":{"memory_bytes":1048576,"tasks":5},"labels":{"a":"1"}}"#,
        );
        let patch = serde_json::json!({"limits": {"tasks": null, "cpu_percent": 10}, "labels": {"b": "2"}});
        let patched = read.patched(&patch).expect("a spec");
        assert_eq!(patched.options.limits.memory_bytes, Some(ByteSize(1 << 20)));
        assert_eq!(patched.options.limits.tasks, None);
        assert_eq!(patched.options.limits.cpu_percent, Some(10));
        assert_eq!(patched.options.labels.len(), 2);
        let unknown = read
            .patched(&serde_json::json!({"limit": {}}))
            .expect_err("unknown");
        assert!(unknown.to_string().contains("unknown field `limit`"));
    }
}
