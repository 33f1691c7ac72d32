//! Commands about jobs.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::id::JobId;
use crate::job::{Activities, Job, Progress};

commands! {
    "job";

    /// Lists the jobs that the leaf remembers, newest first.
    List: ListJobs = "list" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {} -> JobList

    /// Shows one job, with its progress while it runs.
    Show: ShowJob = "show" {
        kind: Query, about: Job(id), needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The job's id.
        id: JobId,
    } -> JobReport

    /// Shows what a running job of Nix is doing: its builds and transfers.
    Activities: ShowActivities = "activities" {
        kind: Query, about: Job(id), needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The job's id.
        id: JobId,
    } -> JobActivities

    /// Reads a page of a job's log, also while it runs.
    Log: ReadJobLog = "log" {
        kind: Query, about: Job(id), needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The job's id.
        id: JobId,
        /// The page's offset in the log, in bytes.
        #[serde(default)]
        offset: u64,
    } -> LogChunk

    /// Takes over the session of a job's program for another client of the job's owner: only its key attaches from now on.
    Take: TakeSession = "take" {
        kind: Change, about: Job(id), needs: Nothing, disk: Takes, power: RunsCode,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The job's id.
        id: JobId,
        /// The client's Ed25519 public key, made for this: 32 bytes in base64.
        key: String,
    } -> SessionTaken

    /// Cancels a job. Answered when its processes have ended.
    Cancel: CancelJob = "cancel" {
        kind: Change, about: Job(id), needs: Nothing, disk: Takes, power: Changes,
        if_generation: Ignored, success: JobEnded, while_stuck: Refused,
    } {
        /// The job's id.
        id: JobId,
    } -> Job
}

/// A session that was taken over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SessionTaken {
    /// The job's id.
    pub id: JobId,
    /// Whether its program has a terminal.
    pub terminal: bool,
}

/// A page of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogChunk {
    /// The text. Invalid UTF-8 is replaced.
    pub text: String,
    /// The offset of the next page, in bytes.
    pub next_offset: u64,
    /// Whether the log is complete and ends with this page.
    pub complete: bool,
}

/// The jobs of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobList {
    /// The remembered jobs, newest first, without the references of their results.
    pub jobs: Vec<Job>,
}

/// The activities of a running job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobActivities {
    /// The leaf's time, by which the times in it can be read.
    pub now: Timestamp,
    /// The builds and transfers of the job; absent if it has not begun, has ended, or runs no Nix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activities: Option<Activities>,
}

/// A job and its progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobReport {
    /// The job.
    pub job: Job,
    /// Its progress, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}
