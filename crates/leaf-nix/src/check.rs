//! `nix build --rebuild`: its order, its programs, and its result.
//!
//! What is not built yet is built first, with all outputs, for Nix compares all of them. Then each derivation is built
//! again by itself. Where an output differs, Nix keeps the second one beside the first, at its path with `.check` behind it,
//! and the two are compared file by file. Nix compares no further output of that derivation then.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::id::StorePath;
use leaf_core::job::check::{CheckResult, MOST_DIFFERENCES};
use leaf_core::job::explanation::{Explanation, FailureKind};
use leaf_core::job::process::{End, Finished, Program, Step};
use leaf_core::job::{Activities, BuiltDerivation, Failure, JobResult, Progress};
use serde::{Deserialize, Serialize};

use crate::build::read_build;
use crate::command_line::program;
use crate::compare::Differences;
use crate::installable::Wanted;
use crate::internal_json::Tracker;
use crate::policy;
use crate::source::{Locking, Source};
use crate::version::NixVersion;

/// The task of the order of a check.
pub const TASK: &str = "check";

/// The minor version of Nix 2 that is known to keep a second build for `--keep-failed` only.
const KEEP_FAILED_ONLY: u32 = 34;
/// The number of derivations that are checked at most.
const MOST_DERIVATIONS: usize = 32;

/// A check's part of a job's order on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Always [`TASK`].
    pub(crate) task: String,
    pub(crate) nix: PathBuf,
    pub(crate) source: Source,
    pub(crate) options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) impure: bool,
    /// The bound of the address space of `nix flake metadata`, in MiB.
    pub(crate) memory_mib: u64,
}

/// A check: a state machine that returns the next program and reads the output of the previous one.
#[derive(Debug)]
pub struct Check {
    order: Order,
    gc_roots: PathBuf,
    /// The program that compares two paths, before the paths, and prints [`Differences`].
    compare: Program,
    locking: Locking,
    stage: Stage,
    /// The log of the running Nix.
    tracker: Tracker,
    derivations: Vec<BuiltDerivation>,
    check_time: Duration,
    /// What differs, in the order of derivations.
    found: Vec<Found>,
}

/// An output that differs.
#[derive(Debug)]
struct Found {
    derivation: StorePath,
    output: StorePath,
    differences: Differences,
}

/// The running program, or the first one. Numbers are those of derivations.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Locking,
    Build,
    AllOutputs,
    Rebuild(usize),
    Compare(usize),
}

impl Check {
    /// Returns a check that registers the outputs as GC roots in this directory, which exists, and compares with this program,
    /// which gets two paths and prints [`Differences`] as JSON.
    #[must_use]
    pub fn new(order: Order, gc_roots: &Path, compare: Program) -> Self {
        Self {
            gc_roots: gc_roots.to_owned(),
            compare,
            locking: Locking::new(
                order.nix.clone(),
                order.options.clone(),
                order.source.clone(),
                order.memory_mib,
                order.impure,
            ),
            order,
            stage: Stage::Locking,
            tracker: Tracker::default(),
            derivations: Vec::new(),
            check_time: Duration::ZERO,
            found: Vec::new(),
        }
    }

    /// Returns the first program, or the step after a program that ended with exit code 0.
    ///
    /// # Errors
    /// The reason why the check has failed; also that something differs.
    pub fn next(&mut self, finished: Option<Finished>) -> Result<Step, String> {
        let finished = match (self.stage, finished) {
            (Stage::Locking, finished) => {
                if let Some(program) = self.locking.next(finished)? {
                    return Ok(Step::Run(program));
                }
                self.stage = Stage::Build;
                return Ok(self.build("result", self.locking.words()));
            }
            (_, Some(finished)) => finished,
            (_, None) => return Err("a program did not run".to_owned()),
        };
        match self.stage {
            Stage::Locking | Stage::Build => {
                self.derivations = read_build(&finished.stdout)?;
                if self.derivations.len() > MOST_DERIVATIONS {
                    return Err(format!(
                        "these are {} derivations, and at most {MOST_DERIVATIONS} are checked at once: name fewer",
                        self.derivations.len()
                    ));
                }
                self.stage = Stage::AllOutputs;
                let mut words: Vec<OsString> = vec!["--".into()];
                for built in &self.derivations {
                    words.extend(self.all_outputs(built)?);
                }
                Ok(self.build("all", words))
            }
            Stage::AllOutputs => {
                for built in read_build(&finished.stdout)? {
                    let mut known = self.derivations.iter_mut();
                    if let Some(known) = known.find(|known| known.derivation == built.derivation) {
                        known.outputs.extend(built.outputs);
                    }
                }
                for built in &mut self.derivations {
                    built.origin = Some(self.tracker.origin(built));
                }
                self.rebuild(0)
            }
            Stage::Rebuild(nth) => {
                self.check_time += finished.duration;
                self.rebuild(nth + 1)
            }
            Stage::Compare(nth) => {
                let differences = serde_json::from_slice(&finished.stdout)
                    .map_err(|error| format!("the comparison printed JSON that can't be used: {error}"))?;
                if let Some(found) = self.found.last_mut() {
                    found.differences = differences;
                }
                self.rebuild(nth + 1)
            }
        }
    }

