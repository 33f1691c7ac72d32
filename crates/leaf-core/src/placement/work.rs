//! A work: a build that was sent to two leaves, of which the second takes it over if the first is gone. `docs/protocol/placement.md`,
//! part 4, is the contract; [`crate::fleet::work`] has what leaves and the hub agent say about works, and
//! [`crate::fleet::referee`] the agent's decision.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{LeafName, WorkId};

/// A work, as the command that begins it has it: the same for both leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Work {
    /// Its id.
    pub id: WorkId,
    /// The leaf that builds.
    pub first: LeafName,
    /// The leaf that takes the build over if the first is gone.
    pub second: LeafName,
}

impl Work {
    /// Returns the place of a leaf in it, if it has one.
    #[must_use]
    pub fn place_of(&self, leaf: &LeafName) -> Option<WorkPlace> {
        match leaf {
            _ if self.first == self.second => None,
            leaf if *leaf == self.first => Some(WorkPlace::First),
            leaf if *leaf == self.second => Some(WorkPlace::Second),
            _ => None,
        }
    }
}

/// The place of a leaf in a work, which is the epoch of its attempt: the outcome of the second counts once it has taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkPlace {
    /// It builds.
    First,
    /// It stands by.
    Second,
}

/// The part of a job in a work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobWork {
    /// The work's id.
    pub id: WorkId,
    /// The leaf that builds.
    pub first: LeafName,
    /// The leaf that takes the build over if the first is gone.
    pub second: LeafName,
    /// The place of this leaf.
    pub place: WorkPlace,
    /// When this leaf, the second one, took the build over: from then on only this job counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_over_at: Option<Timestamp>,
    /// When this leaf, the first one, learnt that the second one has taken the build over: this job does not count any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superseded_at: Option<Timestamp>,
}

impl JobWork {
    /// Returns the part of a new job.
    #[must_use]
    pub fn new(work: &Work, place: WorkPlace) -> Self {
        Self {
            id: work.id,
            first: work.first.clone(),
            second: work.second.clone(),
            place,
            taken_over_at: None,
            superseded_at: None,
        }
    }

    /// Returns the other leaf of the work.
    #[must_use]
    pub fn other(&self) -> &LeafName {
        match self.place {
            WorkPlace::First => &self.second,
            WorkPlace::Second => &self.first,
        }
    }
}

/// Returns which of a work's jobs counts, as far as they are known: that of the second leaf once it has taken over.
#[must_use]
pub fn counts(of_jobs: &[&JobWork]) -> WorkPlace {
    let is_taken_over = |work: &&JobWork| work.taken_over_at.is_some() || work.superseded_at.is_some();
    if of_jobs.iter().any(is_taken_over) {
        WorkPlace::Second
    } else {
        WorkPlace::First
    }
}
