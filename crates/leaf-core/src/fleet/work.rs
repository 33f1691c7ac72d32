//! What leaves and the hub agent say to each other about works ([`crate::placement::work`]). `docs/protocol/placement.md`, part 4, is
//! the contract, and [`super::referee`] the agent's decision.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Caller, InstanceId, JobId, LeafName, WorkId};
use crate::placement::work::WorkPlace;

/// The period in which a leaf tells the agent about its works, in seconds.
pub const TELL_SECONDS: u64 = 3;

/// The maximum number of works in a report: the others come with a later one.
pub const MOST_TOLD: usize = 256;

/// A leaf's report on its works: a request to the agent on `leaf.v1.hub.<leaf>.work`, every 3 s as long as it has any. A leaf that sends
/// none is taken for gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkReport {
    /// The instance that sends it. Only that of the holder of the leaf's name counts.
    pub instance: InstanceId,
    /// Its works, at most 256.
    pub works: Vec<WorkTold>,
}

/// A work of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkTold {
    /// The leaf's job.
    pub job: JobId,
    /// The work's id.
    pub id: WorkId,
    /// The leaf's place in the work.
    pub place: WorkPlace,
    /// The other leaf.
    pub other: LeafName,
    /// The caller that requested the job.
    pub caller: Caller,
}

/// The agent's reply to a report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkReply {
    /// What the agent says about each work.
    pub answers: Vec<WorkAnswer>,
}

/// What the agent says about a work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkAnswer {
    /// The job of the leaf that asked.
    pub job: JobId,
    /// The answer.
    pub answer: WorkVerdict,
    /// The reason for `yours`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The answer about a work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorkVerdict {
    /// The first leaf has it.
    Held,
    /// The first leaf's job has ended, by the agent's copy of its state. To the second leaf also: another job than its own has taken the work over.
    Ended,
    /// To the second leaf: the first leaf is gone, and only this leaf's job counts from now on.
    Yours,
    /// To the first leaf: the second one has taken it over, and only that one's job counts.
    TakenOver,
    /// To the second leaf: the agent does not know the first leaf's job.
    Unknown,
    /// An answer of a newer agent.
    #[serde(other)]
    #[schemars(skip)]
    Other,
}

/// The body of the fact that a second leaf has taken over a work, in the hub's stream `FLEET`, as
/// `leaf.v1.fleet.<first leaf>.taken_over.<work>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkTakenOver {
    /// The work's id.
    pub id: WorkId,
    /// The leaf that is gone.
    pub first: LeafName,
    /// The leaf whose job counts.
    pub second: LeafName,
    /// The caller of both jobs.
    pub caller: Caller,
    /// The job that counts.
    pub job: JobId,
    /// Why the first leaf was taken for gone.
    pub why: String,
}
