//! A place for one test: its own directories and cgroup, removed when it is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, ExitCode};
use std::time::Duration;

use leaf_core::id::{JobId, StorePath};
use leaf_core::job::process::{Finished, Program, Step};
use leaf_core::job::{Activities, BuildResult, JobOutcome, JobResult, Progress};
use leaf_job::{JobUpdate, Jobs, Launch, RunningJob, Settings, Work};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) type TestFn = fn() -> Pin<Box<dyn Future<Output = ()>>>;

/// What a test needs of the host.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Need {
    Nothing,
    Root,
    Cgroup,
}

/// Name, need, and test.
pub(crate) type Test = (&'static str, Need, TestFn);

/// Names tests and puts them into a list.
#[macro_export]
macro_rules! tests {
    ($($name:ident $(($need:ident))?),* $(,)?) => {
        pub(crate) const TESTS: &[$crate::lab::Test] =
            &[$((stringify!($name), tests!(@ $($need)?), || Box::pin($name()))),*];
    };
    (@ needs_cgroup) => { $crate::lab::Need::Cgroup };
    (@ needs_root) => { $crate::lab::Need::Root };
    (@) => { $crate::lab::Need::Nothing };
}

pub(crate) fn run(test: TestFn) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(async { tokio::time::timeout(Duration::from_secs(120), test()).await })
        .expect("the test takes too long");
}

pub(crate) fn new_id() -> JobId {
    JobId(Uuid::now_v7())
}

/// The store path that is the result of every test job: of what kind a result is makes no difference here.
pub(crate) const RESULT: &str = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-result";

/// The task of a test job: the words of each of its programs, in turn.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Words {
    pub(crate) program: PathBuf,
    pub(crate) runs: VecDeque<Vec<String>>,
}

/// A test job at work.
struct Talk {
    words: Words,
    lines: u64,
    last_line: Option<String>,
}

impl Talk {
    fn next(&mut self, finished: Option<Finished>) -> Result<Step, String> {
        let printed = finished.map(|finished| String::from_utf8_lossy(&finished.stdout).into_owned());
        if let Some(words) = self.words.runs.pop_front() {
            return Ok(Step::Run(Program {
                program: self.words.program.clone(),
                arguments: std::iter::once("program".into())
                    .chain(words.into_iter().map(Into::into))
                    .collect(),
                limits: Default::default(),
            }));
        }
        if printed.is_some_and(|printed| printed == "nonsense") {
            return Err("the result can't be read".to_owned());
        }
        let store_path = StorePath::new(RESULT).expect("a store path");
        Ok(Step::Done(JobResult::Build(BuildResult {
            outputs: BTreeMap::from([("out".to_owned(), store_path.clone())]),
            store_path,
            derivation: None,
            build_time_ms: 1,
            closure_size_bytes: 1,
            references: Vec::new(),
            references_left_out: 0,
            others_left_out: 0,
            sources: Vec::new(),
            built: 1,
            others: Vec::new(),
            origin: None,
            nar_size_bytes: None,
            nar_sha256: BTreeMap::default(),
        })))
    }

    fn read_line(&mut self, line: &[u8]) -> Option<String> {
        let line = String::from_utf8_lossy(line).into_owned();
        self.lines += 1;
        self.last_line = Some(line.clone());
        Some(line)
    }

    fn progress(&self) -> Progress {
        Progress {
            done: self.lines,
            ..Progress::default()
        }
    }

    fn error(&self) -> Option<String> {
        self.last_line.clone()
    }
}

/// The runner of a test job.
pub(crate) fn run_job(directory: &Path) -> ExitCode {
    leaf_job::runner::main(directory, |job| {
        // As a build keeps its GC roots.
        let _ = std::fs::write(job.result_dir().join("result"), "");
        let work = job.task::<Words>().map(|words| Work {
            state: Talk {
                words,
                lines: 0,
                last_line: None,
            },
            next: Talk::next,
            read_line: Talk::read_line,
            progress: Talk::progress,
            activities: |_| Activities::default(),
            error: Talk::error,
            after_failure: |_, _| None,
            failure: |_, error, _| error.into(),
        });
        job.run(work)
    })
}

