//! Commands about jobs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::id::JobId;
use crate::job::{Job, Progress};

commands! {
    "job";

    /// Lists the jobs that the leaf remembers, the newest first.
    List: ListJobs = "list" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {} -> JobList

    /// Shows one job and, while it runs, how far it is.
    Show: ShowJob = "show" {
        kind: Query, about: Job(id), needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        id: JobId,
    } -> JobReport

    /// Reads a part of a job's log, also while it runs.
    Log: ReadJobLog = "log" {
        kind: Query, about: Job(id), needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        id: JobId,
        /// From this byte on.
        #[serde(default)]
        offset: u64,
    } -> LogChunk

    /// Ends a job, and answers when nothing of it is left.
    Cancel: CancelJob = "cancel" {
        kind: Change, about: Job(id), needs: Nothing, disk: Takes,
        if_generation: Ignored, success: JobEnded, while_stuck: Refused,
    } {
        /// Which one.
        id: JobId,
    } -> Job
}

/// A part of a job's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogChunk {
    /// The text. What is not UTF-8 is replaced.
    pub text: String,
    /// Where to read on.
    pub next_offset: u64,
    /// Whether this is all, and nothing more will come.
    pub complete: bool,
}

/// The jobs of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobList {
    /// Those that are remembered, the newest first; what a result refers to is left out here.
    pub jobs: Vec<Job>,
}

/// One job and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobReport {
    /// The job.
    pub job: Job,
    /// How far it is, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}
