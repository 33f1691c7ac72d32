//! The programs of a process job, as values: a crate that knows a task (leaf-nix) makes them, and leaf-job runs them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::JobResult;

/// A program to run, with no input. Its standard output is read whole; its standard error, line by line, becomes the
/// job's log and progress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The program: a path, or a name that is looked up on `PATH`.
    pub program: PathBuf,
    /// Its arguments, without its name.
    pub arguments: Vec<OsString>,
}

/// What a process job does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It runs this program; one that fails ends the job.
    Run(Program),
    /// It has succeeded, with this result.
    Done(JobResult),
}

/// A program that ended with exit code 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// How long it ran.
    pub duration: Duration,
}
