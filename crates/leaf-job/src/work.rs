//! What a process job does, as values: leaf-job runs programs and knows nothing of what they are for.

use leaf_core::job::Progress;
use leaf_core::job::process::{Finished, Step};

/// A task, as its runner carries it out. The functions are those of the crate that knows the task, which keeps what it
/// has to remember in `state`.
#[derive(Debug, Clone, Copy)]
pub struct Work<S> {
    /// What the task remembers from one call to the next.
    pub state: S,
    /// Returns what comes first, and what comes after a program that ended with exit code 0; or why the job has failed.
    pub next: fn(&mut S, Option<Finished>) -> Result<Step, String>,
    /// Takes one line of a program's standard error, without its end, and returns the text that the log gets for it.
    pub read_line: fn(&mut S, &[u8]) -> Option<String>,
    /// Returns how far the job is.
    pub progress: fn(&S) -> Progress,
    /// Returns why the program that ended last failed, as far as it said so, in at most 4 KiB.
    pub error: fn(&S) -> Option<String>,
}
