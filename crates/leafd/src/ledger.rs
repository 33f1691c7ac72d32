//! The state and its journal: the one place where a fact becomes an event.
//!
//! Memory may run ahead of the commit; what follows from a fact may not. So every record carries [`Effect`]s, which
//! come out of [`Ledger::committed`] in the order of the records, once the disk has them. A reply that follows from
//! no new fact waits for the records before it, too: it may tell of them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use futures::FutureExt as _;
use jiff::Timestamp;
use leaf_core::cause::Cause;
use leaf_core::event::{Event, EventRecord, Fact, LeafFact};
use leaf_core::id::{Caller, CommandId, LeafName};
use leaf_core::state::{self, SNAPSHOT_KEY, State};
use leaf_journal::{Batch, CommandRecord, CommitError, Journal, JournalHealth, ReadError, Receipt};

/// The state of a leaf, its journal, and what waits for a commit.
pub struct Ledger<Effect> {
    leaf: LeafName,
    epoch: u64,
    state: State,
    journal: Journal,
    pending: VecDeque<Pending<Effect>>,
    snapshots: Snapshots,
    bytes_since_snapshot: u64,
    changed: BTreeMap<String, Option<Bytes>>,
}

/// What waits for a commit.
struct Pending<Effect> {
    /// Nothing for effects that only wait for the records before them.
    receipt: Option<Receipt>,
    commands: Vec<CommandRecord>,
    entries: Vec<(String, Option<Bytes>)>,
    effects: Vec<Effect>,
}

/// How often a snapshot stands in the history.
#[derive(Debug, Clone, Copy)]
pub struct Snapshots {
    /// After this many events.
    pub every_events: u64,
    /// After this many bytes of events, whichever comes first.
    pub every_bytes: u64,
}

/// What is assumed of an event that was recorded before this run, in bytes.
pub const EARLIER_EVENT_BYTES: u64 = 1024;

/// The size of one part of a snapshot, in bytes: well below the server's limit for a message (1 MiB).
const SNAPSHOT_PART_BYTES: usize = 256 * 1024;

impl<Effect> Ledger<Effect> {
    /// Returns the ledger that goes on from this state.
    pub fn new(leaf: LeafName, epoch: u64, state: State, journal: Journal, snapshots: Snapshots) -> Self {
        let bytes_since_snapshot =
            state.sequence.saturating_sub(state.snapshot_sequence) * EARLIER_EVENT_BYTES;
        Self {
            leaf,
            epoch,
            state,
            journal,
            pending: VecDeque::new(),
            bytes_since_snapshot,
            snapshots,
            changed: BTreeMap::new(),
        }
    }

    /// The state, with all that was recorded; the disk may lack the last of it.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The leaf.
    pub fn leaf(&self) -> &LeafName {
        &self.leaf
    }

    /// When the history began, in milliseconds since 1970.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Adds facts to the state and queues them for the journal, with the commands that were accepted or are done.
    /// All of it is durable before one of the effects comes out of [`Self::committed`]. Returns
    /// how much there is to publish for it, in bytes.
    pub fn record(
        &mut self,
        now: Timestamp,
        cause: &Cause,
        facts: Vec<Fact>,
        commands: Vec<CommandRecord>,
        effects: Vec<Effect>,
    ) -> u64 {
        if facts.is_empty() && commands.is_empty() {
            self.after(effects);
            return 0;
        }
        let mut batch = Batch {
            events: Vec::with_capacity(facts.len()),
            entries: Vec::with_capacity(facts.len()),
            commands,
        };
        self.add(&mut batch, now, cause, facts);
        self.bytes_since_snapshot += bytes_of(&batch.events);
        let events_since_snapshot = self.state.sequence.saturating_sub(self.state.snapshot_sequence);
        if events_since_snapshot >= self.snapshots.every_events
            || self.bytes_since_snapshot >= self.snapshots.every_bytes
        {
            self.add_snapshot(&mut batch, now);
        }
        self.commit(batch, effects)
    }

    /// Queues a batch for the journal; returns how much there is to publish for it, in bytes.
    fn commit(&mut self, batch: Batch, effects: Vec<Effect>) -> u64 {
        let bytes = bytes_of(&batch.events);
        self.pending.push_back(Pending {
            commands: batch.commands.clone(),
            // Where the newest snapshot begins is of no interest to those who watch.
            entries: batch
                .entries
                .iter()
                .filter(|(key, _)| *key != SNAPSHOT_KEY)
                .cloned()
                .collect(),
            receipt: Some(self.journal.commit(batch)),
            effects,
        });
        bytes
    }

