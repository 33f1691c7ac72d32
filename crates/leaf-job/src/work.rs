//! The work of a process job, as values: leaf-job runs programs without knowing their task.

use leaf_core::job::process::{End, Finished, Step};
use leaf_core::job::{Activities, Failure, Progress};

/// A task in the form in which the runner carries it out. The functions are provided by the crate of the task, which
/// keeps its data in `state`.
#[derive(Debug, Clone, Copy)]
pub struct Work<S> {
    /// The task's data between calls.
    pub state: S,
    /// Returns the first step, or the step after a program that ended with exit code 0; or the reason why the job has
    /// failed.
    pub next: fn(&mut S, Option<Finished>) -> Result<Step, String>,
    /// Handles a line of a program's standard error, without its end, and returns its text for the log.
    pub read_line: fn(&mut S, &[u8]) -> Option<String>,
    /// Returns the progress of the job.
    pub progress: fn(&S) -> Progress,
    /// Returns what the job is doing.
    pub activities: fn(&S) -> Activities,
    /// Returns the error of the program that failed last, as far as it printed one, in at most 4 KiB.
    pub error: fn(&S) -> Option<String>,
    /// Returns the step after a program that failed by itself; `None` if the job has failed with it.
    pub after_failure: fn(&mut S, End) -> Option<Step>,
    /// Returns the failure of a job that ends in this way, with this error.
    pub failure: fn(&S, String, End) -> Failure,
}
