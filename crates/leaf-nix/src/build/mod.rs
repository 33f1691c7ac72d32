//! `nix build`: its order, its programs, and its result.

mod locking;
mod result;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::id::StorePath;
use leaf_core::job::process::{End, Finished, Program, Step};
use leaf_core::job::{Activities, BuildResult, BuiltDerivation, Failure, JobResult, LockedSource, Progress};
use serde::{Deserialize, Serialize};

use crate::command_line::program;
use crate::installable::{Run, Target};
use crate::internal_json::Tracker;
use crate::path_info::{JSON_FORMAT, PathInfos};
use crate::policy;
use crate::source::{metadata, read_metadata};
use crate::version::NixVersion;
pub(crate) use result::read_build;

/// The number of further derivations that a result lists, since a result is a part of events.
const MOST_OTHERS: usize = 32;

/// The task of the order of a build that is more than one installable with all of its outputs.
pub const TASK: &str = "build";

/// A build's part of a job's order on disk, which every version of leafd reads and writes: `target` where it is one
/// installable with all of its outputs. Otherwise it has the `task`, and no `target`, so that an older runner fails and
/// does not build a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub(crate) nix: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) target: Option<Target>,
    pub(crate) options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) runs: Vec<Run>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) keep_going: bool,
    /// The version of Nix, as its `--version` printed it when leafd was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) version: Option<String>,
}

impl Order {
    /// Returns an order that builds nothing yet.
    pub(crate) fn new(nix: PathBuf, options: BTreeMap<String, String>) -> Self {
        Self {
            nix,
            target: None,
            options,
            task: None,
            runs: Vec::new(),
            keep_going: false,
            version: None,
        }
    }

    /// Returns the version of Nix, if it is known.
    fn version(&self) -> Option<NixVersion> {
        NixVersion::parse(self.version.as_deref()?)
    }
}

/// A build: a state machine that returns the next program and reads the output of the previous one.
#[derive(Debug)]
pub struct Build {
    order: Order,
    runs: Vec<Run>,
    gc_roots: PathBuf,
    tracker: Tracker,
    stage: Stage,
    version: Option<NixVersion>,
    /// The derivations that were built or were there.
    built: Vec<BuiltDerivation>,
    build_time: Duration,
    /// The flake references that are not locked yet, and then what they meant.
    unlocked: Vec<String>,
    sources: Vec<LockedSource>,
    /// The runs that failed, where the build keeps going, and the error of the first of them.
    failed: Vec<usize>,
    error: Option<String>,
}

/// The running program, or the first one.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Version,
    /// The locking of the flake reference of this number.
    Lock(usize),
    /// The run of this number.
    Build(usize),
    /// A run that failed, of which Nix only tells the derivations, by its place among those that failed.
    Plan(usize),
    PathInfo,
}

impl Build {
    /// Returns a build that registers its outputs as GC roots in this directory, which exists.
    #[must_use]
    pub fn new(order: Order, gc_roots: &Path) -> Self {
        let mut runs = order.runs.clone();
        runs.extend(order.target.clone().map(Run::from));
        let mut wanted = runs.iter().flat_map(|run| &run.installables);
        Self {
            // The syntax for outputs depends on the version.
            stage: if wanted.any(|wanted| wanted.outputs.is_some()) {
                Stage::Version
            } else {
                Stage::Build(0)
            },
            unlocked: locking::unlocked(&runs),
            sources: Vec::new(),
            order,
            runs,
            gc_roots: gc_roots.to_owned(),
            tracker: Tracker::default(),
            version: None,
            built: Vec::new(),
            build_time: Duration::ZERO,
            failed: Vec::new(),
            error: None,
        }
    }

