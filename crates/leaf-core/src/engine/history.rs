//! The state and its history. Only here does a fact become an event.

use jiff::Timestamp;

use crate::cause::Cause;
use crate::event::{Event, EventRecord, Fact, LeafFact, shorten};
use crate::id::{JobId, LeafName};
use crate::state::{self, SHARES, SNAPSHOT_KEY, State};

use super::output::Batch;

/// The assumed size of an event recorded by an earlier instance, in bytes.
pub const EARLIER_EVENT_BYTES: u64 = 1024;

/// The largest message that a server accepts by default, in bytes.
const DEFAULT_MESSAGE_BYTES: usize = 1024 * 1024;

/// The bytes of a message that are not an event's own: the names of its headers' framing, the expected sequence number.
const MESSAGE_ROOM: usize = 512;

/// The bytes of a part of a snapshot that are not entries: the event's headers, the leaf, the epoch and the numbers.
const PART_ROOM: usize = 1024;

/// The size of one part of a snapshot, in bytes, if the server accepts as much. A server with a limit of 64 KiB, which is
/// usual, accepts it also if the limit was not known yet.
const SNAPSHOT_PART_BYTES: usize = 48 * 1024;

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
    max_event_bytes: usize,
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
            max_event_bytes: DEFAULT_MESSAGE_BYTES - MESSAGE_ROOM,
        }
    }

    /// Sets the largest message that the NATS server accepts, in bytes. Events recorded from now on fit into it if they can
    /// be shortened.
    pub fn fit_into(&mut self, max_message_bytes: usize) {
        self.max_event_bytes = max_message_bytes.saturating_sub(MESSAGE_ROOM);
    }

    /// Returns the size that an event may have, in bytes.
    #[must_use]
    pub fn max_event_bytes(&self) -> usize {
        self.max_event_bytes
    }

    /// Returns the size of the event of a fact, in bytes, if it were the next one.
    pub(super) fn size_of(&self, time: Timestamp, cause: &Cause, fact: &Fact) -> usize {
        let event = self.next_event(time, cause, fact.clone());
        event.to_record(&self.leaf, self.epoch).wire_bytes()
    }

    fn next_event(&self, time: Timestamp, cause: &Cause, fact: Fact) -> Event {
        Event {
            sequence: self.state.sequence + 1,
            time,
            causation: cause.command.clone(),
            correlation: cause.correlation.clone(),
            fact,
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
        let mut event = self.next_event(time, cause, fact);
        let mut record = event.to_record(&self.leaf, self.epoch);
        for share in SHARES {
            if record.wire_bytes() <= self.max_event_bytes {
                break;
            }
            shorten(&mut event.fact, self.max_event_bytes / share);
            record = event.to_record(&self.leaf, self.epoch);
        }
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
        let bytes = record.wire_bytes() as u64;
        draft.bytes += bytes;
        self.bytes_since_snapshot += bytes;
        draft.events.push(record);
        forgotten
    }

    /// Adds a snapshot of the state to the draft. Before it, entries that would not fit into a message are made smaller.
    pub fn snapshot(&mut self, draft: &mut Draft, time: Timestamp) {
        let room = self.max_event_bytes.saturating_sub(PART_ROOM);
        let fitted = self.state.fit_entries(room);
        let parts = self
            .state
            .snapshot(&self.leaf, self.epoch, SNAPSHOT_PART_BYTES.min(room));
        for part in parts {
            self.record(draft, time, &Cause::default(), Fact::from(part));
        }
        draft.changed.extend(fitted);
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
