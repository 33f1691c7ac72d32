//! The difference of two closures: its order, its programs, and its result.
//!
//! Nix lists both closures with the sizes of their store paths. What a switch between two NixOS systems does is read from the systems
//! themselves.

mod packages;
mod system;
mod unit;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use leaf_core::id::StorePath;
use leaf_core::job::diff::DiffResult;
use leaf_core::job::process::{End, Finished, Limits, Program, Step};
use leaf_core::job::{Failure, JobResult, Progress};
use serde::{Deserialize, Serialize};

use crate::command_line::real;
use crate::plain_log::{PlainLog, absent, failure};
use packages::Closure;

/// The task of the order of a difference.
pub const TASK: &str = "diff";

/// The maximum size of the list of a closure, in bytes: 250 of each of a hundred thousand store paths.
const MAX_STDOUT_BYTES: usize = 25 << 20;

/// An order on disk of a job that compares two closures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Always [`TASK`].
    pub(crate) task: String,
    pub(crate) nix: PathBuf,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) from: StorePath,
    pub(crate) to: StorePath,
}

/// A job that compares two closures.
#[derive(Debug)]
pub struct Diff {
    order: Order,
    /// The closure of before, once it is known.
    before: Option<Closure>,
    log: PlainLog,
}

impl Diff {
    /// Returns a job.
    #[must_use]
    pub fn new(order: Order) -> Self {
        Self {
            order,
            before: None,
            log: PlainLog::default(),
        }
    }

    /// Returns the first program, or the step after a program that ended with exit code 0.
    ///
    /// # Errors
    /// The reason why the job has failed.
    pub fn next(&mut self, finished: Option<Finished>) -> Result<Step, String> {
        let Some(finished) = finished else {
            for path in [&self.order.from, &self.order.to] {
                if !self.real(path).exists() {
                    return Err(absent(path.as_str()));
                }
            }
            return Ok(self.closure(&self.order.from));
        };
        let closure = Closure::parse(&String::from_utf8_lossy(&finished.stdout))?;
        let Some(before) = self.before.take() else {
            self.before = Some(closure);
            return Ok(self.closure(&self.order.to));
        };
        let (packages, packages_left_out) = packages::compare(&before, &closure);
        Ok(Step::Done(JobResult::Diff(DiffResult {
            from_closure_size_bytes: before.size(),
            to_closure_size_bytes: closure.size(),
            packages,
            packages_left_out,
            system: system::compare(&self.real(&self.order.from), &self.real(&self.order.to)),
        })))
    }

    /// Returns the program that lists a closure.
    fn closure(&self, path: &StorePath) -> Step {
        let options = self.order.options.iter();
        let options = options.flat_map(|(name, value)| ["--option", name.as_str(), value.as_str()]);
        let words = [
            "path-info",
            "--recursive",
            "--size",
            "--extra-experimental-features",
            "nix-command",
        ];
        let words = words.into_iter().chain(options).chain([path.as_str()]);
        let mut program = Program::new(self.order.nix.clone(), words.map(OsString::from));
        program.limits = Limits {
            max_stdout_bytes: Some(MAX_STDOUT_BYTES),
            memory_bytes: None,
        };
        Step::Run(program)
    }

    fn real(&self, path: &StorePath) -> PathBuf {
        real(&self.order.options, path.as_str())
    }

    /// Handles a line of Nix, and returns its text for the log.
    pub fn read_line(&mut self, line: &[u8]) -> Option<String> {
        let line = String::from_utf8_lossy(line).into_owned();
        self.log.push(line.clone());
        Some(line)
    }

    /// Returns how far it is: of the two closures, those that are listed.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            done: self.before.is_some().into(),
            expected: 2,
            running: 1,
            ..Progress::default()
        }
    }

    /// Returns what Nix said last, in at most 4 KiB.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.log.error()
    }

    /// Returns the failure of the job with this error.
    #[must_use]
    pub fn failure(&self, error: String, end: End) -> Failure {
        failure(error, end)
    }
}
