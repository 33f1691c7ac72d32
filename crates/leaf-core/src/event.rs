//! Domain events: what happened, in the past tense, as CloudEvents 1.0 (NATS binding, binary mode).
//!
//! A [`Fact`] says what happened. An [`Event`] is a fact with its place in the leaf's history. An [`EventRecord`] is
//! an event as bytes: the journal keeps it, and the stream gets the very same bytes, however often it is sent.

pub mod header;
mod record;

pub(crate) use record::to_json;
pub use record::{EventRecord, Headers};

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::container::{Desired, Exit};
use crate::hardware::Device;
use crate::id::{
    Caller, CommandId, ContainerName, DeviceId, InstanceId, JobId, LeafName, StorePath, encode_token,
};
use crate::job::{JobFailureCause, JobResult, Task};
use crate::subject;

/// One event: a fact and its place in the leaf's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The leaf's own sequence number, contiguous from 1; equal to the stream's.
    pub sequence: u64,
    /// When it was recorded, by the leaf's clock.
    pub time: Timestamp,
    /// The command that caused it, if one did.
    pub causation: Option<CommandId>,
    /// The sender's own mark, carried along from command to event.
    pub correlation: Option<String>,
    /// What happened.
    pub fact: Fact,
}

/// Why a message is not an event that this version can read.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// A header that every event has is missing or not of its form.
    #[error("the event on {subject} has no usable header {header}")]
    Header {
        /// The message's subject.
        subject: String,
        /// The header's name.
        header: &'static str,
    },
    /// The body is not of its type's shape.
    #[error("the event {kind} with sequence {sequence} can't be read")]
    Body {
        /// Its `ce-type`.
        kind: String,
        /// Its sequence number.
        sequence: u64,
        /// What serde says.
        source: serde_json::Error,
    },
}

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident = $aggregate:literal $fact:literal v $version:literal { $($(#[$fdoc:meta])* $field:ident : $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
            pub struct $name { $($(#[$fdoc])* pub $field: $type),* }
        )*

        /// What happened. Each variant has its own type, schema and subject.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Fact {
            $($(#[$doc])* $name($name),)*
            /// A fact of a newer version: it keeps its place in the history and changes nothing.
            Unknown {
                /// Its `ce-type`.
                kind: String,
            },
        }

        impl Fact {
            /// The `ce-type`, which ends in the schema's major version: `cim.leaf.container.started.v1`.
            #[must_use]
            pub fn kind(&self) -> &str {
                match self {
                    $(Self::$name(_) => concat!("cim.leaf.", $aggregate, ".", $fact, ".v", $version),)*
                    Self::Unknown { kind } => kind,
                }
            }

            /// What it is about (`container`) and what happened to it (`started`).
            #[must_use]
            pub fn aggregate_and_fact(&self) -> (&'static str, &'static str) {
                match self {
                    $(Self::$name(_) => ($aggregate, $fact),)*
                    Self::Unknown { .. } => ("unknown", "unknown"),
                }
            }

            fn to_body(&self) -> Vec<u8> {
                match self {
                    $(Self::$name(fact) => to_json(fact),)*
                    Self::Unknown { .. } => b"{}".to_vec(),
                }
            }

            fn from_body(kind: &str, body: &[u8]) -> Result<Self, serde_json::Error> {
                match kind {
                    $(concat!("cim.leaf.", $aggregate, ".", $fact, ".v", $version) => serde_json::from_slice(body).map(Self::$name),)*
                    other => Ok(Self::Unknown { kind: other.to_owned() }),
                }
            }
        }

        /// Returns every event type with its schema, in the order of this module.
        pub(crate) fn schemas() -> Vec<(String, schemars::Schema)> {
            vec![$((concat!("cim.leaf.", $aggregate, ".", $fact, ".v", $version).to_owned(), schemars::schema_for!($name)),)*]
        }
    };
}

facts! {
    /// A run of `leafd` began.
    LeafStarted = "leaf" "started" v 1 {
        /// The leaf.
        leaf: LeafName,
        /// This run.
        instance: InstanceId,
        /// The version of `leafd`.
        version: String,
        /// The host it runs on.
        host: HostFacts,
    }
    /// A run of `leafd` ended as it should.
    LeafStopped = "leaf" "stopped" v 1 {
        /// The run that ended.
        instance: InstanceId,
        /// Why: `SIGTERM`, say.
        reason: String,
    }
    /// The whole state at this point; a replay may start here. A large state comes in several parts with
    /// consecutive sequence numbers.
    LeafSnapshotted = "leaf" "snapshotted" v 1 {
        /// The leaf.
        leaf: LeafName,
        /// When the history to which this belongs began, in milliseconds since 1970: it changes only where a
        /// history could not be continued.
        epoch: u64,
        /// This part, from 1.
        part: u32,
        /// How many parts there are.
        parts: u32,
        /// The entries of the state in this part, by key (`container.web`).
        entries: BTreeMap<String, serde_json::Value>,
    }
    /// A device is there, for the first time or again.
    DeviceAppeared = "device" "appeared" v 1 {
        /// The device as it was seen.
        device: Device,
    }
    /// A device is not what it was.
    DeviceChanged = "device" "changed" v 1 {
        /// The device as it was seen.
        device: Device,
        /// The fields that differ.
        changed: Vec<String>,
    }
    /// A device is gone; it is remembered as absent.
    DeviceVanished = "device" "vanished" v 1 {
        /// Which one.
        id: DeviceId,
    }
    /// Somebody wants something of a container: it is to be, to run, to stand still, to go.
    ContainerDesired = "container" "desired" v 1 {
        /// Which one.
        name: ContainerName,
        /// All that is wanted of it now.
        desired: Desired,
        /// Who wants it.
        caller: Caller,
    }
    /// The system of a container was built.
    ContainerBuilt = "container" "built" v 1 {
        /// Which one.
        name: ContainerName,
        /// The system.
        toplevel: StorePath,
    }
    /// A container exists on the host.
    ContainerCreated = "container" "created" v 1 {
        /// Which one.
        name: ContainerName,
    }
    /// A container runs and has said that it is ready.
    ContainerStarted = "container" "started" v 1 {
        /// Which one.
        name: ContainerName,
        /// From start to ready, in milliseconds.
        ready_after_ms: u64,
    }
    /// A container does not run any more.
    ContainerStopped = "container" "stopped" v 1 {
        /// Which one.
        name: ContainerName,
        /// Why.
        cause: StopCause,
        /// How its init ended, if anybody saw it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<Exit>,
    }
    /// A container is what was wanted of it last.
    ContainerUpdated = "container" "updated" v 1 {
        /// Which one.
        name: ContainerName,
        /// The generation that it is at now.
        generation: u64,
        /// Whether it runs.
        running: bool,
        /// From start to ready, in milliseconds, if it was started again for that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ready_after_ms: Option<u64>,
    }
    /// A container did not become ready with its new system, and goes back to the one before.
    ContainerReverted = "container" "reverted" v 1 {
        /// Which one.
        name: ContainerName,
        /// The system that it goes back to.
        toplevel: StorePath,
        /// Why.
        reason: String,
    }
    /// Processes of a container were killed for want of memory.
    ContainerOutOfMemory = "container" "out_of_memory" v 1 {
        /// Which one.
        name: ContainerName,
        /// How many of them were since it was started.
        oom_kills: u64,
    }
    /// A container is gone from the host.
    ContainerDestroyed = "container" "destroyed" v 1 {
        /// Which one.
        name: ContainerName,
    }
    /// A step for a container did not work.
    ContainerFailed = "container" "failed" v 1 {
        /// Which one.
        name: ContainerName,
        /// The step.
        step: ContainerStep,
        /// What happened.
        reason: String,
    }
    /// A job was accepted.
    JobQueued = "job" "queued" v 1 {
        /// Its id.
        id: JobId,
        /// Who wants it.
        owner: Caller,
        /// What it does.
        task: Task,
    }
    /// A job runs.
    JobStarted = "job" "started" v 1 {
        /// Its id.
        id: JobId,
    }
    /// A job is done.
    JobSucceeded = "job" "succeeded" v 1 {
        /// Its id.
        id: JobId,
        /// What it made.
        result: JobResult,
    }
    /// A job did not work.
    JobFailed = "job" "failed" v 1 {
        /// Its id.
        id: JobId,
        /// What kind of failure it is.
        cause: JobFailureCause,
        /// Why, in one or a few lines; its log has all.
        error: String,
    }
    /// A job was ended because somebody asked for it.
    JobCancelled = "job" "cancelled" v 1 {
        /// Its id.
        id: JobId,
        /// Who asked.
        by: Caller,
    }
    /// A job ended unseen.
    JobInterrupted = "job" "interrupted" v 1 {
        /// Its id.
        id: JobId,
        /// What is known of it.
        reason: String,
    }
}

/// The host that a leaf runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostFacts {
    /// Its host name.
    pub hostname: String,
    /// Its platform as Nix names it: `x86_64-linux`.
    pub system: String,
    /// Its kernel release.
    pub kernel: String,
    /// The id of this boot of the kernel (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}

/// Why a container stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// Somebody asked for it.
    Requested,
    /// Its init ended by itself.
    Exited,
    /// It was gone after a restart of the host.
    HostRestarted,
    /// It ended without success after processes of it had been killed for want of memory.
    OutOfMemory,
}

/// What was to be done for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerStep {
    /// Build its system.
    Build,
    /// Make it on the host, its network included.
    Create,
    /// Start it, and wait until it is ready.
    Start,
    /// Bring it to what is wanted of it now, while it runs.
    Update,
    /// Stop it.
    Stop,
    /// Remove it from the host.
    Destroy,
    /// Look at it on the host: it is not what the step before should have made it.
    Look,
}

impl ContainerStep {
    /// The name, as it stands in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Create => "create",
            Self::Start => "start",
            Self::Update => "update",
            Self::Stop => "stop",
            Self::Destroy => "destroy",
            Self::Look => "look",
        }
    }
}

