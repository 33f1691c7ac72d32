//! `nix build`: its order, its programs, and its result.

mod result;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::id::StorePath;
use leaf_core::job::process::{Finished, Program, Step};
use leaf_core::job::{BuildResult, BuiltDerivation, JobResult, Progress};
use serde::{Deserialize, Serialize};

use crate::command_line::program;
use crate::installable::Target;
use crate::internal_json::Tracker;
use crate::path_info::read_path_info;
use crate::version::NixVersion;
use result::read_build;

/// The number of further derivations that a result lists, since a result is a part of events.
const MOST_OTHERS: usize = 32;

/// A build's part of a job's order on disk, which every version of leafd reads and writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    pub(crate) nix: PathBuf,
    pub(crate) target: Target,
    pub(crate) options: BTreeMap<String, String>,
}

/// A build: a state machine that returns the next program and reads the output of the previous one.
#[derive(Debug)]
pub struct Build {
    order: Order,
    gc_roots: PathBuf,
    tracker: Tracker,
    stage: Stage,
}

/// The running or the first program.
#[derive(Debug)]
enum Stage {
    Version,
    Build,
    PathInfo {
        built: Vec<BuiltDerivation>,
        build_time: Duration,
    },
}

impl Build {
    /// Returns a build that registers its outputs as GC roots in this directory, which exists.
    #[must_use]
    pub fn new(order: Order, gc_roots: &Path) -> Self {
        Self {
            stage: match order.target {
                // The syntax for all outputs of a derivation depends on the version.
                Target::Derivation(_) => Stage::Version,
                Target::Other { .. } => Stage::Build,
            },
            order,
            gc_roots: gc_roots.to_owned(),
            tracker: Tracker::default(),
        }
    }

    /// Returns the first program, or the step after a program that ended with exit code 0.
    ///
    /// # Errors
    /// The reason why the build has failed.
    pub fn next(&mut self, finished: Option<Finished>) -> Result<Step, String> {
        let Some(finished) = finished else {
            return Ok(Step::Run(match &self.stage {
                Stage::Version => Program {
                    program: self.order.nix.clone(),
                    arguments: vec!["--version".into()],
                },
                Stage::Build | Stage::PathInfo { .. } => self.build_program(None),
            }));
        };
        match &self.stage {
            Stage::Version => {
                let version = NixVersion::parse(&String::from_utf8_lossy(&finished.stdout));
                self.stage = Stage::Build;
                Ok(Step::Run(self.build_program(version)))
            }
            Stage::Build => {
                let built = read_build(&finished.stdout)?;
                let roots = self.roots();
                for output in built.iter().flat_map(|built| built.outputs.values()) {
                    if !roots.contains(Path::new(output.as_str())) {
                        return Err(format!("nix made no GC root for {output}"));
                    }
                }
                let first = main_output(&built)?;
                let path_info = program(
                    &self.order.nix,
                    &self.order.options,
                    "path-info",
                    ["--closure-size", "--", first.as_str()],
                );
                self.stage = Stage::PathInfo {
                    built,
                    build_time: finished.duration,
                };
                Ok(Step::Run(path_info))
            }
            Stage::PathInfo { built, build_time } => {
                let path = main_output(built)?;
                let info = read_path_info(&finished.stdout, path)?;
                let (first, others) = built.split_first().ok_or(NO_OUTPUT)?;
                Ok(Step::Done(JobResult::Build(BuildResult {
                    store_path: path.clone(),
                    outputs: first.outputs.clone(),
                    derivation: first.derivation.clone(),
                    build_time_ms: u64::try_from(build_time.as_millis()).unwrap_or(u64::MAX),
                    closure_size_bytes: info.closure_size_bytes,
                    references: info.references,
                    references_left_out: 0,
                    built: self.tracker.built(),
                    others: others.iter().take(MOST_OTHERS).cloned().collect(),
                    others_left_out: others.len().saturating_sub(MOST_OTHERS) as u64,
                })))
            }
        }
    }

    /// Handles a line of Nix's log, and returns its text for the log, if any.
    pub fn read_line(&mut self, line: &[u8]) -> Option<String> {
        self.tracker.line(line)
    }

    /// Returns the progress of the build.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.tracker.progress()
    }

    /// Returns Nix's error, as far as it printed one, in at most 4 KiB.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        self.tracker.error()
    }

    fn build_program(&self, version: Option<NixVersion>) -> Program {
        let link = self.gc_roots.join("result");
        let mut arguments: Vec<OsString> = vec!["-v".into(), "--out-link".into(), link.into()];
        match &self.order.target {
            Target::Derivation(path) => {
                // Since 2.15 the path alone means the derivation itself; `^*` is supported since 2.13.
                let with_outputs = version.is_none_or(|v| (v.major, v.minor) >= (2, 13));
                let outputs = if with_outputs { "^*" } else { "" };
                arguments.extend(["--".into(), format!("{path}{outputs}").into()]);
            }
            Target::Other { flags, installable } => {
                arguments.extend(flags.iter().map(OsString::from));
                if let Some(installable) = installable {
                    arguments.extend(["--".into(), installable.into()]);
                }
            }
        }
        program(&self.order.nix, &self.order.options, "build", arguments)
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

fn main_output(built: &[BuiltDerivation]) -> Result<&StorePath, String> {
    let first = built.first().and_then(BuiltDerivation::main_output);
    first.ok_or_else(|| NO_OUTPUT.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a";
    const DRV: &str = "/nix/store/11bgd045z0d4icpbc2yyz4gx48ak44la-a.drv";

    fn build(target: Target, gc_roots: &Path) -> Build {
        let order = Order {
            nix: "/bin/nix".into(),
            target,
            options: BTreeMap::from([("max-jobs".to_owned(), "4".to_owned())]),
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
            Step::Run(Program { program, arguments }) => {
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
        assert!(arguments(build.next(finished(&built))).ends_with(&path(10)));
        let info = format!(r#"[{{"path":"{}","closureSize":7,"references":[]}}]"#, path(10));
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
        assert_eq!(result.others[0].outputs["out"].as_str(), path(11));
    }
}
