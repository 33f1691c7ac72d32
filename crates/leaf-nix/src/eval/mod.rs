//! `nix eval`: its order, its programs, and its result.

pub mod cache;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use leaf_core::job::eval::{EvalResult, MAX_VALUE_BYTES};
use leaf_core::job::explanation::{Explanation, FailureKind};
use leaf_core::job::process::{End, Finished, Limits, Step};
use leaf_core::job::{Activities, Failure, JobResult, Progress};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command_line::program;
use crate::internal_json::Tracker;
use crate::policy;
use crate::source::{Locking, Source};
use cache::Known;

/// The task of the order of an evaluation.
pub const TASK: &str = "eval";

/// An evaluation's part of a job's order on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Always [`TASK`].
    pub(crate) task: String,
    pub(crate) nix: PathBuf,
    pub(crate) source: Source,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) apply: Option<String>,
    pub(crate) options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) impure: bool,
    /// The bound of its address space, in MiB.
    pub(crate) memory_mib: u64,
    /// Values that may be those of the reference, once it is locked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) known: Vec<Known>,
}

/// An evaluation: a state machine that returns the next program and reads the output of the previous one.
#[derive(Debug)]
pub struct Eval {
    order: Order,
    tracker: Tracker,
    locking: Locking,
    /// Whether the source is locked, and the value is asked for.
    is_locked: bool,
}

impl Eval {
    /// Returns an evaluation.
    #[must_use]
    pub fn new(order: Order) -> Self {
        Self {
            tracker: Tracker::default(),
            locking: Locking::new(
                order.nix.clone(),
                order.options.clone(),
                order.source.clone(),
                order.memory_mib,
                order.impure,
            ),
            is_locked: false,
            order,
        }
    }

    /// Returns the first program, or the step after a program that ended with exit code 0.
    ///
    /// # Errors
    /// The reason why the evaluation has failed.
    pub fn next(&mut self, finished: Option<Finished>) -> Result<Step, String> {
        if self.is_locked {
            let finished = finished.ok_or("nix eval did not run")?;
            return self.result(&finished.stdout, finished.duration);
        }
        if let Some(program) = self.locking.next(finished)? {
            return Ok(Step::Run(program));
        }
        self.is_locked = true;
        let nix = &self.locking.version;
        if let Some(locked) = self
            .locking
            .locked
            .as_ref()
            .filter(|locked| locked.is_fixed && !self.order.impure)
        {
            let mut known = self.order.known.iter();
            let known = known.find(|known| known.locked == locked.reference && known.nix == *nix);
            if let Some(known) = known {
                return Ok(Step::Done(JobResult::Eval(EvalResult {
                    value: known.value.clone(),
                    value_left_out_bytes: None,
                    locked: Some(locked.reference.clone()),
                    cached: true,
                    nix: nix.clone(),
                    eval_time_ms: 0,
                })));
            }
        }
        Ok(self.eval())
    }

    fn eval(&self) -> Step {
        // Read-only: derivations are evaluated, and not written to the store.
        let mut arguments: Vec<OsString> = [
            "-v",
            "--read-only",
            "--option",
            "allow-import-from-derivation",
            "false",
        ]
        .map(OsString::from)
        .into();
        if let Some(apply) = &self.order.apply {
            arguments.extend(["--apply".into(), apply.into()]);
        }
        arguments.extend(self.locking.words());
        self.run("eval", arguments, MAX_VALUE_BYTES)
    }

    /// Returns the run of a program within the bounds.
    fn run(
        &self,
        verb: &str,
        arguments: impl IntoIterator<Item = OsString>,
        max_stdout_bytes: usize,
    ) -> Step {
        let mut program = program(&self.order.nix, &self.order.options, verb, arguments);
        program.limits = Limits {
            max_stdout_bytes: Some(max_stdout_bytes),
            memory_bytes: Some(self.order.memory_mib << 20),
        };
        Step::Run(program)
    }

    fn result(&self, stdout: &[u8], duration: Duration) -> Result<Step, String> {
        let value: Value = serde_json::from_slice(stdout)
            .map_err(|error| format!("nix eval printed JSON that can't be used: {error}"))?;
        Ok(Step::Done(JobResult::Eval(EvalResult {
            value,
            value_left_out_bytes: None,
            locked: self.locking.locked_reference(),
            cached: false,
            nix: self.locking.version.clone(),
            eval_time_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        })))
    }

    /// Handles a line of Nix's log, and returns its text for the log, if any.
    pub fn read_line(&mut self, line: &[u8]) -> Option<String> {
        self.tracker.line(line)
    }

    /// Returns the progress of the evaluation.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.tracker.progress()
    }

    /// Returns what Nix is doing.
    #[must_use]
    pub fn activities(&self) -> Activities {
        self.tracker.activities()
    }

    /// Returns Nix's error, as far as it printed one, in at most 4 KiB.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.tracker.error()
    }

    /// Returns the failure of the job with this error; where it reached a bound, with the bound's name.
    #[must_use]
    pub fn failure(&self, error: String, end: End) -> Failure {
        let mut explanation = self.tracker.explanation(&error, end);
        // Nix's garbage collector says it in a line of its own, and then ends Nix in one way or the other.
        let is_out_of_memory =
            explanation.kind == FailureKind::OutOfMemory || error.contains("Out of Memory");
        let bound = match end {
            End::TooMuchOutput => Some((
                FailureKind::OutputTooLarge,
                format!(
                    "the value is larger than {MAX_VALUE_BYTES} bytes of JSON: take a part of it with --apply, such as \
                     builtins.attrNames"
                ),
            )),
            // Read-only, Nix looks for the derivation that it did not write before it looks at the setting.
            _ if error.contains(".drv' is not valid") => Some((
                FailureKind::Policy,
                format!(
                    "the value depends on the output of a derivation, and an evaluation builds nothing \
                     (allow-import-from-derivation is off): {error}"
                ),
            )),
            _ if is_out_of_memory => Some((
                FailureKind::OutOfMemory,
                format!(
                    "the evaluation reached the bound of its memory, nix.eval_memory_mib = {}: {error}",
                    self.order.memory_mib
                ),
            )),
            _ => None,
        };
        let Some((kind, error)) = bound else {
            return policy::named(Failure {
                error,
                partial: Vec::new(),
                explanation: Some(Box::new(explanation)),
            });
        };
        explanation = Explanation {
            kind,
            message: error.clone(),
            ..Explanation::default()
        };
        Failure {
            error,
            partial: Vec::new(),
            explanation: Some(Box::new(explanation)),
        }
    }
}
