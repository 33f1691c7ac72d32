//! The store's garbage: its orders, its programs, and its results.
//!
//! `nix-store` does it: `nix store gc` tells neither what a dry run would delete nor what holds a path. Through a nix-daemon
//! every user may collect garbage, and the daemon deletes only what no root and no running build needs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use leaf_core::id::{JobId, StorePath};
use leaf_core::job::gc::{GcResult, MOST_PATHS, MOST_ROOTS, ROOT_BYTES, Root, RootsResult};
use leaf_core::job::process::{End, Finished, Limits, Program, Step};
use leaf_core::job::{Failure, JobResult, Progress};
use serde::{Deserialize, Serialize};

use crate::command_line::real;
use crate::internal_json::cut;
use crate::plain_log::{PlainLog, absent, failure};

/// The task of the order of both.
pub const TASK: &str = "gc";

/// The directory whose disk is that of the store.
const STORE: &str = "/nix/store";
/// The maximum size of what a program prints, in bytes: 90 of each of a million store paths.
const MAX_STDOUT_BYTES: usize = 128 << 20;

/// An order on disk of a job about the store's garbage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Always [`TASK`].
    pub(crate) task: String,
    /// The program `nix-store`.
    pub(crate) nix_store: PathBuf,
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) what: What,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// Delete, until so many bytes are free.
    Collect {
        free_bytes: Option<u64>,
        given_up_jobs: u64,
    },
    /// Find out what would be deleted.
    DryRun { given_up_jobs: u64 },
    /// Find what holds a path, or all roots.
    Roots { path: Option<String> },
}

/// A job about the store's garbage.
#[derive(Debug)]
pub struct Gc {
    order: Order,
    free_before: u64,
    /// The dead store paths of a dry run, once they are known.
    dead: Option<BTreeSet<String>>,
    deleted: u64,
    /// The lines that report no deletion.
    log: PlainLog,
}

impl Gc {
    /// Returns a job.
    #[must_use]
    pub fn new(order: Order) -> Self {
        Self {
            order,
            free_before: 0,
            dead: None,
            deleted: 0,
            log: PlainLog::default(),
        }
    }

    /// Returns the first program, or the step after a program that ended with exit code 0.
    ///
    /// # Errors
    /// The reason why the job has failed.
    pub fn next(&mut self, finished: Option<Finished>) -> Result<Step, String> {
        let Some(finished) = finished else {
            self.free_before = self.free();
            if let What::Roots { path: Some(path) } = &self.order.what
                && !self.real(path).exists()
            {
                return Err(absent(path));
            }
            return Ok(self.run(&match &self.order.what {
                What::Collect { free_bytes: None, .. } => vec!["--gc".to_owned()],
                What::Collect {
                    free_bytes: Some(bytes),
                    ..
                } => vec!["--gc".to_owned(), "--max-freed".to_owned(), bytes.to_string()],
                What::DryRun { .. } => vec!["--gc".to_owned(), "--print-dead".to_owned()],
                What::Roots { path: None } => vec!["--gc".to_owned(), "--print-roots".to_owned()],
                What::Roots { path: Some(path) } => {
                    vec!["--query".to_owned(), "--roots".to_owned(), path.clone()]
                }
            }));
        };
        let text = String::from_utf8_lossy(&finished.stdout);
        match &self.order.what {
            What::Collect { given_up_jobs, .. } => Ok(Step::Done(JobResult::Gc(GcResult {
                paths: self.deleted,
                given_up_jobs: *given_up_jobs,
                free_bytes_before: self.free_before,
                free_bytes_after: self.free(),
                ..GcResult::default()
            }))),
            What::DryRun { given_up_jobs } => {
                let Some(dead) = &self.dead else {
                    let lines = text.lines().filter(|line| line.starts_with('/'));
                    self.dead = Some(lines.map(str::to_owned).collect());
                    return Ok(self.sizes());
                };
                let mut sizes: Vec<(u64, StorePath)> = text
                    .lines()
                    .filter_map(|line| {
                        let (path, size) = line.split_once(char::is_whitespace)?;
                        let known = dead.contains(path).then(|| StorePath::new(path).ok())?;
                        Some((size.trim().parse().ok()?, known?))
                    })
                    .collect();
                sizes.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
                Ok(Step::Done(JobResult::Gc(GcResult {
                    dry_run: true,
                    paths: dead.len() as u64,
                    nar_bytes: Some(sizes.iter().map(|(size, _)| size).sum()),
                    largest: sizes.into_iter().take(MOST_PATHS).map(|(_, path)| path).collect(),
                    given_up_jobs: *given_up_jobs,
                    free_bytes_before: self.free_before,
                    free_bytes_after: self.free(),
                })))
            }
            What::Roots { .. } => {
                let mut roots: Vec<Root> = text.lines().filter_map(read_root).collect();
                let roots_left_out = roots.len().saturating_sub(MOST_ROOTS) as u64;
                roots.truncate(MOST_ROOTS);
                Ok(Step::Done(JobResult::Roots(RootsResult {
                    roots,
                    roots_left_out,
                })))
            }
        }
    }

