//! What happened to jobs.

use super::declare::facts;
use crate::id::{Caller, JobId};
use crate::job::{JobFailureCause, JobResult, Task};

facts! {
    JobFact of "job";

    /// A job was accepted.
    Queued: JobQueued = "queued" v 1 about Job(id) {
        /// Its id.
        id: JobId,
        /// Who wants it.
        owner: Caller,
        /// What it does.
        task: Task,
    }

    /// A job runs.
    Started: JobStarted = "started" v 1 about Job(id) {
        /// Its id.
        id: JobId,
    }

    /// A job is done.
    Succeeded: JobSucceeded = "succeeded" v 1 about Job(id) {
        /// Its id.
        id: JobId,
        /// What it made.
        result: JobResult,
    }

    /// A job did not work.
    Failed: JobFailed = "failed" v 1 about Job(id) {
        /// Its id.
        id: JobId,
        /// What kind of failure it is.
        cause: JobFailureCause,
        /// Why, in one or a few lines; its log has all.
        error: String,
    }

    /// A job was ended because somebody asked for it.
    Cancelled: JobCancelled = "cancelled" v 1 about Job(id) {
        /// Its id.
        id: JobId,
        /// Who asked.
        by: Caller,
    }

    /// A job ended unseen.
    Interrupted: JobInterrupted = "interrupted" v 1 about Job(id) {
        /// Its id.
        id: JobId,
        /// What is known of it.
        reason: String,
    }
}