    /// Returns the first program, or the step after a program that ended with exit code 0.
    ///
    /// # Errors
    /// The reason why the build has failed.
    pub fn next(&mut self, finished: Option<Finished>) -> Result<Step, String> {
        let Some(finished) = finished else {
            return match self.stage {
                Stage::Version => Ok(Step::Run(Program::new(
                    self.order.nix.clone(),
                    ["--version".into()],
                ))),
                Stage::Lock(_) | Stage::Build(_) | Stage::Plan(_) | Stage::PathInfo => self.lock(0),
            };
        };
        match self.stage {
            Stage::Version => {
                self.version = NixVersion::parse(&String::from_utf8_lossy(&finished.stdout));
                self.lock(0)
            }
            Stage::Lock(nth) => {
                let locked = read_metadata(&finished.stdout)?;
                if let Some(reference) = self.unlocked.get(nth) {
                    locking::replace(&mut self.runs, reference, &locked.reference);
                    self.sources.push(LockedSource {
                        reference: reference.clone(),
                        locked: locked.reference,
                        revision: locked.revision,
                        nar_sha256: locked.nar_sha256,
                    });
                }
                self.build_time += finished.duration;
                self.lock(nth + 1)
            }
            Stage::Build(run) => {
                let mut built = read_build(&finished.stdout)?;
                let roots = self.roots();
                for output in built.iter().flat_map(|built| built.outputs.values()) {
                    if !roots.contains(Path::new(output.as_str())) {
                        return Err(format!("nix made no GC root for {output}"));
                    }
                }
                self.choose(run, &mut built)?;
                self.add(built);
                self.build_time += finished.duration;
                self.build(run + 1)
            }
            Stage::Plan(nth) => {
                let there = |path: &StorePath| Path::new(path.as_str()).exists();
                let mut planned = read_build(&finished.stdout).unwrap_or_default();
                planned.retain(|planned| planned.outputs.values().all(there));
                self.add(planned);
                self.plan(nth + 1)
            }
            Stage::PathInfo => {
                let infos = PathInfos::parse(&finished.stdout)?;
                let references = self.measure(&infos)?;
                match self.error.take() {
                    Some(error) => Err(error),
                    None => self.result(references),
                }
            }
        }
    }

    /// Returns the step after a program that failed: with `keep_going` the next run, and then the search for what was
    /// built.
    pub fn after_failure(&mut self, end: End) -> Option<Step> {
        if !self.order.keep_going || !matches!(end, End::Code(_)) {
            return None;
        }
        let step = match self.stage {
            Stage::Version | Stage::PathInfo => return None,
            // The run of it fails as well.
            Stage::Lock(nth) => self.lock(nth + 1),
            Stage::Build(run) => {
                self.failed.push(run);
                if self.error.is_none() {
                    self.error = self
                        .tracker
                        .error()
                        .or_else(|| Some("nix build failed".to_owned()));
                }
                self.build(run + 1)
            }
            Stage::Plan(nth) => self.plan(nth + 1),
        };
        step.ok()
    }

    /// Returns the failure of the job with this error.
    #[must_use]
    pub fn failure(&self, error: String, end: End) -> Failure {
        policy::named(Failure {
            explanation: Some(Box::new(self.tracker.explanation(&error, end))),
            error,
            partial: if self.order.keep_going {
                self.built.iter().take(MOST_OTHERS).cloned().collect()
            } else {
                Vec::new()
            },
        })
    }

    /// Handles a line of Nix's log, and returns its text for the log, if any.
    pub fn read_line(&mut self, line: &[u8]) -> Option<String> {
        let text = self.tracker.line(line);
        // A plan says again what is to be built.
        text.filter(|_| !matches!(self.stage, Stage::Plan(_)))
    }

