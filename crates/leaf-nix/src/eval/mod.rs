//! `nix eval`: its order, its programs, and its result.

pub mod cache;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use leaf_core::job::eval::{EvalResult, MAX_VALUE_BYTES};
use leaf_core::job::explanation::{Explanation, FailureKind};
use leaf_core::job::process::{End, Finished, Limits, Program, Step};
use leaf_core::job::{Failure, Installable, JobResult, Progress};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command_line::program;
use crate::installable::split_fragment;
use crate::internal_json::Tracker;
use crate::version::NixVersion;
use cache::Known;

/// The task of the order of an evaluation.
pub const TASK: &str = "eval";

/// The maximum size of the output of `nix flake metadata`, in bytes: it has all of the lock file.
const MAX_METADATA_BYTES: usize = 8 << 20;

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
    /// The bound of its address space, in MiB.
    pub(crate) memory_mib: u64,
    /// Values that may be those of the reference, once it is locked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) known: Vec<Known>,
}

/// The source of a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Source {
    /// A flake reference, and the attribute behind `#`.
    Flake {
        reference: String,
        fragment: Option<String>,
    },
    /// A file, and an attribute.
    File { path: String, attribute: Option<String> },
}

/// An evaluation: a state machine that returns the next program and reads the output of the previous one.
#[derive(Debug)]
pub struct Eval {
    order: Order,
    tracker: Tracker,
    stage: Stage,
    nix: String,
    /// The locked reference, without the fragment.
    locked: Option<Locked>,
}

/// The running program, or the first one.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Version,
    Metadata,
    Eval,
}

#[derive(Debug)]
struct Locked {
    reference: String,
    /// Whether it means the same source for good.
    is_fixed: bool,
}

impl Eval {
    /// Returns an evaluation.
    #[must_use]
    pub fn new(order: Order) -> Self {
        Self {
            order,
            tracker: Tracker::default(),
            stage: Stage::Version,
            nix: String::new(),
            locked: None,
        }
    }

    /// Returns the first program, or the step after a program that ended with exit code 0.
    ///
    /// # Errors
    /// The reason why the evaluation has failed.
    pub fn next(&mut self, finished: Option<Finished>) -> Result<Step, String> {
        let Some(finished) = finished else {
            return Ok(Step::Run(Program::new(
                self.order.nix.clone(),
                ["--version".into()],
            )));
        };
        match self.stage {
            Stage::Version => {
                let version = NixVersion::parse(&String::from_utf8_lossy(&finished.stdout));
                self.nix = version.ok_or("nix --version printed no version")?.text;
                Ok(match &self.order.source {
                    Source::Flake { reference, .. } => {
                        self.stage = Stage::Metadata;
                        let arguments = ["--no-update-lock-file", "--", reference];
                        self.run(
                            "flake metadata",
                            arguments.map(OsString::from),
                            MAX_METADATA_BYTES,
                        )
                    }
                    Source::File { .. } => self.eval(),
                })
            }
            Stage::Metadata => {
                let locked = read_metadata(&finished.stdout)?;
                let known = self.order.known.iter().find(|known| {
                    locked.is_fixed && known.locked == locked.reference && known.nix == self.nix
                });
                if let Some(known) = known {
                    return Ok(Step::Done(JobResult::Eval(EvalResult {
                        value: known.value.clone(),
                        value_left_out_bytes: None,
                        locked: Some(locked.reference),
                        cached: true,
                        nix: self.nix.clone(),
                        eval_time_ms: 0,
                    })));
                }
                self.locked = Some(locked);
                Ok(self.eval())
            }
            Stage::Eval => self.result(&finished.stdout, finished.duration),
        }
    }

    fn eval(&mut self) -> Step {
        self.stage = Stage::Eval;
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
        let installable = match (&self.order.source, &self.locked) {
            (Source::Flake { reference, fragment }, locked) => {
                arguments.push("--no-update-lock-file".into());
                let reference = locked.as_ref().map_or(reference, |locked| &locked.reference);
                Some(match fragment {
                    Some(fragment) => format!("{reference}#{fragment}"),
                    None => reference.clone(),
                })
            }
            (Source::File { path, attribute }, _) => {
                arguments.extend(["--file".into(), path.into()]);
                attribute.clone()
            }
        };
        if let Some(installable) = installable {
            arguments.extend(["--".into(), installable.into()]);
        }
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
            locked: self.locked.as_ref().map(|locked| locked.reference.clone()),
            cached: false,
            nix: self.nix.clone(),
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
            return Failure {
                error,
                partial: Vec::new(),
                explanation: Some(Box::new(explanation)),
            };
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

/// Parses the output of `nix flake metadata --json`.
fn read_metadata(json: &[u8]) -> Result<Locked, String> {
    let value: Value =
        serde_json::from_slice(json).map_err(|e| format!("nix flake metadata printed invalid JSON: {e}"))?;
    let reference = value
        .get("url")
        .and_then(Value::as_str)
        .ok_or("nix flake metadata printed no url")?;
    let locked = |name: &str| value.get("locked").and_then(|locked| locked.get(name));
    let kind = locked("type").and_then(Value::as_str).unwrap_or_default();
    // A working tree with changes has no revision, and its hash is not a part of the reference.
    let of_tree = matches!(kind, "git" | "hg");
    Ok(Locked {
        reference: reference.to_owned(),
        is_fixed: locked("rev").is_some() || !of_tree && locked("narHash").is_some(),
    })
}

impl Source {
    /// Returns the source that an installable names, which has been checked.
    pub(crate) fn of(installable: &Installable) -> Option<Self> {
        match installable {
            Installable::Flake { reference } => {
                let (reference, fragment) = split_fragment(reference);
                Some(Self::Flake {
                    reference: reference.to_owned(),
                    fragment: fragment.map(str::to_owned),
                })
            }
            Installable::File { path, attribute } => Some(Self::File {
                path: path.clone(),
                attribute: attribute.clone(),
            }),
            Installable::StorePath { .. } | Installable::Derivation { .. } | Installable::Template { .. } => {
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_fixed_by_a_revision_or_by_a_hash_that_is_a_part_of_it() {
        for (locked, is_fixed) in [
            (r#"{"type":"path","narHash":"sha256-x"}"#, true),
            (r#"{"type":"github","rev":"1","narHash":"sha256-x"}"#, true),
            (r#"{"type":"git","narHash":"sha256-x","lastModified":1}"#, false),
            (r#"{"type":"git","dirtyRev":"1-dirty"}"#, false),
            (r#"{"type":"git","rev":"1"}"#, true),
        ] {
            let metadata = format!(r#"{{"url":"x","locked":{locked}}}"#);
            let read = read_metadata(metadata.as_bytes()).expect("readable");
            assert_eq!((read.is_fixed, &*read.reference), (is_fixed, "x"), "{locked}");
        }
        read_metadata(b"{}").expect_err("no url");
    }
}
