//! What must not be lost: the leaf's one durable file, `journal.redb` in its state folder.
//!
//! Start at [`Journal::open`] and [`Journal::commit`]. The journal holds the events that the stream may not have on
//! its disk yet, the state by key, and the accepted commands with their outcomes. One [`Batch`] is one step: all of
//! it is durable when its [`Receipt`] resolves, or none of it is. A thread of its own writes; whatever is queued
//! while it waits for the disk shares the next fsync.
//!
//! It does not know what an event means, does not publish, and decides nothing: `leafd` does.

mod change;
mod encode;
mod file;
mod journal;
mod lock;
mod recent;
mod writer;

pub use file::StoreError;
pub use journal::{CommitError, FILE, Journal, OpenError, Opened, Options, ReadError, Receipt};
pub use lock::{Holder, LockError, holder_of};

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use leaf_core::event::EventRecord;
use leaf_core::id::{Caller, CommandId};
use serde_json::Value;

/// What one step of the leaf makes durable: all of it or none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// New events, whose sequence numbers go on where the journal ends.
    pub events: Vec<EventRecord>,
    /// Entries of the state that changed, by key, as JSON; `None` removes one. The last of a key counts.
    pub entries: Vec<(String, Option<Bytes>)>,
    /// Commands that were accepted, or have an outcome now. One with the same caller and id is replaced.
    pub commands: Vec<CommandRecord>,
}

/// A command that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRecord {
    /// Who sent it.
    pub caller: Caller,
    /// Its id, chosen by its sender.
    pub id: CommandId,
    /// What it is: `container.start`.
    pub noun_verb: String,
    /// What tells it from another command under the same id.
    pub fingerprint: String,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// The entry of the state that its outcome waits for: `container.web`.
    pub target: Option<String>,
    /// The reply, once there is one.
    pub outcome: Option<Outcome>,
}

/// The reply to a command, to be given again to whoever sends it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The reply's body.
    pub body: Vec<u8>,
    /// Whether it is a problem (RFC 9457).
    pub problem: bool,
}

/// What an empty journal takes over from the stream, or one that the stream is ahead of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Import {
    /// The epoch of the stream's history.
    pub epoch: u64,
    /// The stream's last sequence number.
    pub last_sequence: u64,
    /// The newest events, without a gap up to the last; none where the stream surely has them on its disk.
    pub events: Vec<EventRecord>,
    /// The state after the last event: all of its entries.
    pub entries: BTreeMap<String, Value>,
}

/// Which part of which history the journal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// When the history began; see [`LeafSnapshotted`](leaf_core::event::LeafSnapshotted).
    pub epoch: u64,
    /// The oldest event still held; one more than the last where none is.
    pub first_sequence: u64,
    /// The last durable event; 0 before the first.
    pub last_sequence: u64,
}

impl From<&encode::Head> for Held {
    fn from(head: &encode::Head) -> Self {
        Self {
            epoch: head.epoch,
            first_sequence: head.first_sequence,
            last_sequence: head.last_sequence,
        }
    }
}

/// How the journal is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalHealth {
    /// It takes what it is given.
    Ok,
    /// There is no room: what is queued waits in memory, and goes on by itself once there is room.
    DiskFull {
        /// Since when.
        since: Timestamp,
    },
    /// It takes nothing more; the program has to end.
    Failed {
        /// Why.
        reason: String,
    },
}