    /// Returns the progress of the build.
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
        self.error.clone().or_else(|| self.tracker.error())
    }

    /// Begins to lock a flake reference, or what follows the last one: so all of it is built from one source, which the result names.
    fn lock(&mut self, nth: usize) -> Result<Step, String> {
        self.stage = Stage::Lock(nth);
        match self.unlocked.get(nth) {
            Some(reference) => {
                let program = metadata(&self.order.nix, &self.order.options, reference);
                Ok(Step::Run(program))
            }
            None => self.build(0),
        }
    }

    /// Begins a run, or what follows the last one.
    fn build(&mut self, run: usize) -> Result<Step, String> {
        self.stage = Stage::Build(run);
        let Some(wanted) = self.runs.get(run) else {
            return if self.failed.is_empty() {
                self.path_info()
            } else {
                self.plan(0)
            };
        };
        // The first link has the name that it always had.
        let name = if run == 0 {
            "result".to_owned()
        } else {
            format!("result-of-run-{run}")
        };
        let mut arguments: Vec<OsString> =
            vec!["-v".into(), "--out-link".into(), self.gc_roots.join(name).into()];
        if self.order.keep_going {
            arguments.push("--keep-going".into());
        }
        arguments.extend(self.wanted(wanted)?);
        Ok(Step::Run(program(
            &self.order.nix,
            &self.order.options,
            "build",
            arguments,
        )))
    }

    /// Begins to ask for the derivations of a run that failed, or what follows the last one.
    fn plan(&mut self, nth: usize) -> Result<Step, String> {
        self.stage = Stage::Plan(nth);
        let Some(wanted) = self.failed.get(nth).and_then(|run| self.runs.get(*run)) else {
            return match self.error.take() {
                Some(error) if self.built.is_empty() => Err(error),
                error => {
                    self.error = error;
                    self.path_info()
                }
            };
        };
        let arguments = std::iter::once(OsString::from("--dry-run")).chain(self.wanted(wanted)?);
        Ok(Step::Run(program(
            &self.order.nix,
            &self.order.options,
            "build",
            arguments,
        )))
    }

    fn path_info(&mut self) -> Result<Step, String> {
        self.stage = Stage::PathInfo;
        let paths = self.listed().flat_map(|built| built.outputs.values());
        let version = self.version.clone().or_else(|| self.order.version());
        // Without it the newest Nix warns, and later ones fail.
        let format: &[&str] = match version {
            Some(version) if version.is_since(JSON_FORMAT) => &["--json-format", "1"],
            _ => &[],
        };
        let arguments: Vec<&str> = format
            .iter()
            .copied()
            .chain(["--closure-size", "--"])
            .chain(paths.map(StorePath::as_str))
            .collect();
        Ok(Step::Run(program(
            &self.order.nix,
            &self.order.options,
            "path-info",
            arguments,
        )))
    }

    /// Returns the flags and the installables of a run.
    fn wanted(&self, run: &Run) -> Result<Vec<OsString>, String> {
        let mut arguments: Vec<OsString> = run.flags.iter().map(OsString::from).collect();
        if !run.installables.is_empty() {
            arguments.push("--".into());
        }
        for wanted in &run.installables {
            let words = wanted.words(self.version.as_ref())?;
            arguments.extend(words.into_iter().map(OsString::from));
        }
        Ok(arguments)
    }

    /// Leaves the chosen outputs, where Nix has built the whole derivation.
    fn choose(&self, run: usize, built: &mut [BuiltDerivation]) -> Result<(), String> {
        let wanted = self.runs.get(run).into_iter().flat_map(|run| &run.installables);
        let mut chosen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for wanted in wanted.filter(|wanted| wanted.is_derivation) {
            match wanted.chosen(self.version.as_ref()) {
                Some(names) => chosen.entry(&wanted.text).or_default().extend(names),
                None => return Ok(()),
            }
        }
        for built in built {
            let path = built.derivation.as_ref().map(StorePath::as_str);
            let Some(names) = path.and_then(|path| chosen.get(path)) else {
                continue;
            };
            if let Some(unknown) = names.iter().find(|name| !built.outputs.contains_key(**name)) {
                let known: Vec<&str> = built.outputs.keys().map(String::as_str).collect();
                return Err(format!(
                    "derivation {} has no output {unknown:?}; it has {}",
                    path.unwrap_or_default(),
                    known.join(", ")
                ));
            }
            built.outputs.retain(|name, _| names.contains(name.as_str()));
        }
        Ok(())
    }

    /// Adds derivations; of one that is known, its further outputs.
    fn add(&mut self, built: Vec<BuiltDerivation>) {
        for mut built in built {
            built.origin = Some(self.tracker.origin(&built));
            let known = self.built.iter_mut().find(|known| match &built.derivation {
                Some(derivation) => known.derivation.as_ref() == Some(derivation),
                None => known.outputs == built.outputs,
            });
            match known {
                Some(known) => known.outputs.extend(built.outputs),
                None => self.built.push(built),
            }
        }
    }

    /// Returns the derivations that the result lists.
    fn listed(&self) -> impl Iterator<Item = &BuiltDerivation> {
        self.built.iter().take(MOST_OTHERS + 1)
    }

    /// Adds the sizes of the listed derivations, and returns the references of the first.
    fn measure(&mut self, infos: &PathInfos) -> Result<Vec<StorePath>, String> {
        let mut references = None;
        for built in self.built.iter_mut().take(MOST_OTHERS + 1) {
            let info = infos.of(built.main_output().ok_or(NO_OUTPUT)?)?;
            built.nar_size_bytes = info.nar_size_bytes;
            built.closure_size_bytes = Some(info.closure_size_bytes);
            for (name, path) in &built.outputs {
                let hash = infos.of(path)?.nar_sha256;
                built.nar_sha256.extend(hash.map(|hash| (name.clone(), hash)));
            }
            references.get_or_insert(info.references);
        }
        references.ok_or_else(|| NO_OUTPUT.to_owned())
    }

    fn result(&self, references: Vec<StorePath>) -> Result<Step, String> {
        let (first, others) = self.built.split_first().ok_or(NO_OUTPUT)?;
        Ok(Step::Done(JobResult::Build(BuildResult {
            store_path: first.main_output().ok_or(NO_OUTPUT)?.clone(),
            outputs: first.outputs.clone(),
            derivation: first.derivation.clone(),
            origin: first.origin,
            build_time_ms: u64::try_from(self.build_time.as_millis()).unwrap_or(u64::MAX),
            closure_size_bytes: first.closure_size_bytes.unwrap_or_default(),
            nar_size_bytes: first.nar_size_bytes,
            nar_sha256: first.nar_sha256.clone(),
            references,
            references_left_out: 0,
            built: self.tracker.built(),
            others: others.iter().take(MOST_OTHERS).cloned().collect(),
            others_left_out: others.len().saturating_sub(MOST_OTHERS) as u64,
            sources: self.sources.clone(),
        })))
    }

    /// Returns the paths that the job's GC roots hold.
    fn roots(&self) -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(&self.gc_roots).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .collect()
    }
}

