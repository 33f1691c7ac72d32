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
    /// It could not be run, or what it printed could not be used.
    Unusable,
}