impl std::fmt::Display for ContainerStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Fact {
    /// The token of what it is about: the leaf, the device id, the container's name as a token, the job id.
    #[must_use]
    pub fn aggregate_id(&self, leaf: &LeafName) -> String {
        match self {
            Self::LeafStarted(_) | Self::LeafStopped(_) | Self::LeafSnapshotted(_) => leaf.to_string(),
            Self::DeviceAppeared(f) => f.device.id.to_string(),
            Self::DeviceChanged(f) => f.device.id.to_string(),
            Self::DeviceVanished(f) => f.id.to_string(),
            Self::ContainerDesired(f) => f.name.token(),
            Self::ContainerBuilt(f) => f.name.token(),
            Self::ContainerCreated(f) => f.name.token(),
            Self::ContainerStarted(f) => f.name.token(),
            Self::ContainerStopped(f) => f.name.token(),
            Self::ContainerUpdated(f) => f.name.token(),
            Self::ContainerReverted(f) => f.name.token(),
            Self::ContainerOutOfMemory(f) => f.name.token(),
            Self::ContainerDestroyed(f) => f.name.token(),
            Self::ContainerFailed(f) => f.name.token(),
            Self::JobQueued(f) => f.id.to_string(),
            Self::JobStarted(f) => f.id.to_string(),
            Self::JobSucceeded(f) => f.id.to_string(),
            Self::JobFailed(f) => f.id.to_string(),
            Self::JobCancelled(f) => f.id.to_string(),
            Self::JobInterrupted(f) => f.id.to_string(),
            Self::Unknown { kind } => encode_token(kind),
        }
    }
}