    /// Records a snapshot now; returns how much there is to publish for it, in bytes.
    pub fn snapshot(&mut self, now: Timestamp) -> u64 {
        let mut batch = Batch::default();
        self.add_snapshot(&mut batch, now);
        self.commit(batch, Vec::new())
    }

    fn add_snapshot(&mut self, batch: &mut Batch, now: Timestamp) {
        self.bytes_since_snapshot = 0;
        let parts = self.state.snapshot(&self.leaf, self.epoch, SNAPSHOT_PART_BYTES);
        self.add(
            batch,
            now,
            &Cause::default(),
            parts.into_iter().map(Fact::from).collect(),
        );
    }

    fn add(&mut self, batch: &mut Batch, now: Timestamp, cause: &Cause, facts: Vec<Fact>) {
        for fact in facts {
            let event = Event {
                sequence: self.state.sequence + 1,
                time: now,
                causation: cause.command.clone(),
                correlation: cause.correlation.clone(),
                fact,
            };
            let keys = state::apply(&mut self.state, &event);
            // Our own snapshot says what the state says already, but for its own place.
            let own_snapshot = matches!(event.fact, Fact::Leaf(LeafFact::Snapshotted(_)));
            for key in keys
                .into_iter()
                .filter(|key| !own_snapshot || key == SNAPSHOT_KEY)
            {
                let json = self.state.entry_json(&key).map(Bytes::from);
                batch.entries.push((key, json));
            }
            batch.events.push(event.to_record(&self.leaf, self.epoch));
        }
    }

    /// Queues effects that follow from no new fact behind all that is recorded.
    pub fn after(&mut self, effects: Vec<Effect>) {
        if !effects.is_empty() {
            let (commands, entries) = Default::default();
            self.pending.push_back(Pending {
                receipt: None,
                commands,
                entries,
                effects,
            });
        }
    }

    /// Finds an accepted command, also one that is not committed yet; what follows from the answer belongs behind
    /// [`Self::after`].
    ///
    /// # Errors
    /// [`ReadError`] when the journal can't be read just now.
    pub fn command(&self, caller: &Caller, id: &CommandId) -> Result<Option<CommandRecord>, ReadError> {
        let pending = self
            .pending
            .iter()
            .rev()
            .flat_map(|pending| pending.commands.iter().rev());
        match pending
            .into_iter()
            .find(|record| record.caller == *caller && record.id == *id)
        {
            Some(record) => Ok(Some(record.clone())),
            None => self.journal.command(caller, id),
        }
    }

    /// Whether what waits for a commit waits for disk space.
    pub fn is_stuck(&self) -> bool {
        self.has_pending() && matches!(*self.journal.health().borrow(), JournalHealth::DiskFull { .. })
    }

    /// Whether something waits for a commit.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Waits for the oldest record to be durable and returns what follows from it; later records that wait for
    /// nothing, or are durable by then, come along. May be dropped and called again.
    ///
    /// # Errors
    /// [`CommitError`] when the journal can't promise anything any more: the daemon ends.
    pub async fn committed(&mut self) -> Result<Vec<Effect>, CommitError> {
        if let Some(Pending {
            receipt: Some(receipt),
            ..
        }) = self.pending.front_mut()
        {
            receipt.await?;
        }
        let mut effects = Vec::new();
        while let Some(done) = self.pending.pop_front() {
            self.changed.extend(done.entries);
            effects.extend(done.effects);
            match self.pending.front_mut().map(|next| next.receipt.as_mut()) {
                Some(Some(receipt)) => match receipt.now_or_never() {
                    Some(committed) => committed?,
                    None => break,
                },
                Some(None) => {}
                None => break,
            }
        }
        Ok(effects)
    }

    /// Takes the entries of the state, as JSON, that changed in what was committed since the last call, for those who watch the
    /// state from outside.
    pub fn take_changed(&mut self) -> BTreeMap<String, Option<Bytes>> {
        std::mem::take(&mut self.changed)
    }

    /// Whether there is something to [take](Self::take_changed).
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }
}

/// What events take on the wire, about, in bytes.
fn bytes_of(events: &[EventRecord]) -> u64 {
    events.iter().map(|event| event.wire_bytes() as u64).sum()
}
