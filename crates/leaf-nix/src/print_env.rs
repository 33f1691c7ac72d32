//! `nix print-dev-env`: its order, its programs, and its result.
//!
//! Nix builds the derivation's dependencies, and then the derivation with a builder of its own, which reads
//! `$stdenv/setup` in the sandbox and prints what bash has then. So it builds, and evaluates as a build does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::job::explanation::{Explanation, FailureKind};
use leaf_core::job::print_env::{Environment, MAX_ENVIRONMENT_BYTES, PrintEnvResult, Variable};
use leaf_core::job::process::{End, Finished, Limits, Step};
use leaf_core::job::{Activities, Failure, JobResult, Progress};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::command_line::program;
use crate::internal_json::Tracker;
use crate::policy;
use crate::source::{Locking, Source};

/// The task of the order of an environment.
pub const TASK: &str = "print_env";

/// An environment's part of a job's order on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Always [`TASK`].
    pub(crate) task: String,
    pub(crate) nix: PathBuf,
    pub(crate) source: Source,
    pub(crate) options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) impure: bool,
    /// The bound of the address space of `nix flake metadata`, in MiB. Builders are the job's own processes without a
    /// nix-daemon, so what builds has no such bound.
    pub(crate) memory_mib: u64,
}

/// The job of an environment: a state machine that returns the next program and reads the output of the previous one.
#[derive(Debug)]
pub struct PrintEnv {
    order: Order,
    /// The GC root of the environment, with all store paths that it names.
    profile: PathBuf,
    tracker: Tracker,
    locking: Option<Locking>,
    locked: Option<String>,
    nix: String,
}

impl PrintEnv {
    /// Returns a job that registers the environment as a GC root in this directory, which exists.
    #[must_use]
    pub fn new(order: Order, gc_roots: &Path) -> Self {
        Self {
            profile: gc_roots.join("environment"),
            tracker: Tracker::default(),
            locking: Some(Locking::new(
                order.nix.clone(),
                order.options.clone(),
                order.source.clone(),
                order.memory_mib,
                order.impure,
            )),
            order,
            locked: None,
            nix: String::new(),
        }
    }

    /// Returns the first program, or the step after a program that ended with exit code 0.
    ///
    /// # Errors
    /// The reason why the job has failed.
    pub fn next(&mut self, finished: Option<Finished>) -> Result<Step, String> {
        let Some(locking) = &mut self.locking else {
            let finished = finished.ok_or("nix print-dev-env did not run")?;
            return self.result(&finished.stdout, finished.duration);
        };
        if let Some(program) = locking.next(finished)? {
            return Ok(Step::Run(program));
        }
        let mut arguments: Vec<OsString> = vec!["-v".into(), "--profile".into(), self.profile.clone().into()];
        arguments.extend(locking.words());
        (self.locked, self.nix) = (locking.locked_reference(), locking.version.clone());
        self.locking = None;
        let mut program = program(&self.order.nix, &self.order.options, "print-dev-env", arguments);
        program.limits = Limits {
            max_stdout_bytes: Some(MAX_ENVIRONMENT_BYTES),
            memory_bytes: None,
        };
        Ok(Step::Run(program))
    }

    fn result(&self, stdout: &[u8], duration: Duration) -> Result<Step, String> {
        Ok(Step::Done(JobResult::PrintEnv(PrintEnvResult {
            environment: read_environment(stdout)?,
            environment_left_out_bytes: None,
            locked: self.locked.clone(),
            nix: self.nix.clone(),
            built: self.tracker.built(),
            time_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        })))
    }

    /// Handles a line of Nix's log, and returns its text for the log, if any.
    pub fn read_line(&mut self, line: &[u8]) -> Option<String> {
        self.tracker.line(line)
    }

    /// Returns the progress of the job.
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

    /// Returns the failure of the job with this error.
    #[must_use]
    pub fn failure(&self, error: String, end: End) -> Failure {
        let (error, explanation) = match end {
            End::TooMuchOutput if self.locking.is_none() => {
                let error = format!("the environment is larger than {MAX_ENVIRONMENT_BYTES} bytes of JSON");
                let explanation = Explanation::new(FailureKind::OutputTooLarge, error.clone());
                (error, explanation)
            }
            end => {
                let explanation = self.tracker.explanation(&error, end);
                (error, explanation)
            }
        };
        policy::named(Failure {
            error,
            partial: Vec::new(),
            explanation: Some(Box::new(explanation)),
        })
    }
}

/// Returns the environment that `nix print-dev-env --json` printed. A variable of a type that is not known, such as a name
/// reference, has no value there, and is left out.
///
/// # Errors
/// The reason why it can't be used.
pub fn read_environment(json: &[u8]) -> Result<Environment, String> {
    let bad = |why: &str| format!("nix print-dev-env printed JSON that can't be used: {why}");
    let mut value: Map<String, Value> =
        serde_json::from_slice(json).map_err(|error| bad(&error.to_string()))?;
    let Some(Value::Object(variables)) = value.remove("variables") else {
        return Err(bad("it has no variables"));
    };
    let texts = |value: Option<Value>| match value {
        Some(value) => serde_json::from_value(value).map_err(|error| bad(&error.to_string())),
        None => Ok(BTreeMap::new()),
    };
    Ok(Environment {
        bash_functions: texts(value.remove("bashFunctions"))?,
        variables: variables
            .into_iter()
            .filter_map(|(name, value)| Some((name, serde_json::from_value::<Variable>(value).ok()?)))
            .collect(),
        structured_attrs: texts(value.remove("structuredAttrs"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_read_without_variables_that_have_no_value() {
        let read = read_environment(
            br#"{"bashFunctions":{"f":"x"},"variables":{"a":{"type":"exported","value":"1"},"b":{"type":"unknown"}},"structuredAttrs":{".attrs.sh":"y"},"more":1}"#,
        );
        let environment = read.expect("readable");
        let variables: Vec<_> = environment.variables.into_iter().collect();
        assert_eq!(variables, [("a".to_owned(), Variable::Exported("1".to_owned()))]);
        assert_eq!(
            environment.structured_attrs.get(".attrs.sh").map(String::as_str),
            Some("y")
        );
        for bad in [&b"x"[..], b"{}", br#"{"variables":{},"bashFunctions":[1]}"#] {
            read_environment(bad).expect_err("it is no environment");
        }
    }
}
