//! Commits the engine's records to the journal, and holds back their effects until then.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use futures::FutureExt as _;
use leaf_core::command::CommandRecord;
use leaf_core::engine::{Effect, Record, Seen};
use leaf_core::error::chain;
use leaf_core::id::{Caller, CommandId};
use leaf_core::state::SNAPSHOT_KEY;
use leaf_journal::{Batch, CommitError, Journal, Receipt};

/// Commits records in order, and releases the effects of each once it is durable.
pub struct Commits {
    journal: Journal,
    pending: VecDeque<Pending>,
    committed: u64,
    changed: BTreeMap<String, Option<Bytes>>,
}

/// A record that waits for its commit.
struct Pending {
    /// `None` for a record without a batch, which only waits for earlier records.
    receipt: Option<Receipt>,
    commands: Vec<CommandRecord>,
    entries: Vec<(String, Option<Bytes>)>,
    effects: Vec<Effect>,
}

impl Commits {
    /// Returns the queue of commits to this journal.
    #[must_use]
    pub fn new(journal: Journal) -> Self {
        Self {
            journal,
            pending: VecDeque::new(),
            committed: 0,
            changed: BTreeMap::new(),
        }
    }

    /// Queues a record for the journal. Returns its effects if they need not wait; otherwise [`Self::committed`]
    /// returns them.
    pub fn push(&mut self, record: Record) -> Vec<Effect> {
        let Record { batch, effects } = record;
        if batch.is_empty() {
            if self.pending.is_empty() {
                self.committed += 1;
                return effects;
            }
            self.pending.push_back(Pending {
                receipt: None,
                commands: Vec::new(),
                entries: Vec::new(),
                effects,
            });
            return Vec::new();
        }
        let entries: Vec<(String, Option<Bytes>)> = batch
            .entries
            .into_iter()
            .map(|(key, json)| (key, json.map(Bytes::from)))
            .collect();
        let commands = batch.commands.clone();
        let receipt = self.journal.commit(Batch {
            events: batch.events,
            entries: entries.clone(),
            commands: batch.commands,
        });
        self.pending.push_back(Pending {
            receipt: Some(receipt),
            commands,
            entries,
            effects,
        });
        Vec::new()
    }

    /// Waits until the oldest record is durable, and returns its effects, with those of later records that are durable
    /// by then or need not wait. Cancel-safe.
    ///
    /// # Errors
    /// [`CommitError`] when the journal can't commit any more; the daemon must exit.
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
            self.committed += 1;
            // Watchers of the state have no use for the position of the newest snapshot.
            let entries = done.entries.into_iter().filter(|(key, _)| key != SNAPSHOT_KEY);
            self.changed.extend(entries);
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

    /// Returns how many records are durable.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.committed
    }

    /// Returns whether a record waits for its commit.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Looks up an accepted command, including one that is not durable yet.
    #[must_use]
    pub fn seen(&self, caller: &Caller, id: &CommandId) -> Seen {
        let is_same = |record: &&CommandRecord| record.caller == *caller && record.id == *id;
        let pending = self.pending.iter().rev();
        let mut commands = pending.flat_map(|pending| pending.commands.iter().rev());
        if let Some(record) = commands.find(is_same) {
            return Seen::Before(Box::new(record.clone()));
        }
        match self.journal.command(caller, id) {
            Ok(None) => Seen::No,
            Ok(Some(record)) => Seen::Before(Box::new(record)),
            Err(error) => {
                tracing::warn!(error = chain(&error), "can't read the journal at the moment");
                Seen::Unreadable
            }
        }
    }

    /// Takes the state's entries, as JSON, whose changes became durable since the last call. They are for watchers of
    /// the state.
    pub fn take_changed(&mut self) -> BTreeMap<String, Option<Bytes>> {
        std::mem::take(&mut self.changed)
    }

    /// Returns whether [`Self::take_changed`] would return any entry.
    #[must_use]
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }
}