const NO_OUTPUT: &str = "nix build listed no output";

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
    const DRV: &str = "/nix/store/11bgd045z0d4icpbc2yyz4gx48ak44la-a.drv";

    fn build(target: Target, gc_roots: &Path) -> Build {
        let options = BTreeMap::from([("max-jobs".to_owned(), "4".to_owned())]);
        let order = Order {
            target: Some(target),
            ..Order::new("/bin/nix".into(), options)
        };
        Build::new(order, gc_roots)
    }

    fn finished(stdout: &str) -> Option<Finished> {
        Some(Finished {
            stdout: stdout.as_bytes().to_owned(),
            duration: Duration::from_millis(45),
        })
    }

    fn arguments(step: Result<Step, String>) -> String {
        match step.expect("a step") {
            Step::Run(Program {
                program, arguments, ..
            }) => {
                assert_eq!(program, Path::new("/bin/nix"));
                arguments.join(" ".as_ref()).into_string().expect("UTF-8")
            }
            Step::Done(result) => panic!("{result:?}"),
        }
    }

    /// An order that leafd 0.1.0 wrote before leaf-job was a crate of its own.
    #[test]
    fn the_format_of_orders_on_disk_stays_byte_for_byte() {
        for line in [
            r#"{"nix":"nix","target":{"derivation":"/nix/store/11bgd045z0d4icpbc2yyz4gx48ak44la-a.drv"},"options":{}}"#,
            r#"{"nix":"/bin/nix","target":{"other":{"flags":["--file","/a.nix"],"installable":null}},"options":{"max-jobs":"4"}}"#,
        ] {
            let order: Order = serde_json::from_str(line).expect("readable");
            assert_eq!(serde_json::to_string(&order).expect("JSON"), line);
        }
    }

    #[test]
    fn a_derivation_is_built_with_all_outputs_in_the_syntax_of_each_version() {
        let roots = tempfile::tempdir().expect("a directory");
        for (version, outputs) in [("nix (Nix) 2.8.0", ""), ("nix (Nix) 2.13.0", "^*"), ("?", "^*")] {
            let mut build = build(Target::Derivation(DRV.to_owned()), roots.path());
            assert_eq!(arguments(build.next(None)), "--version");
            assert_eq!(
                arguments(build.next(finished(version))),
                format!(
                    "build --json --extra-experimental-features nix-command flakes --log-format internal-json \
                     --option max-jobs 4 -v --out-link {}/result -- {DRV}{outputs}",
                    roots.path().display()
                )
            );
        }
    }

    #[test]
    fn a_build_has_a_result_once_its_gc_root_and_its_closure_are_known() {
        let roots = tempfile::tempdir().expect("a directory");
        let target = Target::Other {
            flags: vec!["--file".to_owned(), "/a.nix".to_owned()],
            installable: None,
        };
        let mut build = build(target, roots.path());
        assert!(arguments(build.next(None)).ends_with("/result --file /a.nix"));
        let built = format!(r#"[{{"drvPath":"{DRV}","outputs":{{"out":"{OUT}"}}}}]"#);
        let why = build.next(finished(&built)).expect_err("there is no root");
        assert!(why.contains("no GC root"), "{why}");
        std::os::unix::fs::symlink(OUT, roots.path().join("result")).expect("a root");
        assert!(arguments(build.next(finished(&built))).ends_with(&format!("--closure-size -- {OUT}")));
        let info = format!(r#"[{{"path":"{OUT}","closureSize":7,"references":[]}}]"#);
        let Ok(Step::Done(JobResult::Build(result))) = build.next(finished(&info)) else {
            panic!("it is done")
        };
        assert_eq!(
            (result.build_time_ms, result.closure_size_bytes, result.built),
            (45, 7, 0)
        );
        assert_eq!(result.derivation.expect("a derivation").as_str(), DRV);
    }

    #[test]
    fn the_result_of_several_derivations_is_that_of_the_first_and_lists_the_others() {
        let roots = tempfile::tempdir().expect("a directory");
        let target = Target::Other {
            flags: vec!["--file".to_owned(), "/list.nix".to_owned()],
            installable: None,
        };
        let mut build = build(target, roots.path());
        build.next(None).expect("a step");
        let path = |number: usize| format!("/nix/store/{number:032}-x");
        let built: Vec<String> = (10..50)
            .map(|n| format!(r#"{{"drvPath":"{0}.drv","outputs":{{"out":"{0}"}}}}"#, path(n)))
            .collect();
        let built = format!("[{}]", built.join(","));
        for n in 10..49 {
            std::os::unix::fs::symlink(path(n), roots.path().join(n.to_string())).expect("a root");
        }
        let why = build.next(finished(&built)).expect_err("one has no root");
        assert!(why.contains(&path(49)), "{why}");
        std::os::unix::fs::symlink(path(49), roots.path().join("49")).expect("a root");
        assert!(arguments(build.next(finished(&built))).ends_with(&path(10 + MOST_OTHERS)));
        let infos: Vec<String> = (10..=10 + MOST_OTHERS)
            .map(|n| {
                format!(
                    r#"{{"path":"{}","narSize":3,"closureSize":{n},"references":[]}}"#,
                    path(n)
                )
            })
            .collect();
        let info = format!("[{}]", infos.join(","));
        let Ok(Step::Done(JobResult::Build(result))) = build.next(finished(&info)) else {
            panic!("it is done")
        };
        let derivation = |n| Some(StorePath::new(format!("{}.drv", path(n))).expect("a path"));
        assert_eq!(
            (result.store_path.as_str(), result.outputs.len()),
            (&*path(10), 1)
        );
        assert_eq!(result.derivation, derivation(10));
        assert_eq!(result.others.len(), MOST_OTHERS);
        assert_eq!(result.others_left_out, 39 - MOST_OTHERS as u64);
        assert_eq!(result.others[0].derivation, derivation(11));
        assert_eq!(result.others[1].closure_size_bytes, Some(12));
        assert_eq!(result.others[0].outputs["out"].as_str(), path(11));
    }
}
