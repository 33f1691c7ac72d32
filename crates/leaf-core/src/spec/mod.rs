//! What a person says of a container: its spec, the desired state. [`ContainerSpec::check`] says what can't be.
//!
//! Everything in it is a value or a reference: a secret is named by the file that holds it on the leaf, and never stands
//! in a spec, since specs are in the event log.

mod limits;
mod opening;

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de};
use serde_json::{Map, Value};

use crate::command::{SpecChange, SpecDiff};
use crate::container::{ContainerSource, DesiredRun};
use crate::host_op::Runtime;
use crate::id::ContainerName;

pub use limits::{ByteSize, Limits};
pub use opening::{Destination, Opening, Protocol};

/// The most entries of one kind (variables, binds, secrets, labels, openings) in a spec.
const MAX_ENTRIES: usize = 128;
/// The most bytes of all options together, as JSON: revisions of them must fit into one entry of the state.
const MAX_OPTIONS_BYTES: usize = 32 * 1024;
/// The longest text of an entry, in bytes.
const MAX_TEXT_BYTES: usize = 8 * 1024;
/// The longest that a restart may be put off, in seconds: a day.
const MAX_DELAY_SECONDS: u32 = 24 * 3600;

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

impl From<SpecRun> for DesiredRun {
    fn from(run: SpecRun) -> Self {
        match run {
            SpecRun::Running => Self::Running,
            SpecRun::Stopped => Self::Stopped,
        }
    }
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
    /// folders that such files may be in are a setting of the leaf.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// Folders of the leaf that it sees. The folders that these may be in are a setting of the leaf.
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

/// A folder of the leaf that a container sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bind {
    /// The folder or file on the leaf: an absolute path.
    pub source: String,
    /// Where the container sees it: an absolute path; that of the source if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether the container may write there. Its root then acts as the folder's owner.
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

/// Returns each value of a spec that would be another, sorted by its place.
#[must_use]
pub fn spec_diff(now: &ContainerSpec, then: &ContainerSpec) -> SpecDiff {
    let json = |spec| serde_json::to_value(spec).expect("a spec has text keys and no failing parts");
    let mut changes = Vec::new();
    compare(&mut Vec::new(), Some(&json(now)), Some(&json(then)), &mut changes);
    SpecDiff { changes }
}

fn compare(path: &mut Vec<String>, now: Option<&Value>, then: Option<&Value>, changes: &mut Vec<SpecChange>) {
    if let (Some(Value::Object(a)), Some(Value::Object(b))) = (now, then) {
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            path.push(key.clone());
            compare(path, a.get(key), b.get(key), changes);
            path.pop();
        }
    } else if now != then {
        changes.push(SpecChange {
            path: path.clone(),
            now: now.cloned(),
            then: then.cloned(),
        });
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

/// Folders of a container that are the leaf's to fill.
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
