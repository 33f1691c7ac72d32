//! A place for one test: its own directories and GC roots, removed when it is dropped.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use leaf_core::job::process::{End, Finished, Program, Step};
use leaf_core::job::{
    BuildResult, BuildTask, BuiltDerivation, EvalResult, EvalTask, Failure, Installable, JobResult, Progress,
};
use leaf_nix::build::Build;
use leaf_nix::eval::Eval;
use leaf_nix::{Nix, NixError, NixVersion, Settings};

/// Name and test.
pub(crate) type Test = (&'static str, fn());

/// Names tests and puts them into a list.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::lab::Test] = &[$((stringify!($name), $name)),*];
    };
}

pub(crate) fn has_nix() -> bool {
    // GC roots of its own need root.
    rustix::process::geteuid().is_root()
        && Path::new("/bin/busybox").exists()
        && Command::new("nix")
            .arg("--version")
            .output()
            .is_ok_and(|o| o.status.success())
}

/// A build that has ended.
pub(crate) struct Ended {
    pub(crate) result: Result<BuildResult, String>,
    /// What was built although it failed.
    pub(crate) partial: Vec<BuiltDerivation>,
    pub(crate) log: String,
    /// How far it was after each line of Nix's log.
    pub(crate) progress: Vec<Progress>,
    pub(crate) gc_roots: PathBuf,
}

