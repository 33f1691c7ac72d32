//! What the agent has heard of works, for all tasks. [`crate::works`] answers with it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leaf_core::fleet::referee::{FirstJob, Referee};
use leaf_core::fleet::work::WorkTakenOver;
use leaf_core::id::{LeafName, WorkId};
use tokio::sync::watch;

/// What the agent knows of works. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Works {
    pub(crate) kept: watch::Sender<Kept>,
}

#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) referee: Referee,
    /// How often the jobs of a leaf have changed in the copy of its state.
    pub(crate) changes: BTreeMap<LeafName, u64>,
    /// The first attempts of works at a leaf, and after how many changes they were read.
    pub(crate) jobs: BTreeMap<LeafName, (u64, BTreeMap<WorkId, FirstJob>)>,
    /// The fact that a work of a leaf was taken over, if it was.
    pub(crate) recorded: BTreeMap<(LeafName, WorkId), Option<WorkTakenOver>>,
    /// Those facts that are being stored, or may be.
    pub(crate) deciding: BTreeMap<(LeafName, WorkId), WorkTakenOver>,
    /// The leaves whose reports are being answered.
    pub(crate) busy: BTreeSet<LeafName>,
}

impl Works {
    /// Notes that the agent listens.
    pub(crate) fn look(&self, now: Duration) {
        self.change(|kept| kept.referee.look(now));
    }

    /// Notes that reports may have been missed.
    pub(crate) fn missed(&self, now: Duration) {
        self.change(|kept| kept.referee.missed(now));
    }

    /// Notes that entries of a leaf's state have changed in its copy.
    pub(crate) fn changed<'a>(&self, leaf: &LeafName, mut keys: impl Iterator<Item = &'a str>) {
        if keys.any(|key| key.starts_with("job.")) {
            self.change(|kept| *kept.changes.entry(leaf.clone()).or_default() += 1);
        }
    }

    /// Notes a report of the holder of a leaf's name, and returns the turn to answer it; `None` as long as the one before is being answered.
    pub(crate) fn heard(&self, leaf: &LeafName, now: Duration) -> Option<Answering> {
        let is_free = self.change(|kept| {
            kept.referee.heard(leaf, now);
            kept.busy.insert(leaf.clone())
        });
        is_free.then(|| Answering {
            works: self.clone(),
            leaf: leaf.clone(),
        })
    }

    /// Changes what is known, and returns what that gives.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        let mut result = None;
        self.kept.send_modify(|kept| result = Some(change(kept)));
        result.expect("it was called")
    }
}

/// The turn to answer a report of a leaf, which ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Answering {
    works: Works,
    pub(crate) leaf: LeafName,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.works.change(|kept| kept.busy.remove(&self.leaf));
    }
}
