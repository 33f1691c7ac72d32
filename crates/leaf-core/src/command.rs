//! Commands and their replies, one type each. Unknown fields of a command are refused, so a misspelt one is noticed.
//!
//! A command's noun and verb stand in its [subject](crate::subject), its arguments in a JSON body; an empty body is
//! `{}`. No header is needed: `nats req leaf.v1.cmd.edge-1.admin.leaf.show ''` works. With the header `ce-id` the
//! sender gives the command an id, and may send it again without harm.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::container::{Container, ContainerSource, ContainerStats, ForeignContainer, Revision};
use crate::event::HostFacts;
use crate::hardware::Device;
use crate::id::{ContainerName, DeviceId, InstanceId, JobId, LeafName};
use crate::job::{Installable, Job, JobPhase, Progress};
use crate::problem::{Problem, ProblemCode};
use crate::spec::{ContainerOptions, ContainerSpec};

/// The largest body of a command, in bytes.
pub const MAX_COMMAND_BYTES: usize = 256 * 1024;

/// The header of a command with its id; replies and events name it as `ce-causationid`.
pub const COMMAND_ID_HEADER: &str = crate::event::header::ID;

/// Whether a verb answers at once or begins a job; a verb stays what it is for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandKind {
    /// It changes nothing.
    Query,
    /// It changes something, and is answered when that is done or has failed.
    Change,
    /// It begins a job, and is answered with the job's id once that is stored.
    Job,
}

