//! Jobs: durable long-running work that is acknowledged with an id, followed, cancelled, and ends in an event.
//!
//! There are two kinds. A *process job* is one program, run as the user `leaf-job`: builds are, and evaluations, runs,
//! shells and uploads will be. A *saga* is made of steps of leafd and the helper with a durable position; migrations and
//! system switches will be sagas, and none exists yet (decision 14).
//!
//! Each task has a module with its arguments and its result, such as [`build`], a variant of [`Task`] and one of
//! [`JobResult`].

pub mod build;
pub mod installable;
pub mod outcome;
pub mod process;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::id::{Caller, JobId};

pub use build::{BuildResult, BuildTask};
pub use installable::Installable;
pub use outcome::{JobFailureCause, JobOutcome};

/// One job, as it stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// Its id; ids sort by the time of creation.
    pub id: JobId,
    /// Who asked for it.
    pub owner: Caller,
    /// What it does.
    pub task: Task,
    /// Where it stands.
    pub phase: JobPhase,
    /// Where it comes from.
    #[serde(default)]
    pub cause: Cause,
    /// When it was accepted.
    pub queued_at: Timestamp,
    /// When it began to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// What it made, if it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<JobResult>,
    /// What kind of failure it is, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<JobFailureCause>,
    /// Why it failed, was cancelled or was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What a job does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Task {
    /// `nix build`.
    Build(BuildTask),
}

/// Where a job stands. The last four are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobPhase {
    /// Stored, and waiting for its turn.
    Queued,
    /// Running.
    Running,
    /// Done.
    Succeeded,
    /// It did not work.
    Failed,
    /// Ended because somebody asked for it.
    Cancelled,
    /// Ended by a crash of the host or of its runner: nobody knows how far it came.
    Interrupted,
}

impl JobPhase {
    /// Whether the job has ended.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Interrupted
        )
    }
}

/// What a job made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum JobResult {
    /// What a build made.
    Build(BuildResult),
}

impl JobResult {
    /// What a build made, if it was one.
    #[must_use]
    pub fn build(&self) -> Option<&BuildResult> {
        match self {
            Self::Build(result) => Some(result),
        }
    }
}

/// A job has ended: `job.show` says how, and an event says it for good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobEnded {}

/// The `ce-type` of a running job's [`Progress`].
pub const PROGRESS_TYPE: &str = "cim.leaf.job.progress.v1";
/// The `ce-type` of a piece of what a running job prints: plain text.
pub const LOG_TYPE: &str = "cim.leaf.job.log.v1";
/// The `ce-type` of [`JobEnded`].
pub const ENDED_TYPE: &str = "cim.leaf.job.ended.v1";

/// How far a running job is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Units of work done (derivations built and paths fetched).
    pub done: u64,
    /// Units of work expected so far; it may grow.
    pub expected: u64,
    /// Units under way.
    pub running: u64,
    /// Units failed.
    pub failed: u64,
    /// Bytes fetched.
    #[serde(default)]
    pub fetched_bytes: u64,
    /// Bytes expected to be fetched.
    #[serde(default)]
    pub fetch_expected_bytes: u64,
    /// What goes on just now, such as `building hello-2.12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<String>,
}
