//! Inputs of the engine: plain data. What the shell has to read for an input, it reads before it hands the input in.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use uuid::Uuid;

use crate::accepted::CommandRecord;
use crate::command::{Command, CommandKind};
use crate::container::{ForeignContainer, ObservedContainer};
use crate::event::HostFacts;
use crate::hardware::Inventory;
use crate::id::{Caller, CommandId, ContainerName, JobId};
use crate::job::{JobOutcome, Progress};
use crate::moment::Moment;
use crate::problem::Problem;
use crate::reconcile::container::StepsOutcome;

/// Everything that can wake the engine.
#[derive(Debug, Clone)]
pub enum Input {
    /// A run of leafd begins. It is the first input.
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
        /// The inventory, or why the scan failed.
        scanned: Result<Inventory, String>,
        /// The number of the last rescan that was asked for before the scan began.
        rescan: u64,
    },
    /// Containers were observed, because a hint came or it was time to.
    ContainersObserved {
        /// When the observation began.
        began: Moment,
        /// The containers that it covers.
        scope: Scope,
        /// Those of them that the host has.
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
        /// The container, nothing if the host has none of this name, or why the search failed.
        found: Result<Option<ForeignContainer>, Problem>,
    },
    /// A running job reported its progress.
    JobProgressed(JobId, Progress),
    /// A job ended.
    JobEnded(JobId, JobOutcome),
    /// The publisher knows more about what the stream holds.
    Published {
        /// The sequence number of the stream's first event, or of the event that would be its first; 0 if nothing is known.
        first: u64,
        /// The last sequence number that the stream acknowledged.
        last: u64,
    },
    /// The daemon is to stop.
    Stop {
        /// Why: `SIGTERM`, say.
        reason: &'static str,
    },
    /// No more commands will arrive.
    Drained,
    /// The daemon ends: the last input.
    Ended,
}

/// The containers that an observation covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All of the leaf.
    All,
    /// Only these.
    Only(BTreeSet<ContainerName>),
}

impl Scope {
    /// Returns whether the observation covers this container.
    #[must_use]
    pub fn contains(&self, name: &ContainerName) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }
}

/// When and under which conditions an input is handled: clocks, ids and the state of the disk, as values.
#[derive(Debug, Clone)]
pub struct At {
    /// The leaf's clock.
    pub time: Timestamp,
    /// The monotonic clock.
    pub moment: Moment,
    /// Ids that nothing else has.
    pub ids: FreshIds,
    /// What the journal and its disk say.
    pub conditions: Conditions,
}

/// Ids that nothing else has, made from one version 7 UUID.
#[derive(Debug, Clone)]
pub struct FreshIds(Uuid);

impl FreshIds {
    /// Returns the ids that follow this version 7 UUID, itself the first of them.
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

/// What the journal and its disk say when an input is handled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Since when the journal's disk is full; nothing if it takes what it is given.
    pub full_since: Option<Timestamp>,
    /// How much waits for the journal's disk, in bytes.
    pub queued_bytes: u64,
    /// The free space of the journal's disk, in bytes, or why it is unknown.
    pub free_bytes: FreeSpace,
    /// The last sequence number that is durable.
    pub durable_sequence: u64,
    /// How many of the engine's [records](super::Record) are durable, so that their effects were released.
    pub committed: u64,
}

/// The free space of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FreeSpace {
    /// This many bytes.
    Bytes(u64),
    /// It could not be read; the text says why.
    Unknown(String),
}

impl Default for FreeSpace {
    fn default() -> Self {
        Self::Bytes(u64::MAX)
    }
}

/// Names a request for as long as it waits for its answer. The shell knows where the answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A command as it arrived.
#[derive(Debug, Clone)]
pub struct Request {
    /// Names it until it is answered.
    pub id: RequestId,
    /// The caller that sent it.
    pub caller: Caller,
    /// The id that its sender gave it.
    pub command_id: Option<CommandId>,
    /// The sender's own mark, carried along into every event that follows.
    pub correlation: Option<String>,
    /// The command, or why its body can't be read.
    pub command: Result<Command, Problem>,
    /// Whether a command with this id was accepted from this caller before. It counts only where
    /// [`Request::is_repeatable`] says so.
    pub seen: Seen,
}

impl Request {
    /// Returns the caller and id under which an earlier acceptance of this command is to be looked up: it changes
    /// something, and its sender gave it an id.
    #[must_use]
    pub fn is_repeatable(&self) -> Option<(&Caller, &CommandId)> {
        let changes = |command: &Command| command.kind() != CommandKind::Query;
        let id = self.command_id.as_ref()?;
        self.command
            .as_ref()
            .is_ok_and(changes)
            .then_some((&self.caller, id))
    }
}

/// Whether a command with this id was accepted from this caller before, as the journal and what waits for it say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// It was not.
    No,
    /// It was, and this is its record.
    Before(Box<CommandRecord>),
    /// The journal can't be read just now.
    Unreadable,
}
