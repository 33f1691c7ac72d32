//! The daemon's side of jobs: starts, finds, reads, cancels and forgets them by their ids.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use leaf_core::command::LogChunk;
use leaf_core::error::chain;
use leaf_core::host_op::HostOp;
use leaf_core::id::JobId;
use leaf_core::job::{Activities, JobOutcome, Progress};
use leaf_host::cgroup::{self, Cgroup};
use leaf_host::process::ProcessHandle;
use leaf_host::task_limit;
use rustix::process::Signal;
use serde::Serialize;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::JobError;
use crate::directory::{ACTIVITIES, JobDirectory, ORDER, OUTCOME, PROGRESS, RUNNER_ERRORS};
use crate::launch::Launch;
use crate::log;
use crate::order::{Order, OrderFile};
use crate::outcome::Ended;
use crate::program::ProgramOrder;
use crate::running::{Cleanup, RunningJob, conclude};

/// The variables of leafd's environment that every child runner inherits. They contain no secrets.
const ENVIRONMENT: &[&str] = &[
    "HOME",
    "PATH",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "TZDIR",
];

/// The maximum number of a job's processes and threads, as the helper sets it for units.
const MAX_TASKS: u64 = 4096;

/// The settings of jobs.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory of the jobs' directories. It is created if it does not exist.
    pub jobs_dir: PathBuf,
    /// The directory of the jobs' result directories (with a build's GC roots), each of which outlives the job's
    /// directory until the job is [released](Jobs::release). With [`Launch::Unit`] it is `root` in the job's directory.
    pub results_dir: PathBuf,
    /// The program that runs a job. It gets the job's directory after `runner_args`, and calls
    /// [`runner::main`](crate::runner::main).
    pub runner: PathBuf,
    /// The arguments before the directory, such as `nix-job`.
    pub runner_args: Vec<OsString>,
    /// Additional variables of this process's environment that the jobs need. The helper sets a unit's environment.
    pub environment: Vec<String>,
    /// The grace time of a program that is asked to end.
    pub cancel_grace: Duration,
    /// The maximum size of a log, head and tail together, in bytes.
    pub max_log_bytes: u64,
    /// The maximum number of processes and threads of a job that is a child of this process, with its runner; further ones can't be
    /// started. The helper bounds those of a unit.
    pub max_tasks: u64,
    /// How runners are started. With [`Launch::Unit`] the jobs' directory must exist, as created by the helper's
    /// `tmpfiles.d`.
    pub launch: Launch,
}

impl Settings {
    /// Returns settings with a grace time of 10 s, 16 MiB of log, and children in the [`default_cgroup`].
    #[must_use]
    pub fn new(state_dir: &Path, results_dir: PathBuf, runner: PathBuf, runner_args: Vec<OsString>) -> Self {
        Self {
            jobs_dir: state_dir.join("jobs"),
            results_dir,
            runner,
            runner_args,
            environment: Vec::new(),
            cancel_grace: Duration::from_secs(10),
            max_log_bytes: 16 * 1024 * 1024,
            max_tasks: MAX_TASKS,
            launch: Launch::Child {
                cgroup: default_cgroup(),
            },
        }
    }
}

/// Returns the parent of the cgroups of jobs that are children of this process, if cgroup v2 is mounted and this
/// process is root. The slice is named after the oldest kind of job.
#[must_use]
pub fn default_cgroup() -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    Some(cgroup::mount().ok()?.join("cim-leaf-nix.slice"))
}

/// The state of a job according to its files.
#[derive(Debug)]
pub enum Found {
    /// It is running.
    Running(Box<RunningJob>),
    /// It has ended, and none of its processes is left.
    Ended(JobOutcome),
    /// It was never started, or its directory is missing; the text says which.
    NotStarted(String),
}

