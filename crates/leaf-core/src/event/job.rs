//! What happened to jobs.

use super::declare::facts;
use crate::id::{Caller, JobId};
use crate::job::{JobFailureCause, JobResult, Task};

facts! {
    JobFact of "job";

    /// A job was accepted.
    Queued: JobQueued = "queued" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// Who asked for it.
        owner: Caller,
        /// What it does.
        task: Task,
    }

    /// A job started.
    Started: JobStarted = "started" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
    }

    /// A job succeeded.
    Succeeded: JobSucceeded = "succeeded" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// Its result.
        result: JobResult,
    }

    /// A job failed.
    Failed: JobFailed = "failed" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// What kind of failure it is.
        cause: JobFailureCause,
        /// Why, in one or a few lines; its log has all.
        error: String,
    }

    /// A job was cancelled.
    Cancelled: JobCancelled = "cancelled" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// Who cancelled it.
        by: Caller,
    }

    /// A job was interrupted: nobody observed how it ended.
    Interrupted: JobInterrupted = "interrupted" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// What is known of it.
        reason: String,
    }
}
