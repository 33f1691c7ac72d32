//! What a person says of a container: its spec, the desired state. [`ContainerOptions::check`] says what can't be.
//!
//! Everything in it is a value or a reference: a secret is named by the file that holds it on the leaf, and never stands
//! in a spec, since specs are in the event log.

mod check;
mod diff;
mod limits;
mod opening;
mod source;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de};
use serde_json::{Map, Value};

use crate::id::ContainerName;

pub use check::{check_credential, check_path};
pub use diff::{SpecChange, SpecDiff, spec_diff};
pub use limits::{ByteSize, Limits};
pub use opening::{Destination, Opening, Protocol};
pub use source::ContainerSource;

/// What is wanted of a container, as a person writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Map<String, Value>")]
pub struct ContainerSpec {
    /// Where its system comes from.
    pub source: ContainerSource,
    /// Whether it is to run.
    #[serde(default)]
    pub run: SpecRun,
    /// Whether it is paused as long as it runs: its processes are frozen once it is ready.
    #[serde(default, skip_serializing_if = "is_default")]
    pub paused: bool,
    /// All else.
    #[serde(flatten)]
    pub options: ContainerOptions,
}

/// Whether a container is to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SpecRun {
    /// It is to run.
    Running,
    /// It is to exist, and not to run.
    #[default]
    Stopped,
}

/// What is wanted of a container beside its system and whether it runs. The default is the closed one: nothing of the
/// host, no opening, no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ContainerOptions {
    /// The environment of its init, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Its secrets: the name of a systemd credential, and the absolute path of the file on the leaf that holds it. The
    /// directories that such files may be in are a setting of the leaf.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// Directories of the leaf that it sees. The directories that these may be in are a setting of the leaf.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<Bind>,
    /// What it may use at most.
    #[serde(skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// What follows when it ends by itself.
    #[serde(skip_serializing_if = "is_default")]
    pub restart: RestartPolicy,
    /// When the host boots: whether a container that is wanted to run is started with it, before `leafd` is.
    #[serde(skip_serializing_if = "is_default")]
    pub autostart: Autostart,
    /// The containers that are started before it where both are started with the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<ContainerName>,
    /// Marks of your own, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What its network opens beside its leaf's NATS.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Opening>,
    /// How its users are numbered on the host.
    #[serde(skip_serializing_if = "is_default")]
    pub users: Users,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A directory of the leaf that a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// The directory or file on the leaf: an absolute path.
    pub source: String,
    /// Where the container sees it: an absolute path; that of the source if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether the container may write there. Its root then acts as the directory's owner.
    #[serde(default, skip_serializing_if = "is_default")]
    pub writable: bool,
}

impl Bind {
    /// Where the container sees it.
    #[must_use]
    pub fn target(&self) -> &str {
        self.target.as_deref().unwrap_or(&self.source)
    }
}

/// What follows when a container ends by itself. One whose init asks for a reboot is always started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestartPolicy {
    /// When it is started again.
    pub when: RestartWhen,
    /// How long the first restart is put off, in seconds.
    pub delay_seconds: u32,
    /// How long a restart is put off at most, in seconds: the delay grows up to this with each end that follows soon.
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

/// When a container that ended by itself is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartWhen {
    /// Not at all.
    Never,
    /// When it did not end with success.
    OnFailure,
    /// However it ended.
    Always,
}

/// What the boot of the host means for a container that is wanted to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Autostart {
    /// `leafd` starts it, once it is up.
    #[default]
    WithLeafd,
    /// systemd starts it, whether `leafd` comes up or not (`machines.target`).
    WithHost,
}

/// How a container's users are numbered on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Users {
    /// In a user namespace of its own: its root is nobody on the host.
    #[default]
    Private,
    /// As on the host: its root is the host's. For containers that were adopted, and for those you trust as the host.
    Host,
}

impl TryFrom<Map<String, Value>> for ContainerSpec {
    type Error = serde_json::Error;

    /// Reads a spec; a field that is not known is an error.
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
    /// Returns the spec with a JSON merge patch (RFC 7396) applied: what is `null` in it goes, what is an object is
    /// merged, all else is replaced.
    ///
    /// # Errors
    /// What serde says of a patch that leads to no spec.
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
    /// Whether nothing is wanted beside a system and whether it runs.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
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
    fn a_spec_is_written_as_it_is_read() {
        let text = r#"{"source":{"type":"template","name":"minimal"},"run":"running",
            "limits":{"memory_bytes":"512 MiB","cpu_percent":50},"restart":{"when":"on_failure"},
            "allow":[{"type":"ingress","host_port":8080,"port":80},{"type":"outside","to":"10.1.0.0/16"}]}"#;
        let read = spec(text).expect("a spec");
        assert_eq!(read.options.limits.memory_bytes, Some(ByteSize(512 << 20)));
        let written = serde_json::to_string(&read).expect("JSON");
        assert_eq!(spec(&written), Ok(read));
    }

    #[test]
    fn what_a_spec_does_not_say_is_closed_and_unlimited() {
        let read = spec(r#"{"source":{"type":"template","name":"minimal"}}"#).expect("a spec");
        assert_eq!(read.options, ContainerOptions::default());
        assert_eq!(read.run, SpecRun::Stopped);
        assert_eq!(read.options.users, Users::Private);
    }

    #[test]
    fn a_patch_changes_what_it_names_and_removes_what_is_null() {
        let read = with(r#""limits":{"memory_bytes":1048576,"tasks":5},"labels":{"a":"1"}"#).expect("a spec");
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