/// The result of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// The jobs whose files were removed.
    pub removed: Vec<JobId>,
    /// Unknown running jobs, which the caller must cancel.
    pub running: Vec<JobId>,
    /// Unknown jobs whose files could not be removed, with the reason.
    pub kept: Vec<(JobId, String)>,
}

/// The process jobs of a leaf. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Jobs(Arc<Settings>);

impl Jobs {
    /// Returns the jobs with these settings. Nothing is created before the first job starts.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(settings))
    }

    fn directory(&self, id: JobId) -> JobDirectory {
        let path = self.0.jobs_dir.join(id.to_string());
        match self.0.launch {
            Launch::Child { .. } => JobDirectory::new(path),
            Launch::Unit { .. } => JobDirectory::shared(path),
        }
    }

    fn result_dir(&self, id: JobId) -> PathBuf {
        match self.0.launch {
            Launch::Child { .. } => self.0.results_dir.join(id.to_string()),
            Launch::Unit { .. } => self.directory(id).path().join("root"),
        }
    }

    fn cleanup(&self, id: JobId) -> Cleanup {
        Cleanup {
            cgroup: self.0.launch.child_cgroup(id),
            tasks_cgroup: None,
            result_dir: self.result_dir(id),
        }
    }

    /// Returns whether a job has running processes.
    fn runs(&self, id: JobId) -> Result<bool, JobError> {
        let directory = self.directory(id);
        match self.0.launch.unit(id) {
            Some(unit) => Cgroup::at(unit)
                .is_populated()
                .map_err(|source| JobError::Cgroup { id, source }),
            None => directory
                .is_locked()
                .map_err(JobError::file("lock", directory.path())),
        }
    }

    /// Starts a job, and returns at once; the job outlives this process. `task` is read by
    /// [`ProcessJob::task`](crate::runner::ProcessJob::task): an object whose keys are the task's own. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// [`JobError::Started`] if this job ran before; [`JobError::Runner`], [`JobError::File`], [`JobError::Cgroup`] or
    /// [`JobError::Watch`] if it can't be started.
    pub fn start(
        &self,
        id: JobId,
        task: &impl Serialize,
        time_limit: Duration,
    ) -> Result<RunningJob, JobError> {
        self.start_by(id, task, time_limit, HostOp::StartJob { id })
    }

    /// Starts the program of a job, as [`Self::start`] does a job, as a user of its own. `id` is
    /// [that of the program](JobId::program).
    ///
    /// # Errors
    /// Those of [`Self::start`], and [`JobError::NoUser`] if this process can't give it a user.
    pub fn start_program(
        &self,
        id: JobId,
        order: ProgramOrder,
        time_limit: Duration,
    ) -> Result<RunningJob, JobError> {
        let order = match self.0.launch {
            Launch::Unit { .. } => order,
            Launch::Child { .. } if !rustix::process::geteuid().is_root() => {
                return Err(JobError::NoUser(id));
            }
            Launch::Child { .. } => {
                let random = id.0.as_bytes().last_chunk::<4>().copied().unwrap_or_default();
                order.for_user(u32::from_be_bytes(random))
            }
        };
        self.start_by(id, &order, time_limit, HostOp::StartProgram { id })
    }

    fn start_by(
        &self,
        id: JobId,
        task: &impl Serialize,
        time_limit: Duration,
        by_helper: HostOp,
    ) -> Result<RunningJob, JobError> {
        let directory = self.directory(id);
        let file = |what| JobError::file(what, directory.path());
        directory.create().map_err(file("create"))?;
        match &self.0.launch {
            Launch::Child { .. } => {
                let lock = directory.lock().map_err(file("lock"))?;
                let lock = lock.ok_or(JobError::Started(id))?;
                if directory.pid().map_err(file("read"))?.is_some() {
                    return Err(JobError::Started(id));
                }
                let result_dir = self.result_dir(id);
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(&result_dir)
                    .map_err(JobError::file("create", &result_dir))?;
                let cgroup = self.0.launch.child_cgroup(id).filter(|path| create_cgroup(path));
                let tasks_cgroup = cgroup
                    .as_ref()
                    .and_then(|path| limit_tasks(path, self.0.max_tasks));
                self.write_order(id, task, time_limit, (cgroup, tasks_cgroup))?;
                let child = self.spawn(&directory, lock).map_err(|source| JobError::Runner {
                    program: self.0.runner.clone(),
                    source,
                })?;
                RunningJob::child(id, directory, self.cleanup(id), child)
            }
            Launch::Unit {
                host_operations,
                slice: _,
            } => {
                if directory.pid().map_err(file("read"))?.is_some() || self.runs(id)? {
                    return Err(JobError::Started(id));
                }
                self.write_order(id, task, time_limit, (None, None))?;
                let host_operations = host_operations.clone();
                let starting = async move {
                    let start = host_operations(by_helper).await;
                    start.map_err(|error| error.to_string())
                };
                let unit = self.0.launch.unit(id).expect("this job is a unit");
                RunningJob::unit(id, directory, unit, Some(Box::pin(starting)))
            }
        }
    }

    fn write_order(
        &self,
        id: JobId,
        task: &impl Serialize,
        time_limit: Duration,
        (cgroup, tasks_cgroup): (Option<PathBuf>, Option<PathBuf>),
    ) -> Result<(), JobError> {
        let directory = self.directory(id);
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let order = Order {
            result_dir: self.result_dir(id),
            timeout_ms: milliseconds(time_limit),
            grace_ms: milliseconds(self.0.cancel_grace),
            max_log_bytes: self.0.max_log_bytes,
            cgroup,
            tasks_cgroup,
        };
        directory
            .write_json(ORDER, &OrderFile { task, order })
            .map_err(JobError::file("write the order in", directory.path()))
    }

    /// Starts the runner of a job, with the job's lock as its standard input.
    fn spawn(&self, directory: &JobDirectory, lock: File) -> io::Result<Child> {
        let mut command = Command::new(&self.0.runner);
        command
            .args(&self.0.runner_args)
            .arg(directory.path())
            .current_dir("/")
            .env_clear()
            .envs(
                ENVIRONMENT
                    .iter()
                    .copied()
                    .chain(self.0.environment.iter().map(String::as_str))
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .env("LANG", "C.UTF-8")
            .stdin(lock)
            .stdout(Stdio::null())
            .stderr(File::create(directory.path().join(RUNNER_ERRORS))?)
            .kill_on_drop(false);
        command.spawn()
    }

    /// Finds a job that was started by this instance of leafd or an earlier one.
    ///
    /// # Errors
    /// [`JobError::File`], [`JobError::Cgroup`] or [`JobError::Watch`].
    pub async fn find(&self, id: JobId) -> Result<Found, JobError> {
        let directory = self.directory(id);
        if !directory.exists() {
            return Ok(Found::NotStarted("its directory is missing".to_owned()));
        }
        let file = |what| JobError::file(what, directory.path());
        if let Some(unit) = self.0.launch.unit(id) {
            return if self.runs(id)? {
                RunningJob::unit(id, directory, unit, None).map(|job| Found::Running(Box::new(job)))
            } else if directory.pid().map_err(file("read"))?.is_some() {
                Ok(Found::Ended(conclude(&directory, None).await))
            } else {
                Ok(Found::NotStarted("it was never started".to_owned()))
            };
        }
        // The lock is taken before the pid is written: a runner that was just started may not have written it yet.
        for _ in 0..500 {
            let Some(pid) = directory.pid().map_err(file("read"))? else {
                if !directory.is_locked().map_err(file("lock"))? {
                    return Ok(Found::NotStarted("it was never started".to_owned()));
                }
                sleep(Duration::from_millis(10)).await;
                continue;
            };
            let process = ProcessHandle::open(pid).map_err(|source| JobError::Watch { id, source })?;
            let cleanup = self.cleanup(id);
            // The lock is held after the handle was opened, so it is the runner's, and the process id was not reused.
            return match process {
                Some(process) if directory.is_locked().map_err(file("lock"))? => {
                    RunningJob::adopted(id, directory, cleanup, pid, process)
                        .map(|job| Found::Running(Box::new(job)))
                }
                _ => Ok(Found::Ended(conclude(&directory, Some(&cleanup)).await)),
            };
        }
        Err(JobError::Watch {
            id,
            source: io::Error::other("its runner has not written its pid"),
        })
    }

    /// Returns the last reported progress of a job, if any.
    #[must_use]
    pub fn progress(&self, id: JobId) -> Option<Progress> {
        self.directory(id).read_json(PROGRESS).ok().flatten()
    }

    /// Returns a page of the log from an offset, at most about `max_bytes`, also while the job runs. Offsets never
    /// change; a line marks left out bytes.
    ///
    /// # Errors
    /// [`JobError::NoJob`] or [`JobError::File`].
    pub fn read_log(&self, id: JobId, offset: u64, max_bytes: usize) -> Result<LogChunk, JobError> {
        let directory = self.directory(id);
        if !directory.exists() {
            return Err(JobError::NoJob(id));
        }
        let ended = !self.runs(id)?;
        let mut chunk = log::read(directory.path(), offset, max_bytes, ended)
            .map_err(JobError::file("read", directory.path()))?;
        if chunk.complete
            && let Some(missing) = directory
                .read_json::<Ended>(OUTCOME)
                .ok()
                .flatten()
                .and_then(|e| e.log_missing)
        {
            chunk.text.push_str(&missing);
        }
        Ok(chunk)
    }

    /// Returns what a running job is doing; `None` if its runner has not said so, or what it said can't be read.
    #[must_use]
    pub fn activities(&self, id: JobId) -> Option<Activities> {
        let activities = self.directory(id).read_json::<Activities>(ACTIVITIES);
        activities.ok().flatten().map(Activities::bounded)
    }

    /// Cancels a job: SIGTERM to its program and, after the grace time, SIGKILL to the remaining processes. Returns
    /// when all have ended; [`RunningJob`] or [`find`](Self::find) has the outcome. Idempotent, also for a job that has
    /// ended.
    ///
    /// # Errors
    /// [`JobError::NoJob`], [`JobError::Helper`], [`JobError::File`], [`JobError::Cgroup`] or [`JobError::Watch`].
    pub async fn cancel(&self, id: JobId) -> Result<(), JobError> {
        let directory = self.directory(id);
        if !directory.exists() {
            return Err(JobError::NoJob(id));
        }
        let mark_cancelled = || {
            directory
                .mark_cancelled()
                .map_err(JobError::file("write", directory.path()))
        };
        if let Launch::Unit { host_operations, .. } = &self.0.launch {
            mark_cancelled()?;
            let stop = HostOp::StopJob {
                id,
                grace_seconds: u32::try_from(self.0.cancel_grace.as_secs()).unwrap_or(u32::MAX),
            };
            return host_operations(stop)
                .await
                .map_err(|source| JobError::Helper { id, source });
        }
        if self.runs(id)? {
            // Marked before the signal: it would kill a runner that is just starting, and the mark then tells the
            // reason.
            mark_cancelled()?;
        }
        let Found::Running(mut job) = self.find(id).await? else {
            return Ok(());
        };
        let watch = |source| JobError::Watch { id, source };
        let runner = job.pid().map(ProcessHandle::open).transpose().map_err(watch)?;
        let Some(runner) = runner.flatten() else {
            return Ok(());
        };
        runner.signal(Signal::TERM).map_err(watch)?;
        if timeout(self.0.cancel_grace + Duration::from_secs(10), job.ended())
            .await
            .is_err()
        {
            tracing::error!(job = %id, "a job's runner does not end when asked to, killing it");
            let _ = runner.signal(Signal::KILL);
            job.ended().await;
        }
        Ok(())
    }

    /// Removes a job's directory with its log. Its result is kept until it is [released](Self::release).
    ///
    /// # Errors
    /// [`JobError::Runs`], [`JobError::Helper`], [`JobError::Cgroup`] or [`JobError::File`].
    pub async fn forget(&self, id: JobId) -> Result<(), JobError> {
        if self.runs(id)? {
            return Err(JobError::Runs(id));
        }
        match &self.0.launch {
            Launch::Child { .. } => remove(self.directory(id).path()),
            Launch::Unit { host_operations, .. } => host_operations(HostOp::RemoveJob { id })
                .await
                .map_err(|source| JobError::Helper { id, source }),
        }
    }

    /// Returns whether a job has a directory.
    #[must_use]
    pub fn exists(&self, id: JobId) -> bool {
        self.directory(id).exists()
    }

    /// Returns the socket of the runner of a job's program, on which leafd speaks to it in a session.
    #[must_use]
    pub fn session_socket(&self, id: JobId) -> PathBuf {
        self.directory(id.program()).path().join(crate::program::SOCKET)
    }

    /// Returns the program that runs jobs: `leafd`.
    #[must_use]
    pub fn runner(&self) -> &Path {
        &self.0.runner
    }

    /// Releases a job's result: removes its result directory, with GC roots, for example.
    ///
    /// # Errors
    /// [`JobError::File`].
    pub fn release(&self, id: JobId) -> Result<(), JobError> {
        match self.0.launch {
            Launch::Child { .. } => remove(&self.result_dir(id)),
            // It is in the job's directory, and removed with that.
            Launch::Unit { .. } => Ok(()),
        }
    }

    /// Removes the files of all jobs that are neither known nor running. One whose files can't be removed does not keep
    /// the others'.
    ///
    /// # Errors
    /// [`JobError::File`] when a directory of jobs can't be listed.
    pub async fn sweep(&self, known: &BTreeSet<JobId>) -> Result<Swept, JobError> {
        let mut unknown = BTreeSet::new();
        for dir in [&self.0.jobs_dir, &self.0.results_dir] {
            match fs::read_dir(dir) {
                Ok(entries) => unknown.extend(
                    entries
                        .flatten()
                        .filter_map(|entry| entry.file_name().to_str()?.parse::<JobId>().ok())
                        .filter(|id| !known.contains(id)),
                ),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(JobError::file("read", dir)(e)),
            }
        }
        let mut swept = Swept::default();
        for id in unknown {
            let removed = match self.forget(id).await {
                Ok(()) => self.release(id),
                Err(error) => Err(error),
            };
            match removed {
                Ok(()) => swept.removed.push(id),
                Err(JobError::Runs(_)) => swept.running.push(id),
                Err(error) => swept.kept.push((id, chain(&error))),
            }
        }
        Ok(swept)
    }
}

/// Creates the cgroup of a job, and returns whether that succeeded: a job can run without one.
fn create_cgroup(path: &Path) -> bool {
    match Cgroup::at(path).create() {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(cgroup = %path.display(), error = chain(&error), "can't create a job's cgroup, running it without one");
            false
        }
    }
}

/// Bounds the number of processes of a job's cgroup. Returns the further one that they must be in, if there is one.
fn limit_tasks(path: &Path, max: u64) -> Option<PathBuf> {
    match task_limit::limit_tasks(&Cgroup::at(path), max) {
        Ok(further) => further.map(|group| group.path().to_owned()),
        Err(error) => {
            tracing::warn!(cgroup = %path.display(), error = chain(&error), "can't bound the number of a job's processes");
            None
        }
    }
}

fn remove(path: &Path) -> Result<(), JobError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(JobError::file("remove", path)(e)),
        _ => Ok(()),
    }
}