    /// Returns the step after a program that failed: the comparison, if an output differs.
    pub fn after_failure(&mut self, end: End) -> Option<Step> {
        let (Stage::Rebuild(nth), End::Code(_)) = (self.stage, end) else {
            return None;
        };
        let built = self.derivations.get(nth)?;
        let error = self.tracker.error()?;
        let output = built.outputs.values().find(|output| differs(&error, output))?;
        self.found.push(Found {
            derivation: built.derivation.clone()?,
            output: output.clone(),
            differences: Differences::default(),
        });
        let mut compare = self.compare.clone();
        compare
            .arguments
            .extend([output.as_str().into(), format!("{output}.check").into()]);
        self.stage = Stage::Compare(nth);
        Some(Step::Run(compare))
    }

    /// Builds a derivation again, or ends after the last one.
    fn rebuild(&mut self, nth: usize) -> Result<Step, String> {
        self.stage = Stage::Rebuild(nth);
        self.tracker = Tracker::default();
        let Some(built) = self.derivations.get(nth) else {
            return self.end();
        };
        // What the second build gave is kept with either, with the newest Nix by the second alone, which keeps the directory of the build as
        // well.
        let is_root = rustix::process::geteuid().is_root();
        let version = NixVersion::parse(&self.locking.version);
        let by_hook = version.is_some_and(|version| !version.is_since(KEEP_FAILED_ONLY));
        let keeps: &[&str] = if is_root && by_hook {
            &["--option", "run-diff-hook", "true"]
        } else {
            &["--keep-failed"]
        };
        let mut words: Vec<OsString> = ["-v", "--rebuild", "--no-link"].map(OsString::from).into();
        words.extend(keeps.iter().map(OsString::from));
        words.push("--".into());
        words.extend(self.all_outputs(built)?);
        Ok(Step::Run(program(
            &self.order.nix,
            &self.order.options,
            "build",
            words,
        )))
    }

    fn end(&self) -> Result<Step, String> {
        if !self.found.is_empty() {
            return Err(self.message());
        }
        Ok(Step::Done(JobResult::Check(CheckResult {
            derivations: self.derivations.clone(),
            locked: self.locking.locked_reference(),
            nix: self.locking.version.clone(),
            check_time_ms: u64::try_from(self.check_time.as_millis()).unwrap_or(u64::MAX),
        })))
    }

    fn build(&self, link: &str, words: Vec<OsString>) -> Step {
        let link = self.gc_roots.join(link);
        let mut arguments: Vec<OsString> = vec!["-v".into(), "--out-link".into(), link.into()];
        arguments.extend(words);
        Step::Run(program(&self.order.nix, &self.order.options, "build", arguments))
    }

    /// Returns the words that mean all outputs of a derivation.
    fn all_outputs(&self, built: &BuiltDerivation) -> Result<Vec<OsString>, String> {
        let derivation = built.derivation.as_ref().ok_or_else(|| {
            let path = built.main_output().map(StorePath::as_str).unwrap_or_default();
            format!("{path} is a store path without a derivation: there is no build to repeat")
        })?;
        let wanted = Wanted::all_of(derivation.to_string());
        let version = NixVersion::parse(&self.locking.version);
        let words = wanted.words(version.as_ref())?;
        Ok(words.into_iter().map(OsString::from).collect())
    }

    /// Returns what differs, in one line for each output, and each file that is listed.
    fn message(&self) -> String {
        let of = |found: &Found| {
            let files = found.differences.listed.len() as u64 + found.differences.left_out;
            let listed = found.differences.listed.iter();
            let listed = listed.take(MOST_NAMED).map(|file| format!("\n  {}", file.file));
            format!(
                "{} is not reproducible: a second build gave another {}, which is kept as {}.check; {files} files differ{}{}",
                found.derivation,
                found.output,
                found.output,
                if files == 0 { "" } else { ":" },
                listed.collect::<String>()
            )
        };
        self.found.iter().map(of).collect::<Vec<_>>().join("\n")
    }

    /// Handles a line of Nix's log, and returns its text for the log, if any.
    pub fn read_line(&mut self, line: &[u8]) -> Option<String> {
        self.tracker.line(line)
    }

    /// Returns the progress of the running Nix.
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
        let explanation = match self.found.split_first() {
            Some((first, others)) if end == End::Unusable => {
                let all = self.found.iter().map(|found| &found.differences);
                let listed = all.clone().flat_map(|differences| &differences.listed);
                let count: u64 = all.map(|one| one.listed.len() as u64 + one.left_out).sum();
                let differences: Vec<_> = listed.take(MOST_DIFFERENCES).cloned().collect();
                Explanation {
                    derivation: Some(first.derivation.clone()),
                    also_failed: others.iter().map(|found| found.derivation.clone()).collect(),
                    differences_left_out: count - differences.len() as u64,
                    differences,
                    ..Explanation::new(
                        FailureKind::NotReproducible,
                        format!("{} differs from {}.check", first.output, first.output),
                    )
                }
            }
            _ => self.tracker.explanation(&error, end),
        };
        policy::named(Failure {
            error,
            partial: Vec::new(),
            explanation: Some(Box::new(explanation)),
        })
    }
}

/// The number of files that the error of a job names for each output.
const MOST_NAMED: usize = 10;

/// Returns whether an error of Nix says that an output differs, and that the second one was kept.
fn differs(error: &str, output: &StorePath) -> bool {
    // Since 2.34 in double quotes.
    let said = ["'", "\""].map(|quote| format!("output {quote}{output}{quote} differs from "));
    error
        .lines()
        .any(|line| line.contains("may not be deterministic") && said.iter().any(|said| line.contains(said)))
}
