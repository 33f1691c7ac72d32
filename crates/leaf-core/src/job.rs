//! Jobs: long work that is stored, acknowledged with an id, followed, cancelled, and ends in an event.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::id::{Caller, ContainerName, JobId, StorePath};

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

/// What to build, and within what bounds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuildTask {
    /// What to build.
    pub installable: Installable,
    /// The time it may take, in seconds.
    pub timeout_seconds: u32,
    /// The container that waits for the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<ContainerName>,
}

/// Something that Nix can build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum Installable {
    /// A flake reference with an optional fragment, such as `github:owner/repo#package`.
    Flake {
        /// The reference.
        reference: String,
    },
    /// A store path or derivation that is to be realised.
    StorePath {
        /// The path; a derivation ends in `.drv`.
        path: StorePath,
    },
    /// A Nix file on the leaf, as `nix build -f FILE ATTRIBUTE` takes it.
    File {
        /// An absolute path on the leaf.
        path: String,
        /// The attribute to build; the whole file without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attribute: Option<String>,
    },
    /// A container template of this leaf, such as `minimal`.
    Template {
        /// The template's folder name.
        name: String,
    },
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

/// What kind of failure ended a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobFailureCause {
    /// What it did did not work.
    Failed,
    /// It took longer than it may.
    TimedOut,
}

/// What a build made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BuildResult {
    /// The store path of the first output.
    pub store_path: StorePath,
    /// All outputs by name; a plain store path has the one output `out`.
    pub outputs: BTreeMap<String, StorePath>,
    /// The derivation, if it was built from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub derivation: Option<StorePath>,
    /// Wall-clock time from start to result, in milliseconds.
    pub build_time_ms: u64,
    /// Size of the NARs of the whole closure, in bytes.
    pub closure_size_bytes: u64,
    /// What the first output refers to directly, itself left out, sorted.
    pub references: Vec<StorePath>,
    /// How many derivations were built; 0 means all was there.
    pub built: u32,
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
