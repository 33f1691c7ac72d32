//! Inputs of the engine: plain data, with everything that the shell had to read for them.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use uuid::Uuid;

use crate::command::{Command, CommandKind, CommandRecord, HubReport, LocalAccess, container};
use crate::container::{ForeignContainer, ObservedContainer};
use crate::decide::{InUse, ObservedChanges};
use crate::event::HostFacts;
use crate::fleet::work::WorkAnswer;
use crate::hardware::Inventory;
use crate::host_op::StoredSecret;
use crate::id::{Caller, CommandId, ContainerName, JobId, SecretName};
use crate::job::{JobOutcome, Progress};
use crate::moment::Moment;
use crate::placement::pressure::Pressure;
use crate::problem::Problem;
use crate::provenance::envelope::Envelope;
use crate::reconcile::container::StepsOutcome;
use crate::signed::Provenance;

/// An input of the engine.
#[derive(Debug, Clone)]
pub enum Input {
    /// An instance of leafd starts. It is the first input.
    Started {
        /// The version of leafd.
        version: String,
        /// The host that it runs on.
        host: HostFacts,
    },
    /// A command arrived.
    Command(Box<Request>),
    /// The hardware was scanned.
    HardwareScanned {
        /// The inventory, or the reason why the scan failed.
        scanned: Result<Inventory, String>,
        /// The number of the last rescan that was requested before the scan began.
        rescan: u64,
    },
    /// Containers were observed, after a hint or periodically.
    ContainersObserved {
        /// When the observation began.
        began: Moment,
        /// The containers that it covers.
        scope: Scope,
        /// The containers among them that exist on the host.
        observed: BTreeMap<ContainerName, ObservedContainer>,
    },
    /// The steps for a container have ended.
    StepsEnded {
        /// The container's name.
        name: ContainerName,
        /// How they ended.
        outcome: StepsOutcome,
    },
    /// The host was searched for a foreign container.
    ForeignObserved {
        /// The container's name.
        name: ContainerName,
        /// The container; `None` if the host has none of this name; or the problem of the search.
        found: Result<Option<ForeignContainer>, Problem>,
    },
    /// Time has passed: it is looked whether credentials of containers have to be renewed. The shell gives it after
    /// [`Engine::look_again_after`](super::Engine::look_again_after).
    TimePassed,
    /// A running job reported its progress.
    JobProgressed(JobId, Progress),
    /// A running job is done with Nix, and runs the program that it is for: it leaves its place to another job.
    JobRunsProgram(JobId),
    /// A job ended.
    JobEnded {
        /// The job.
        id: JobId,
        /// Its outcome.
        outcome: JobOutcome,
        /// The signed statement about what it built.
        attestation: Option<Box<Envelope>>,
    },
    /// The helper has made a change of a secret, or has not.
    SecretMade {
        /// The secret's name.
        name: SecretName,
        /// The stored secret; `None` of one that was removed; or why the change was not made.
        outcome: Result<Option<StoredSecret>, Problem>,
    },
    /// The host's secrets were observed.
    SecretsObserved {
        /// The number of [the effect](super::Effect::ObserveSecrets).
        moves: u64,
        /// All that the host has.
        found: Vec<StoredSecret>,
    },
    /// The helper has carried out a step of a change that can cut the leaf off, or has not.
    Changed {
        /// The number of [the effect](super::Effect::Change).
        number: u64,
        /// Why not, if it has not.
        outcome: Result<(), Problem>,
    },
    /// The host's changes that can cut the leaf off were observed.
    ChangesObserved(Box<ObservedChanges>),
    /// The publisher has learnt more about the stream's content.
    Published {
        /// The sequence number of the stream's first event, or of the next event if it is empty; 0 if unknown.
        first: u64,
        /// The last sequence number acknowledged by the stream.
        last: u64,
    },
    /// The hub agent answered a claim, or did not.
    HubHeard(Box<HubReport>),
    /// The hub agent answered a report on the leaf's works, or did not.
    WorksHeard {
        /// When the report was sent.
        told_at: Moment,
        /// The answers; `None` if there are none.
        answers: Option<Vec<WorkAnswer>>,
    },
    /// The credentials of the leaf at a given NATS server are valid until then, or have no end.
    CredentialsUntil(Option<Timestamp>),
    /// The credentials of the leaf's own people were issued.
    LocalAccess(LocalAccess),
    /// The daemon must stop.
    Stop {
        /// The reason, such as `SIGTERM`.
        reason: &'static str,
    },
    /// No more commands will arrive.
    Drained,
    /// The daemon ends. It is the last input.
    Ended,
}

impl Input {
    /// Returns whether the decision on this input depends on the pressure of the host.
    #[must_use]
    pub fn depends_on_pressure(&self) -> bool {
        let of_command = |request: &Request| request.command.as_ref().is_ok_and(Command::depends_on_pressure);
        matches!(self, Self::Command(request) if of_command(request))
    }