pub(crate) struct Lab {
    pub(crate) dir: PathBuf,
    pub(crate) jobs: Jobs,
    pub(crate) settings: Settings,
    /// Different in each test; part of the command line of all of its programs.
    pub(crate) unique: String,
    owned: bool,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("leaf-job-")
            .tempdir()
            .expect("a directory")
            .keep();
        let mut lab = Self::at(&dir);
        lab.owned = true;
        lab
    }

    pub(crate) fn at(dir: &Path) -> Self {
        let unique = dir
            .file_name()
            .and_then(|n| n.to_str())
            .expect("a name")
            .replace('.', "");
        let runner = std::env::current_exe().expect("this program");
        let mut settings = Settings::new(dir, dir.join("results"), runner, vec!["job".into()]);
        let cgroup = leaf_job::default_cgroup().map(|path| path.with_file_name(format!("{unique}.slice")));
        settings.launch = Launch::Child { cgroup };
        Self {
            dir: dir.to_owned(),
            jobs: Jobs::new(settings.clone()),
            settings,
            unique,
            owned: false,
        }
    }

    /// The cgroup below which the jobs have theirs.
    pub(crate) fn cgroup(&self) -> Option<&Path> {
        match &self.settings.launch {
            Launch::Child { cgroup } => cgroup.as_deref(),
            Launch::Unit { slice, .. } => Some(slice),
        }
    }

    /// Applies changed settings.
    pub(crate) fn set(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.jobs = Jobs::new(self.settings.clone());
    }

    /// The task of programs with these words, which are separated by blanks.
    pub(crate) fn words(&self, runs: &[&str]) -> Words {
        let named = |words: &&str| {
            ["named", &self.unique]
                .into_iter()
                .chain(words.split(' '))
                .map(str::to_owned)
                .collect()
        };
        Words {
            program: std::env::current_exe().expect("this program"),
            runs: runs.iter().map(named).collect(),
        }
    }

    pub(crate) fn start(&self, words: &str) -> RunningJob {
        self.start_within(words, Duration::from_secs(100))
    }

    pub(crate) fn start_within(&self, words: &str, time_limit: Duration) -> RunningJob {
        self.jobs
            .start(new_id(), &self.words(&[words]), time_limit)
            .expect("started")
    }

    pub(crate) fn job_dir(&self, id: JobId) -> PathBuf {
        self.settings.jobs_dir.join(id.to_string())
    }

    pub(crate) fn result_dir(&self, id: JobId) -> PathBuf {
        self.settings.results_dir.join(id.to_string())
    }

    /// The command lines of all programs of this test's jobs.
    pub(crate) fn processes(&self) -> Vec<String> {
        let named = format!("named {}", self.unique);
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").expect("/proc").flatten() {
            if let Ok(line) = std::fs::read(entry.path().join("cmdline")) {
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                if line.contains(&named) {
                    found.push(line);
                }
            }
        }
        found
    }

    pub(crate) fn whole_log(&self, id: JobId) -> String {
        let (mut text, mut offset) = (String::new(), 0);
        loop {
            let chunk = self.jobs.read_log(id, offset, 1 << 20).expect("readable");
            text.push_str(&chunk.text);
            if chunk.complete {
                return text;
            }
            assert!(chunk.next_offset > offset, "no progress at {offset}");
            offset = chunk.next_offset;
        }
    }

    /// Mounts a small file system, on which the jobs have their directories from now on.
    pub(crate) fn small_disk(&mut self, size: &str) -> SmallDisk {
        let path = self.dir.join("small");
        std::fs::create_dir(&path).expect("a directory");
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&path)
            .status();
        assert!(status.is_ok_and(|status| status.success()), "root may mount");
        self.set(|settings| settings.jobs_dir = path.join("jobs"));
        SmallDisk(path)
    }
}

/// A small file system, which is unmounted when this is dropped.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Fills it to the last byte.
    pub(crate) fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.0.join("filler")).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
        while file.write_all(&[0]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Waits until the job's log has all of these words.
pub(crate) async fn says(job: &mut RunningJob, wanted: &str) {
    let mut all = String::new();
    while !wanted.split(' ').all(|word| all.contains(word)) {
        match job.next_update().await {
            JobUpdate::Log(chunk) => all.push_str(&chunk.text),
            JobUpdate::Progress(_) => {}
            JobUpdate::Ended(outcome) => panic!("it ended with {outcome:?} and said {all:?}"),
        }
    }
}

/// Returns the reason of a job that failed.
pub(crate) fn failed(outcome: &JobOutcome) -> &str {
    match outcome {
        JobOutcome::Failed(failure) => &failure.error,
        other => panic!("{other:?}"),
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if let Some(cgroup) = self.cgroup() {
            for job in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
                let _ = std::fs::write(job.path().join("cgroup.kill"), "1");
                let _ = std::fs::remove_dir(job.path());
            }
            let _ = std::fs::remove_dir(cgroup);
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
