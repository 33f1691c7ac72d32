//! The state and its history. Only here does a fact become an event.

use jiff::Timestamp;

use crate::cause::Cause;
use crate::event::{Event, EventRecord, Fact, LeafFact};
use crate::id::{JobId, LeafName};
use crate::state::{self, SNAPSHOT_KEY, State};

use super::output::Batch;

/// The assumed size of an event recorded by an earlier instance, in bytes.
pub const EARLIER_EVENT_BYTES: u64 = 1024;

/// The size of one part of a snapshot, in bytes: well below the server's limit for a message (1 MiB).
const SNAPSHOT_PART_BYTES: usize = 256 * 1024;

/// The frequency of snapshots in the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshots {
    /// After this many events.
    pub every_events: u64,
    /// After this many bytes of events, whichever comes first.
    pub every_bytes: u64,
}

/// The state of a leaf, and what its history needs to continue.
#[derive(Debug, Clone)]
pub struct History {
    leaf: LeafName,
    epoch: u64,
    state: State,
    snapshots: Snapshots,
    bytes_since_snapshot: u64,
}

/// Events that are not in a batch yet.
#[derive(Debug, Default)]
pub struct Draft {
    events: Vec<EventRecord>,
    /// The keys of the changed entries, some more than once.
    changed: Vec<String>,
    bytes: u64,
}

impl History {
    /// Returns the history that continues from this state.
    #[must_use]
    pub fn new(leaf: LeafName, epoch: u64, state: State, snapshots: Snapshots) -> Self {
        let bytes_since_snapshot =
            state.sequence.saturating_sub(state.snapshot_sequence) * EARLIER_EVENT_BYTES;
        Self {
            leaf,
            epoch,
            state,
            snapshots,
            bytes_since_snapshot,
        }
    }

    /// Returns the state, including changes that are not durable yet.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Returns the leaf's name.
    #[must_use]
    pub fn leaf(&self) -> &LeafName {
        &self.leaf
    }

    /// Returns when the history began, in milliseconds since 1970.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Adds a fact to the state, and its event to the draft. Returns the jobs that the state forgot to make room.
    pub fn record(&mut self, draft: &mut Draft, time: Timestamp, cause: &Cause, fact: Fact) -> Vec<JobId> {
        let event = Event {
            sequence: self.state.sequence + 1,
            time,
            causation: cause.command.clone(),
            correlation: cause.correlation.clone(),
            fact,
        };
        let jobs = self.state.jobs.len();
        let mut keys = state::apply(&mut self.state, &event);
        let forgotten = if self.state.jobs.len() < jobs {
            let is_gone = |id: &JobId| !self.state.jobs.contains_key(id);
            let ids = keys
                .iter()
                .filter_map(|key| key.strip_prefix("job.")?.parse().ok());
            ids.filter(is_gone).collect()
        } else {
            Vec::new()
        };
        // A snapshot changes only the entry with its own position.
        if matches!(event.fact, Fact::Leaf(LeafFact::Snapshotted(_))) {
            keys.retain(|key| key == SNAPSHOT_KEY);
        }
        draft.changed.extend(keys);
        let record = event.to_record(&self.leaf, self.epoch);
        let bytes = record.wire_bytes() as u64;
        draft.bytes += bytes;
        self.bytes_since_snapshot += bytes;
        draft.events.push(record);
        forgotten
    }

    /// Adds a snapshot of the state to the draft.
    pub fn snapshot(&mut self, draft: &mut Draft, time: Timestamp) {
        for part in self.state.snapshot(&self.leaf, self.epoch, SNAPSHOT_PART_BYTES) {
            self.record(draft, time, &Cause::default(), Fact::from(part));
        }
        self.bytes_since_snapshot = 0;
    }

    /// Returns the batch of a draft, with a snapshot if one is due, and the size of its events in bytes.
    pub fn finish(&mut self, mut draft: Draft, time: Timestamp) -> (Batch, u64) {
        let events_since_snapshot = self.state.sequence.saturating_sub(self.state.snapshot_sequence);
        let is_due = events_since_snapshot >= self.snapshots.every_events
            || self.bytes_since_snapshot >= self.snapshots.every_bytes;
        if is_due && !draft.events.is_empty() {
            self.snapshot(&mut draft, time);
        }
        draft.changed.sort_unstable();
        draft.changed.dedup();
        let entries = draft.changed.into_iter().map(|key| {
            let json = self.state.entry_json(&key);
            (key, json)
        });
        let batch = Batch {
            entries: entries.collect(),
            events: draft.events,
            commands: Vec::new(),
        };
        (batch, draft.bytes)
    }
}
