//! The verification of the running system: its order, its programs, and its result.
//!
//! Nix lists the closure, and judges its signatures by its own settings. What statements say comes with the order: whoever asks has
//! checked their signatures. `/etc` is compared by this process, as its user: what only root can read is said to be so.

mod closure;
mod etc;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use leaf_core::id::StorePath;
use leaf_core::job::process::{End, Finished, Limits, Program, Step};
use leaf_core::job::verify::Stated;
use leaf_core::job::{Failure, JobResult, Progress, VerifyResult};
use serde::{Deserialize, Serialize};

use crate::command_line::real;
use crate::plain_log::{PlainLog, failure};
use closure::Closure;

/// The task of the order of a verification.
pub const TASK: &str = "verify";

/// The maximum size of the information about a closure, in bytes: 1 KiB about each of 60 thousand store paths.
const MAX_STDOUT_BYTES: usize = 60 << 20;
/// The bits of the exit code of `nix store verify`.
const CORRUPTED: i32 = 1;
const UNTRUSTED: i32 = 2;
const FAILED: i32 = 4;

/// An order on disk of a job that verifies the running system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Always [`TASK`].
    pub(crate) task: String,
    pub(crate) nix: PathBuf,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) stated: Vec<Stated>,
    pub(crate) contents: bool,
    /// The link to the system that runs, and the directory of its files: those of the host, or of a test.
    pub running: PathBuf,
    /// See `running`.
    pub etc: PathBuf,
}

/// A job that verifies the running system.
#[derive(Debug)]
pub struct Verify {
    order: Order,
    /// The system, once it is known.
    toplevel: Option<StorePath>,
    /// Its closure, once it is known.
    closure: Option<Closure>,
    /// What `nix store verify` said.
    untrusted: BTreeSet<StorePath>,
    modified: BTreeSet<StorePath>,
    log: PlainLog,
}

impl Verify {
    /// Returns a job.
    #[must_use]
    pub fn new(order: Order) -> Self {
        Self {
            order,
            toplevel: None,
            closure: None,
            untrusted: BTreeSet::new(),
            modified: BTreeSet::new(),
            log: PlainLog::default(),
        }
    }

    /// Returns the first program, or the step after a program that ended with exit code 0.
    ///
    /// # Errors
    /// The reason why the job has failed.
    pub fn next(&mut self, finished: Option<Finished>) -> Result<Step, String> {
        let Some(finished) = finished else {
            let running = self.order.running.display();
            let target = fs::read_link(&self.order.running).map_err(|error| {
                format!("can't read {running}, so the host runs no NixOS system: {error}")
            })?;
            let toplevel = StorePath::new(target.to_string_lossy())
                .map_err(|error| format!("{running} leads to no system: {error}"))?;
            let words = ["path-info", "--recursive", "--json", toplevel.as_str()];
            let step = Step::Run(self.nix(&words));
            self.toplevel = Some(toplevel);
            return Ok(step);
        };
        if self.closure.is_some() {
            return self.end();
        }
        self.closure = Some(Closure::parse(&finished.stdout)?);
        let mut words = vec!["store", "verify", "--recursive", "--sigs-needed", "1"];
        if !self.order.contents {
            words.push("--no-contents");
        }
        let toplevel = self.toplevel.clone().ok_or("no system was read")?;
        words.push(toplevel.as_str());
        Ok(Step::Run(self.nix(&words)))
    }

    /// Returns the step after a program that failed: the end, if `nix store verify` failed because of what it found.
    pub fn after_failure(&mut self, end: End) -> Option<Step> {
        let End::Code(code) = end else { return None };
        let found = |bit, found: &BTreeSet<StorePath>| code & bit == 0 || !found.is_empty();
        let is_explained = self.closure.is_some()
            && code & !(CORRUPTED | UNTRUSTED | FAILED) == 0
            && found(CORRUPTED, &self.modified)
            && found(UNTRUSTED, &self.untrusted)
            // It could not read what is not there.
            && found(FAILED, &self.missing());
        if !is_explained {
            return None;
        }
        self.end().ok()
    }

    fn end(&self) -> Result<Step, String> {
        let toplevel = self.toplevel.clone().ok_or("no system was read")?;
        let closure = self.closure.as_ref().ok_or("no closure was read")?;
        let missing = self.missing();
        let found = closure.judge(&self.order.stated, &self.untrusted, &self.modified, &missing);
        let etc = etc::compare(&self.real(&toplevel), &self.order.etc);
        Ok(Step::Done(JobResult::Verify(VerifyResult {
            toplevel,
            paths: closure.len(),
            signed: found.signed,
            attested: found.attested,
            built_here: found.built_here,
            unknown: found.unknown,
            contradicted: found.contradicted,
            missing: missing.len() as u64,
            modified: self.order.contents.then_some(self.modified.len() as u64),
            listed: found.listed,
            left_out: found.left_out,
            etc,
        })))
    }

    /// Returns the paths of the closure that are not in the store.
    fn missing(&self) -> BTreeSet<StorePath> {
        let paths = self.closure.iter().flat_map(Closure::paths);
        let missing = paths.filter(|path| fs::symlink_metadata(self.real(path)).is_err());
        missing.cloned().collect()
    }

    /// Returns a run of Nix.
    fn nix(&self, words: &[&str]) -> Program {
        let options = self.order.options.iter();
        let options = options.flat_map(|(name, value)| ["--option", name.as_str(), value.as_str()]);
        let feature = ["--extra-experimental-features", "nix-command"];
        let words = feature.into_iter().chain(options).chain(words.iter().copied());
        let mut program = Program::new(self.order.nix.clone(), words.map(OsString::from));
        program.limits = Limits {
            max_stdout_bytes: Some(MAX_STDOUT_BYTES),
            memory_bytes: None,
        };
        program
    }

    fn real(&self, path: &StorePath) -> PathBuf {
        real(&self.order.options, path.as_str())
    }

    /// Handles a line of Nix, and returns its text for the log.
    pub fn read_line(&mut self, line: &[u8]) -> Option<String> {
        let line = String::from_utf8_lossy(line).into_owned();
        if let Some((path, what)) = said(&line) {
            let paths = match what {
                Said::Untrusted => &mut self.untrusted,
                Said::Modified => &mut self.modified,
            };
            paths.insert(path);
        }
        self.log.push(line.clone());
        Some(line)
    }

    /// Returns how far it is: of the two programs, those that have ended.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            done: self.closure.is_some().into(),
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

/// What `nix store verify` says of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Untrusted,
    Modified,
}

/// Returns what a line of `nix store verify` says: `path '/nix/store/…' is untrusted`, or `… was modified! expected hash …`.
fn said(line: &str) -> Option<(StorePath, Said)> {
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let (path, rest) = line.strip_prefix("path '")?.split_once('\'')?;
    let what = if rest == " is untrusted" {
        Said::Untrusted
    } else if rest.starts_with(" was modified!") {
        Said::Modified
    } else {
        return None;
    };
    Some((StorePath::new(path).ok()?, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_says_of_a_path_is_read_and_other_lines_are_not() {
        let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
        let of = |line: &str| said(&line.replace('P', path)).map(|(_, what)| what);
        assert_eq!(of("path 'P' is untrusted"), Some(Said::Untrusted));
        assert_eq!(
            of("path 'P' was modified! expected hash 'sha256:x', got 'sha256:y'"),
            Some(Said::Modified)
        );
        for other in [
            "path 'P' is valid",
            "path '/etc' is untrusted",
            "path 'P is untrusted",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
