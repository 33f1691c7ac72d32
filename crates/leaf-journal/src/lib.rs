//! The leaf's durable file: `journal.redb` in its state directory.
//!
//! Start at [`Journal::open`] and [`Journal::commit`]. The journal holds the events that the stream may not have on its
//! disk yet, the state by key, and the accepted commands with their outcomes. A [`Batch`] is atomic: when its
//! [`Receipt`] resolves, all of it is durable, or none. A separate thread writes; the batches that are queued while it
//! waits for the disk share the next fsync.
//!
//! The journal does not interpret events, does not publish, and decides nothing; `leafd` does.

mod change;
mod encode;
mod error;
mod file;
mod journal;
mod lock;
mod recent;
mod writer;

pub use encode::FORMAT;
pub use error::{CommitError, OpenError, ReadError};
pub use file::StoreError;
pub use journal::{FILE, Journal, Opened, Options, Receipt};
pub use lock::{Holder, LockError, holder_of};

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;
use leaf_core::command::CommandRecord;
use leaf_core::event::EventRecord;
use serde_json::Value;

/// What one commit makes durable: all of it or none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// New events, whose sequence numbers continue the journal's.
    pub events: Vec<EventRecord>,
    /// Changed entries of the state, by key, as JSON; `None` removes an entry. The last value of a key is used.
    pub entries: Vec<(String, Option<Bytes>)>,
    /// Commands that were accepted or now have an outcome. A record with the same caller and id is replaced.
    pub commands: Vec<CommandRecord>,
}

/// What a journal imports from the stream if it is empty or the stream is ahead of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Import {
    /// The epoch of the stream's history.
    pub epoch: u64,
    /// The stream's last sequence number.
    pub last_sequence: u64,
    /// The newest events, without a gap up to the last; empty if the stream has them on its disk.
    pub events: Vec<EventRecord>,
    /// All entries of the state after the last event.
    pub entries: BTreeMap<String, Value>,
}

/// The part of a history that the journal holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// When the history began; see [`LeafSnapshotted`](leaf_core::event::LeafSnapshotted).
    pub epoch: u64,
    /// The oldest event still held; one more than the last if none is.
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

/// The health of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JournalHealth {
    /// It commits batches.
    Ok,
    /// The disk is full: queued batches wait in memory, and are committed when there is room.
    DiskFull {
        /// When the disk became full.
        since: Timestamp,
    },
    /// It commits nothing more; the program must end.
    Failed {
        /// The reason.
        reason: String,
    },
}