/// A command's type: where it goes and what comes back.
pub trait Request: Serialize {
    /// What it is about: `container`.
    const NOUN: &'static str;
    /// What to do: `start`.
    const VERB: &'static str;
    /// Whether it changes something or begins a job.
    const KIND: CommandKind;
    /// What comes back when it worked.
    type Reply: for<'de> Deserialize<'de> + Serialize;
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $noun:literal $verb:literal $kind:ident { $($(#[$fdoc:meta])* $field:ident : $type:ty),* $(,)? } -> $reply:ident)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
            #[serde(deny_unknown_fields)]
            pub struct $name { $($(#[$fdoc])* pub $field: $type),* }

            impl Request for $name {
                const NOUN: &'static str = $noun;
                const VERB: &'static str = $verb;
                const KIND: CommandKind = CommandKind::$kind;
                type Reply = $reply;
            }
        )*

        /// Everything that a leaf can be told.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Command { $($(#[$doc])* $name($name),)* }

        /// All commands: noun, verb, kind, and the names of the request's and the reply's schema.
        pub const COMMANDS: &[(&str, &str, CommandKind, &str, &str)] = &[
            $(($noun, $verb, CommandKind::$kind, concat!("cmd.", $noun, ".", $verb), concat!("reply.", $noun, ".", $verb)),)*
        ];

        impl Command {
            /// Reads a command. An empty body is `{}`.
            ///
            /// # Errors
            /// A [`Problem`]: `too_large`, `unknown_command`, or `malformed` with the place in the body.
            pub fn parse(noun: &str, verb: &str, body: &[u8]) -> Result<Self, Problem> {
                if body.len() > MAX_COMMAND_BYTES {
                    return Err(Problem::new(ProblemCode::TooLarge, format!("the body has {} bytes, at most {MAX_COMMAND_BYTES} are allowed", body.len())));
                }
                let body = if body.iter().all(u8::is_ascii_whitespace) { b"{}" } else { body };
                // Serde would read the fields from a list, too, by their order.
                if body.trim_ascii_start().first() == Some(&b'[') {
                    return Err(Problem::new(ProblemCode::Malformed, format!("the body of {noun}.{verb} is a list, and has to be an object")));
                }
                match (noun, verb) {
                    $(($noun, $verb) => serde_json::from_slice(body).map(Self::$name).map_err(|e| {
                        Problem::new(ProblemCode::Malformed, format!("the body of {noun}.{verb} can't be read: {e}"))
                    }),)*
                    _ => Err(Problem::new(ProblemCode::UnknownCommand, format!("this leaf knows no command {noun}.{verb}; it may be of another version"))),
                }
            }

            /// What the command is about, and what it does.
            #[must_use]
            pub fn noun_and_verb(&self) -> (&'static str, &'static str) {
                match self { $(Self::$name(_) => ($noun, $verb),)* }
            }

            /// Whether it changes something or begins a job.
            #[must_use]
            pub fn kind(&self) -> CommandKind {
                match self { $(Self::$name(_) => CommandKind::$kind,)* }
            }

            fn to_body(&self) -> Vec<u8> {
                match self { $(Self::$name(c) => serde_json::to_vec(c).expect("a command has string keys only"),)* }
            }
        }

        $(impl From<$name> for Command {
            fn from(command: $name) -> Self { Self::$name(command) }
        })*

        /// Returns every command and reply type with its schema.
        pub(crate) fn schemas() -> Vec<(String, schemars::Schema)> {
            vec![$(
                (concat!("cmd.", $noun, ".", $verb).to_owned(), schemars::schema_for!($name)),
                (concat!("reply.", $noun, ".", $verb).to_owned(), schemars::schema_for!($reply)),
            )*]
        }
    };
}

commands! {
    /// Shows the leaf: what it is, since when, and how it does.
    ShowLeaf = "leaf" "show" Query {} -> LeafReport
    /// Lists the devices that the leaf knows.
    ListHardware = "hardware" "list" Query {} -> DeviceList
    /// Shows one device.
    ShowHardware = "hardware" "show" Query {
        /// Which one.
        id: DeviceId,
    } -> Device
    /// Looks at the hardware now, and says what has changed.
    RescanHardware = "hardware" "rescan" Change {} -> RescanReport
    /// Makes a container. The answer comes as soon as that is stored: the phase is `creating`, or for one of a flake or a
    /// template `building`, with `build_job` as the job to follow; `container.show` says how it goes on.
    CreateContainer = "container" "create" Change {
        /// Its name.
        name: ContainerName,
        /// Where its system comes from.
        source: ContainerSource,
        /// Whether it is to be started, too.
        #[serde(default)]
        start: bool,
        /// What else is wanted of it.
        #[serde(default, skip_serializing_if = "ContainerOptions::is_default")]
        options: ContainerOptions,
    } -> Container
    /// Makes a container, or what is wanted of one that is there, what this spec says. The answer comes as soon as that is
    /// stored; `container.show` says how it goes on. The same spec again changes nothing.
    ApplyContainer = "container" "apply" Change {
        /// Its name.
        name: ContainerName,
        /// All that is wanted of it.
        spec: ContainerSpec,
        /// Only if what is wanted of it is still of this generation; 0 if there must be none of this name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_generation: Option<u64>,
    } -> Container
    /// Gives a container another system, or builds that of its source anew. The answer comes as soon as that is stored; the
    /// container runs on with what it has until the new one is there, and goes back to it if that does not become ready.
    UpdateContainer = "container" "update" Change {
        /// Which one.
        name: ContainerName,
        /// Where the system comes from; from where it did if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<ContainerSource>,
        /// Only if what is wanted of it is still of this generation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_generation: Option<u64>,
    } -> Container
    /// Changes a part of what is wanted of a container. The answer comes as soon as that is stored.
    SetContainer = "container" "set" Change {
        /// Which one.
        name: ContainerName,
        /// A JSON merge patch (RFC 7396) to its spec: what is `null` in it goes, objects are merged, all else is replaced.
        patch: serde_json::Value,
        /// Only if what is wanted of it is still of this generation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_generation: Option<u64>,
    } -> Container
    /// Wants again what was wanted of a container before; whether it runs stays as it is. The answer comes as soon as that is
    /// stored.
    RollbackContainer = "container" "rollback" Change {
        /// Which one.
        name: ContainerName,
        /// The generation to go back to; the last one that differs from what is wanted now if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
        /// Only if what is wanted of it is still of this generation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_generation: Option<u64>,
    } -> Container
    /// Takes over a container that somebody else made on this host, with its files. The answer comes as soon as that is
    /// stored; one that runs is restarted.
    AdoptContainer = "container" "adopt" Change {
        /// Which one.
        name: ContainerName,
    } -> Container
    /// Says what a spec would change, and changes nothing.
    DiffContainer = "container" "diff" Query {
        /// Which one.
        name: ContainerName,
        /// What would be wanted of it.
        spec: ContainerSpec,
    } -> SpecDiff
    /// Lists what was wanted of a container, the oldest first.
    ShowContainerHistory = "container" "history" Query {
        /// Which one.
        name: ContainerName,
    } -> ContainerHistory
    /// Says what a container uses now.
    ReadContainerStats = "container" "stats" Query {
        /// Which one.
        name: ContainerName,
    } -> ContainerStats
    /// Starts a container, and answers when it is ready.
    StartContainer = "container" "start" Change {
        /// Which one.
        name: ContainerName,
        /// Only if what is wanted of it is still of this generation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_generation: Option<u64>,
    } -> Container
    /// Stops a container, and answers when it has ended.
    StopContainer = "container" "stop" Change {
        /// Which one.
        name: ContainerName,
        /// Only if what is wanted of it is still of this generation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_generation: Option<u64>,
    } -> Container
    /// Stops a container if it runs, and removes it with all its files.
    DestroyContainer = "container" "destroy" Change {
        /// Which one.
        name: ContainerName,
        /// Only if what is wanted of it is still of this generation.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        if_generation: Option<u64>,
    } -> Destroyed
    /// Lists the containers of the leaf, and those on its host that are somebody else's.
    ListContainers = "container" "list" Query {} -> ContainerList
    /// Shows one container.
    ShowContainer = "container" "show" Query {
        /// Which one.
        name: ContainerName,
    } -> Container
    /// Reads a container's console: its end, or with a cursor what came since.
    ReadContainerLog = "container" "logs" Query {
        /// Which one.
        name: ContainerName,
        /// At most this many lines; 200 if not given, and never more than 512 KiB.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lines: Option<u32>,
        /// Only what was written at this time or later.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Timestamp>,
        /// Only what follows the answer that gave this cursor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<String>,
    } -> LogText
    /// Builds with Nix.
    Build = "nix" "build" Job {
        /// What to build.
        installable: Installable,
        /// The time it may take, in seconds; the leaf's setting if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    } -> JobAccepted
    /// Lists the jobs that the leaf remembers, the newest first.
    ListJobs = "job" "list" Query {} -> JobList
    /// Shows one job and, while it runs, how far it is.
    ShowJob = "job" "show" Query {
        /// Which one.
        id: JobId,
    } -> JobReport
    /// Reads a part of a job's log, also while it runs.
    ReadJobLog = "job" "log" Query {
        /// Which one.
        id: JobId,
        /// From this byte on.
        #[serde(default)]
        offset: u64,
    } -> LogChunk
    /// Ends a job, and answers when nothing of it is left.
    CancelJob = "job" "cancel" Change {
        /// Which one.
        id: JobId,
    } -> Job
}

impl Command {
    /// Returns what tells this command from another: a SHA-256 over its noun, verb and arguments, as hexadecimal.
    /// Blanks and the order of fields in the body that was sent do not count.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let (noun, verb) = self.noun_and_verb();
        let mut hash = Sha256::new();
        hash.update(format!("{noun}.{verb}\n"));
        hash.update(self.to_body());
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a leaf says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeafReport {
    /// Its name.
    pub name: LeafName,
    /// The run of `leafd` that answers.
    pub instance: InstanceId,
    /// The version of `leafd`.
    pub version: String,
    /// When this run began.
    pub started_at: Timestamp,
    /// Its host.
    pub host: HostFacts,
    /// When its history began, in milliseconds since 1970.
    pub epoch: u64,
    /// The last sequence number that is recorded.
    pub sequence: u64,
    /// The last sequence number that the stream is known to hold.
    pub published: u64,
    /// How many devices are there, of those that it knows.
    pub devices_present: u64,
    /// How many devices it knows.
    pub devices: u64,
    /// How many containers run.
    pub containers_running: u64,
    /// How many containers it has.
    pub containers: u64,
    /// How many jobs run.
    pub jobs_running: u64,
    /// How many jobs wait.
    pub jobs_queued: u64,
    /// Whether it takes commands that change something, and if not, why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<String>,
}

/// The devices of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceList {
    /// All of them, sorted by id.
    pub devices: Vec<Device>,
}

/// What a look at the hardware found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RescanReport {
    /// How many devices are there.
    pub devices: u64,
    /// Those that are new or back.
    pub appeared: Vec<DeviceId>,
    /// Those that are not what they were.
    pub changed: Vec<DeviceId>,
    /// Those that are gone.
    pub vanished: Vec<DeviceId>,
}

/// The containers of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerList {
    /// All of them, sorted by name, without their revisions.
    pub containers: Vec<Container>,
    /// Those on its host that are somebody else's, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<ForeignContainer>,
}

/// What was wanted of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerHistory {
    /// The revisions that are remembered, the oldest first.
    pub revisions: Vec<Revision>,
}

/// What a spec would change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpecDiff {
    /// Each value that would be another, sorted by its place.
    pub changes: Vec<SpecChange>,
}

/// One value of a spec that would be another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SpecChange {
    /// Its place: the names of the fields on the way to it.
    pub path: Vec<String>,
    /// What it is now; nothing if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<serde_json::Value>,
    /// What it would be; nothing if it would go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<serde_json::Value>,
}