    fn run(&self, words: &[String]) -> Step {
        let options = self.order.options.iter();
        let options = options.flat_map(|(name, value)| ["--option", name.as_str(), value.as_str()]);
        let words = words.iter().map(String::as_str).chain(options);
        Step::Run(limited(Program::new(
            self.order.nix_store.clone(),
            words.map(OsString::from),
        )))
    }

    /// Returns the program that prints the size of each valid path of the store.
    fn sizes(&self) -> Step {
        let nix = self.order.nix_store.with_file_name("nix");
        let options = self.order.options.iter();
        let options = options.flat_map(|(name, value)| ["--option", name.as_str(), value.as_str()]);
        let words = [
            "path-info",
            "--all",
            "--size",
            "--extra-experimental-features",
            "nix-command",
        ];
        let words = words.into_iter().chain(options).map(OsString::from);
        Step::Run(limited(Program::new(nix, words)))
    }

    /// Returns the free space of the store's disk, in bytes.
    fn free(&self) -> u64 {
        free_bytes(&self.real(STORE)).unwrap_or_default()
    }

    fn real(&self, path: &str) -> PathBuf {
        real(&self.order.options, path)
    }

    /// Handles a line of the program, and returns its text for the log.
    pub fn read_line(&mut self, line: &[u8]) -> Option<String> {
        let line = String::from_utf8_lossy(line);
        if line.starts_with("deleting '") {
            self.deleted += 1;
        } else {
            self.log.push(line.clone().into_owned());
        }
        Some(line.into_owned())
    }

    /// Returns the progress: the store paths that were deleted.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            done: self.deleted,
            expected: self.deleted,
            ..Progress::default()
        }
    }

    /// Returns the error, as far as there is one, in at most 4 KiB.
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

fn limited(mut program: Program) -> Program {
    program.limits = Limits {
        max_stdout_bytes: Some(MAX_STDOUT_BYTES),
        memory_bytes: None,
    };
    program
}

/// Returns the free space of a directory's disk for users other than root, in bytes.
///
/// # Errors
/// It can't be read.
pub fn free_bytes(directory: &Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(directory)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Reads a line of `nix-store --gc --print-roots` or `--query --roots`: `LINK -> PATH`.
fn read_root(line: &str) -> Option<Root> {
    let (link, path) = line.rsplit_once(" -> ").unwrap_or(("{memory}", line));
    // The newest Nix quotes it.
    let quoted = link.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let link = quoted.unwrap_or(link);
    // A job's results are in a directory with its id.
    let job = link.split('/').find_map(|part| part.parse::<JobId>().ok());
    let mut shown = link.to_owned();
    cut(&mut shown, ROOT_BYTES);
    Some(Root {
        link: shown,
        path: StorePath::new(path.trim()).ok()?,
        job: job.filter(|_| link.contains("cim-leaf")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_read_with_the_job_whose_result_they_are() {
        let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
        let id = "01890a5d-ac96-774b-bcce-b302099a8057";
        let of = |link: &str| read_root(&format!("{link} -> {path}")).expect("a root");
        let job = of(&format!("/nix/var/nix/gcroots/cim-leaf/edge/{id}/result"));
        assert_eq!(job.job.map(|job| job.to_string()).as_deref(), Some(id));
        let quoted = of(&format!("\"/nix/var/nix/gcroots/cim-leaf/edge/{id}/result\""));
        assert_eq!((&quoted.link, quoted.job), (&job.link, job.job));
        assert_eq!(of("/home/a -> b/result").link, "/home/a -> b/result");
        assert_eq!(of(&format!("/srv/{id}")).job, None);
        assert_eq!(of("{censored}").link, "{censored}");
        assert_eq!(read_root("warning: something"), None);
    }
}
