//! Facts about jobs.

use super::declare::facts;
use crate::id::{Caller, JobId, LeafName};
use crate::job::{BuiltDerivation, Explanation, JobFailureCause, JobResult, Task};
use crate::placement::demand::Demand;
use crate::placement::work::Work;
use crate::provenance::envelope::Envelope;

facts! {
    JobFact of "job";

    /// A job was accepted.
    Queued: JobQueued = "queued" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// The caller that requested it.
        owner: Caller,
        /// The job's task.
        task: Task,
        /// What it takes of the leaf, and its place in the queue.
        #[serde(default, skip_serializing_if = "Demand::is_usual")]
        demand: Demand,
        /// The work whose first attempt it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        work: Option<Work>,
    }

    /// A build was accepted that another leaf carries out: this leaf takes it over if that one is gone.
    StoodBy: JobStoodBy = "stood_by" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// The caller that requested it.
        owner: Caller,
        /// The job's task.
        task: Task,
        /// The demand of the job once it runs: features of the leaf, and its priority in the queue.
        #[serde(default, skip_serializing_if = "Demand::is_usual")]
        demand: Demand,
        /// The work whose second attempt it may become.
        work: Work,
    }

    /// The first leaf of a job's work is gone, by the hub agent's word: this leaf queues the job, and only this one counts.
    TakenOver: JobTakenOver = "taken_over" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// Why the agent took the first leaf for gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    }

    /// The second leaf of a job's work has taken it over, since this leaf was taken for gone: this job does not count any more.
    Superseded: JobSuperseded = "superseded" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// The leaf whose job counts.
        by: LeafName,
    }

    /// A job started.
    Started: JobStarted = "started" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
    }

    /// A client of a person took over the session of a job's program.
    Taken: JobTaken = "taken" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// The caller, who is the job's owner.
        by: Caller,
        /// The client's key, which replaces the one before.
        key: String,
    }

    /// A job succeeded.
    Succeeded: JobSucceeded = "succeeded" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// Its result.
        result: JobResult,
    }

    /// The leaf has signed a statement about what a job built.
    Attested: JobAttested = "attested" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// The signed statement.
        envelope: Envelope,
    }

    /// A job failed.
    Failed: JobFailed = "failed" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// The kind of failure.
        cause: JobFailureCause,
        /// The error in one or a few lines; the log has the details.
        error: String,
        /// The derivations of a build with `keep_going` that were built or were there all the same.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        partial: Vec<BuiltDerivation>,
        /// Why it failed, as far as that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        explanation: Option<Explanation>,
    }

    /// A job was cancelled.
    Cancelled: JobCancelled = "cancelled" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// The caller that cancelled it.
        by: Caller,
        /// Why leafd cancelled it by itself, if it did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    }

    /// A job was interrupted: its end was not observed.
    Interrupted: JobInterrupted = "interrupted" v 1 about Job(id) {
        /// The job's id.
        id: JobId,
        /// What is known about its end.
        reason: String,
    }
}