/// A container that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Destroyed {
    /// Its name, which is free again.
    pub name: ContainerName,
}

/// The end of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogText {
    /// The lines, each with its end. What is not UTF-8 is replaced.
    pub text: String,
    /// Whether lines before these were left out.
    pub truncated: bool,
    /// Where to read on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A part of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogChunk {
    /// The text. What is not UTF-8 is replaced.
    pub text: String,
    /// Where to read on.
    pub next_offset: u64,
    /// Whether this is all, and nothing more will come.
    pub complete: bool,
}

/// A job that is stored, and will run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobAccepted {
    /// Its id.
    pub job: JobId,
    /// Where it stands.
    pub phase: JobPhase,
}

/// The jobs of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobList {
    /// Those that are remembered, the newest first; what a result refers to is left out here.
    pub jobs: Vec<Job>,
}

/// One job and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobReport {
    /// The job.
    pub job: Job,
    /// How far it is, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_body_is_an_empty_object() {
        assert_eq!(
            Command::parse("leaf", "show", b" \n"),
            Ok(Command::ShowLeaf(ShowLeaf {}))
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_reason() {
        let parse = |noun, verb, body: &[u8]| Command::parse(noun, verb, body).expect_err("refused");
        assert_eq!(parse("leaf", "show", b"{").code, ProblemCode::Malformed);
        assert!(
            parse("leaf", "show", br#"{"sudo":true}"#)
                .detail
                .contains("unknown field `sudo`")
        );
        for list in [&b"[]"[..], br#" ["web", null]"#] {
            let problem = parse("container", "start", list);
            assert_eq!(problem.code, ProblemCode::Malformed);
            assert!(problem.detail.contains("has to be an object"), "{problem}");
        }
        assert!(
            parse("container", "start", br#"{"name":7}"#)
                .detail
                .contains("invalid type")
        );
        assert!(
            parse("container", "start", br#"{"name":"../x"}"#)
                .detail
                .contains("container name")
        );
        assert_eq!(parse("leaf", "eat", b"").code, ProblemCode::UnknownCommand);
        assert_eq!(
            parse("leaf", "show", &vec![b' '; MAX_COMMAND_BYTES + 1]).code,
            ProblemCode::TooLarge
        );
    }

    #[test]
    fn the_fingerprint_counts_the_meaning_and_not_the_blanks() {
        let parse = |body: &[u8]| {
            Command::parse("container", "create", body)
                .expect("a command")
                .fingerprint()
        };
        let one = parse(br#"{"name":"web","source":{"type":"template","name":"minimal"}}"#);
        let same =
            parse(br#"{ "source": {"name":"minimal","type":"template"}, "name":"web", "start":false }"#);
        let other = parse(br#"{"name":"web2","source":{"type":"template","name":"minimal"}}"#);
        assert_eq!(one, same);
        assert_ne!(one, other);
    }
}