impl Event {
    /// Returns the event as it is stored and sent. `epoch` is that of the leaf's history.
    #[must_use]
    pub fn to_record(&self, leaf: &LeafName, epoch: u64) -> EventRecord {
        let (aggregate, fact) = self.fact.aggregate_and_fact();
        let id = self.fact.aggregate_id(leaf);
        let mut headers = Headers::with_capacity(10, 320);
        // In the order of their names. What is made here is plain; what comes from outside is encoded.
        if let Some(command) = &self.causation {
            headers.push(header::CAUSATION_ID, header::encode(command.as_str()));
        }
        if let Some(mark) = &self.correlation {
            headers.push(header::CORRELATION_ID, header::encode(mark));
        }
        headers.push(header::DATA_CONTENT_TYPE, "application/json");
        headers.push(header::ID, format_args!("{leaf}/{epoch}/{}", self.sequence));
        headers.push(header::SEQUENCE, format_args!("{:020}", self.sequence));
        headers.push(header::SOURCE, format_args!("urn:cim-leaf:{leaf}"));
        headers.push(header::SPECVERSION, "1.0");
        headers.push(header::SUBJECT, header::encode(&id));
        headers.push(header::TIME, self.time);
        headers.push(header::TYPE, header::encode(self.fact.kind()));
        EventRecord {
            sequence: self.sequence,
            subject: subject::event(leaf, aggregate, &id, fact),
            headers,
            body: self.fact.to_body(),
        }
    }

    /// Reads an event back. A type of a newer version becomes [`Fact::Unknown`]; unknown fields are ignored.
    ///
    /// # Errors
    /// [`EventError`] when a header is missing or the body is not of its type's shape.
    pub fn from_record(record: &EventRecord) -> Result<Self, EventError> {
        let find = |name: &str| record.attribute(name);
        let bad = |header| EventError::Header {
            subject: record.subject.clone(),
            header,
        };
        let sequence: u64 = find(header::SEQUENCE)
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| bad(header::SEQUENCE))?;
        let kind = find(header::TYPE).ok_or_else(|| bad(header::TYPE))?;
        let time = find(header::TIME)
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| bad(header::TIME))?;
        let fact = Fact::from_body(&kind, &record.body).map_err(|source| EventError::Body {
            kind: kind.into_owned(),
            sequence,
            source,
        })?;
        Ok(Self {
            sequence,
            time,
            causation: find(header::CAUSATION_ID).and_then(|t| CommandId::new(t.as_ref()).ok()),
            correlation: find(header::CORRELATION_ID).map(Cow::into_owned),
            fact,
        })
    }
}
