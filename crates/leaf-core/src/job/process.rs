//! The programs of a process job, as values: the crate of a task (leaf-nix) makes them, and leaf-job runs them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::JobResult;

/// A program to run, without input. Its standard output is read whole; its standard error becomes the job's log and
/// progress, line by line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The program: a path, or a name that is looked up on `PATH`.
    pub program: PathBuf,
    /// The arguments, without the program's name.
    pub arguments: Vec<OsString>,
    /// Its bounds, beside those of the job.
    pub limits: Limits,
}

impl Program {
    /// Returns a program without bounds of its own.
    #[must_use]
    pub fn new(program: PathBuf, arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self {
            program,
            arguments: arguments.into_iter().collect(),
            limits: Limits::default(),
        }
    }
}

/// The bounds of one program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// The maximum size of its standard output, in bytes; by default 16 MiB.
    pub max_stdout_bytes: Option<usize>,
    /// The maximum size of its address space, in bytes (`RLIMIT_AS`).
    pub memory_bytes: Option<u64>,
}

/// The next step of a process job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Run a program; if it fails, the job has failed.
    Run(Program),
    /// The job has succeeded, with this result.
    Done(JobResult),
}

/// A program that ended with exit code 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its run time.
    pub duration: Duration,
}

/// How a program ended, or was ended, that did not end with exit code 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It ended with this exit code.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
    /// The job's time limit was reached, and it was ended.
    TimedOut,
    /// It printed more than it may.
    TooMuchOutput,
    /// It could not be run, or what it printed could not be used.
    Unusable,
}