    /// Returns whether a container may be created or adopted with this input, which takes a name and addresses of the host.
    #[must_use]
    pub fn adds_container(&self) -> bool {
        match self {
            Self::Command(request) => matches!(
                request.command,
                Ok(Command::Container(
                    container::Command::Create(_) | container::Command::Apply(_)
                ))
            ),
            Self::ForeignObserved { found, .. } => matches!(found, Ok(Some(_))),
            _ => false,
        }
    }
}

/// The containers that an observation covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of the leaf's containers, except those of which a file can't be read.
    AllBut(BTreeSet<ContainerName>),
    /// Only these.
    Only(BTreeSet<ContainerName>),
}

impl Scope {
    /// Returns whether the observation covers a container.
    #[must_use]
    pub fn contains(&self, name: &ContainerName) -> bool {
        match self {
            Self::AllBut(names) => !names.contains(name),
            Self::Only(names) => names.contains(name),
        }
    }
}

/// The time and conditions of an input: clocks, ids and the state of the disk, as values.
#[derive(Debug, Clone)]
pub struct At {
    /// The leaf's clock.
    pub time: Timestamp,
    /// The monotonic clock.
    pub moment: Moment,
    /// Fresh ids.
    pub ids: FreshIds,
    /// The state of the journal and its disk.
    pub conditions: Conditions,
    /// The networks and names in use on the host, if [`Input::adds_container`]; otherwise empty.
    pub in_use: InUse,
}

/// Fresh ids, derived from one version 7 UUID.
#[derive(Debug, Clone)]
pub struct FreshIds(Uuid);

impl FreshIds {
    /// Returns the ids that begin with this version 7 UUID.
    #[must_use]
    pub fn new(seed: Uuid) -> Self {
        Self(seed)
    }

    /// Returns the next id. Ids sort in the order in which they were taken.
    pub fn next_id(&mut self) -> Uuid {
        let id = self.0;
        // The lowest 62 bits of a version 7 UUID are random (RFC 9562, 5.7); the two above them name the variant.
        let (high, low) = id.as_u64_pair();
        const RANDOM: u64 = (1 << 62) - 1;
        self.0 = Uuid::from_u64_pair(high, (low & !RANDOM) | ((low + 1) & RANDOM));
        id
    }
}

/// The state of the journal and its disk when an input is handled.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conditions {
    /// Since when the journal's disk has been full; `None` if it is not.
    pub full_since: Option<Timestamp>,
    /// The size of the data that waits for the journal's disk, in bytes.
    pub queued_bytes: u64,
    /// The free space of the journal's disk, in bytes, or the reason why it is unknown.
    pub free_bytes: FreeSpace,
    /// The free space of the Nix store's disk, in bytes, if it is known.
    pub store_free_bytes: Option<u64>,
    /// The last sequence number that is durable.
    pub durable_sequence: u64,
    /// The number of the engine's [records](super::Record) that are durable, so that their effects were released.
    pub committed: u64,
    /// The largest message that the NATS server accepts, in bytes; `None` if it is not known.
    pub max_message_bytes: Option<usize>,
    /// The pressure of the host, if the input [depends on it](Input::depends_on_pressure) and the kernel measures
    /// it.
    pub pressure: Option<Pressure>,
}

/// The free space of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FreeSpace {
    /// The number of bytes.
    Bytes(u64),
    /// It could not be read, for this reason.
    Unknown(String),
}

impl Default for FreeSpace {
    fn default() -> Self {
        Self::Bytes(u64::MAX)
    }
}

/// The id of a request that waits for its reply. The shell keeps its responder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A command as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// The id of the request.
    pub id: RequestId,
    /// The caller that sent it.
    pub caller: Caller,
    /// The command id, if the sender gave one.
    pub command_id: Option<CommandId>,
    /// The sender's correlation id, which every event that follows carries.
    pub correlation: Option<String>,
    /// The command, or the problem with its body.
    pub command: Result<Command, Problem>,
    /// Whether it is signed, and by whom.
    pub provenance: Provenance,
    /// Whether it arrived at the leaf's own server, from a client of that server.
    pub is_local: bool,
    /// Whether a command with this id was accepted from this caller before. Meaningful only if
    /// [`Request::is_repeatable`] returns a key.
    pub seen: Seen,
}

impl Request {
    /// Returns the key (caller and id) under which an earlier acceptance of this command is looked up. It has one if
    /// the command changes something or is signed, and its sender gave it an id.
    #[must_use]
    pub fn is_repeatable(&self) -> Option<(&Caller, &CommandId)> {
        let changes = |command: &Command| command.kind() != CommandKind::Query;
        let id = self.command_id.as_ref()?;
        let is_signed = matches!(self.provenance, Provenance::Signed { .. });
        self.command
            .as_ref()
            .is_ok_and(|command| is_signed || changes(command))
            .then_some((&self.caller, id))
    }
}

/// Whether a command with this id was accepted from this caller before, according to the journal and its queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It was not.
    No,
    /// It was accepted; this is its record.
    Before(Box<CommandRecord>),
    /// The journal can't be read at the moment.
    Unreadable,
}