pub(crate) struct Lab {
    pub(crate) dir: PathBuf,
    pub(crate) nix: Nix,
    pub(crate) settings: Settings,
    /// Different in each run, so that nothing was built before.
    pub(crate) unique: String,
    builds: Cell<u32>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("leaf-nix-")
            .tempdir()
            .expect("a directory")
            .keep();
        let unique = dir
            .file_name()
            .and_then(|n| n.to_str())
            .expect("a name")
            .replace('.', "");
        let mut settings = Settings::new(&dir);
        settings.options = Self::options();
        let lab = Self {
            nix: Nix::new(settings.clone()),
            dir,
            settings,
            unique,
            builds: Cell::new(0),
        };
        // As leafd does at its start.
        lab.check().expect("it works");
        lab
    }

    /// The flags of `nix path-info --json` that choose its first format, where there are several.
    pub(crate) fn json_format(&self) -> &'static [&'static str] {
        let version = self.check().expect("it works");
        match (version.major, version.minor) >= (2, 34) {
            true => &["--json-format", "1"],
            false => &[],
        }
    }

    /// Checks the `nix` program.
    pub(crate) fn check(&self) -> Result<NixVersion, NixError> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(self.nix.check())
    }

    pub(crate) fn options() -> BTreeMap<String, String> {
        [
            ("sandbox", "true"),
            ("sandbox-paths", "/bin/sh=/bin/busybox"),
            ("sandbox-fallback", "false"),
            ("substituters", ""),
            ("build-users-group", ""),
            ("flake-registry", ""),
            ("max-jobs", "4"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
    }

    /// Applies changed settings.
    pub(crate) fn set(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.nix = Nix::new(self.settings.clone());
        let _ = self.check();
    }

    /// A file with one derivation that runs a script.
    pub(crate) fn script(&self, name: &str, script: &str) -> Installable {
        self.file(
            name,
            &format!(
                "{{ outputs ? [ \"out\" ] }}: {}",
                self.derivation(name, script, "inherit outputs;")
            ),
        )
    }

    pub(crate) fn derivation(&self, name: &str, script: &str, more: &str) -> String {
        let full = format!("{}-{name}", self.unique);
        format!(
            "derivation {{ name = \"{full}\"; system = \"{}-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" ''{script}'' ]; {more} }}",
            std::env::consts::ARCH
        )
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> Installable {
        let path = self.dir.join(format!("{name}.nix"));
        std::fs::write(&path, text).expect("written");
        Installable::File {
            path: path.to_str().expect("UTF-8").to_owned(),
            attribute: None,
        }
    }

    /// Builds one installable.
    pub(crate) fn build(&self, installable: Installable) -> Ended {
        self.run(&BuildTask::new(vec![installable], 100))
    }

    /// Runs the programs of a build in turn, as a job's runner does.
    pub(crate) fn run(&self, task: &BuildTask) -> Ended {
        let order = self.nix.build(task).expect("good installables");
        let gc_roots = self.gc_roots();
        let mut build = Build::new(order, &gc_roots);
        let (mut log, mut progress) = (String::new(), Vec::new());
        let result = follow(&mut build, &mut log, &mut progress);
        let failure = result
            .as_ref()
            .err()
            .map(|why| build.failure(why.clone(), End::Code(1)));
        Ended {
            result,
            partial: failure.map(|failure| failure.partial).unwrap_or_default(),
            log,
            progress,
            gc_roots,
        }
    }

    /// Runs the programs of an evaluation in turn, within their bounds, as a job's runner does.
    pub(crate) fn eval(&self, task: &EvalTask) -> Result<EvalResult, Failure> {
        let eval = Eval::new(self.nix.eval(task).expect("a good task"));
        let ended = drive(Work {
            state: eval,
            next: Eval::next,
            read_line: Eval::read_line,
            error: Eval::error,
            after_failure: |_, _| None,
            failure: Eval::failure,
        });
        match ended? {
            JobResult::Eval(result) => Ok(result),
            other => panic!("{other:?}"),
        }
    }

    /// Makes a directory for the GC roots of a job.
    pub(crate) fn gc_roots(&self) -> PathBuf {
        self.builds.set(self.builds.get() + 1);
        let gc_roots = self.roots().join(self.builds.get().to_string());
        std::fs::create_dir_all(&gc_roots).expect("a directory");
        gc_roots
    }

    fn roots(&self) -> PathBuf {
        Path::new("/nix/var/nix/gcroots").join(&self.unique)
    }

    pub(crate) fn nix_command(&self, words: &[&str]) -> String {
        let mut command = Command::new("nix");
        command.args(["--extra-experimental-features", "nix-command flakes"]);
        for (name, value) in Self::options() {
            command.args(["--option", &name, &value]);
        }
        let output = command.args(words).output().expect("nix runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}

/// A task of a job, as leafd passes it to the runner.
pub(crate) struct Work<S> {
    pub(crate) state: S,
    pub(crate) next: fn(&mut S, Option<Finished>) -> Result<Step, String>,
    pub(crate) read_line: fn(&mut S, &[u8]) -> Option<String>,
    pub(crate) error: fn(&S) -> Option<String>,
    pub(crate) after_failure: fn(&mut S, End) -> Option<Step>,
    pub(crate) failure: fn(&S, String, End) -> Failure,
}

/// Runs the programs of a task in turn, within their bounds, as a job's runner does.
pub(crate) fn drive<S>(mut work: Work<S>) -> Result<JobResult, Failure> {
    let mut step = (work.next)(&mut work.state, None);
    loop {
        let program = match step {
            Ok(Step::Run(program)) => program,
            Ok(Step::Done(result)) => return Ok(result),
            Err(why) => return Err((work.failure)(&work.state, why, End::Unusable)),
        };
        let mut command = Command::new("prlimit");
        let bytes = program.limits.memory_bytes.unwrap_or(u64::MAX >> 1);
        let begin = Instant::now();
        let output = command
            .arg(format!("--as={bytes}"))
            .arg("--")
            .arg(&program.program)
            .args(&program.arguments)
            .output()
            .expect("prlimit runs");
        for line in output.stderr.split(|byte| *byte == b'\n') {
            (work.read_line)(&mut work.state, line);
        }
        let max = program.limits.max_stdout_bytes.unwrap_or(usize::MAX);
        if output.stdout.len() > max {
            return Err((work.failure)(
                &work.state,
                "too much".to_owned(),
                End::TooMuchOutput,
            ));
        }
        step = if output.status.success() {
            (work.next)(
                &mut work.state,
                Some(Finished {
                    stdout: output.stdout,
                    duration: begin.elapsed(),
                }),
            )
        } else {
            let end = output.status.code().map_or(End::Signal(6), End::Code);
            match (work.after_failure)(&mut work.state, end) {
                Some(step) => Ok(step),
                None => {
                    let error = (work.error)(&work.state).unwrap_or_default();
                    return Err((work.failure)(&work.state, error, end));
                }
            }
        };
    }
}

fn follow(build: &mut Build, log: &mut String, progress: &mut Vec<Progress>) -> Result<BuildResult, String> {
    let mut step = build.next(None);
    loop {
        let Program {
            program, arguments, ..
        } = match step? {
            Step::Run(program) => program,
            Step::Done(result) => return Ok(result.build().expect("a build").clone()),
        };
        let begin = Instant::now();
        let mut child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("can't run {}: {error}", program.display()))?;
        let mut stdout = child.stdout.take().expect("piped");
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        for line in BufReader::new(child.stderr.take().expect("piped")).split(b'\n') {
            if let Some(text) = build.read_line(&line.expect("readable")) {
                log.push_str(&text);
                log.push('\n');
            }
            progress.push(build.progress());
        }
        let stdout = reader.join().expect("no panic").expect("readable");
        let status = child.wait().expect("its end");
        step = if status.success() {
            build.next(Some(Finished {
                stdout,
                duration: begin.elapsed(),
            }))
        } else {
            let end = status.code().map_or(End::Unusable, End::Code);
            match build.after_failure(end) {
                Some(step) => Ok(step),
                None => return Err(build.error().expect("a reason")),
            }
        };
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
        let _ = std::fs::remove_dir_all(self.roots());
    }
}
