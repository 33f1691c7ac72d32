//! Follows a running job: its progress, its log, its end.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use leaf_core::command::LogChunk;
use leaf_core::error::chain;
use leaf_core::id::JobId;
use leaf_core::job::{JobOutcome, Progress};
use leaf_host::cgroup::{Cgroup, CgroupError};
use leaf_host::process::ProcessHandle;
use rustix::fs::inotify::WatchFlags;
use tokio::process::Child;
use tokio::time::{Instant, sleep_until};

use crate::JobError;
use crate::changes::Changes;
use crate::directory::{JobDirectory, ORDER, OUTCOME, PROGRESS, UPDATE_INTERVAL};
use crate::log;
use crate::order::{Order, remove_result};
use crate::outcome::Ended;
use crate::unit::UnitWatch;

const UPDATE_LOG_BYTES: usize = 64 * 1024;
/// How far a follower of the log may lag behind before a part is left out, in bytes.
const MAX_LAG_BYTES: u64 = 256 * 1024;
const CLEAN_UP_PATIENCE: Duration = Duration::from_secs(10);

/// A change of a running job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobUpdate {
    /// Its progress.
    Progress(Progress),
    /// A part of its log. If the job prints more than 320 KiB a second, parts are left out: a line says how much, and
    /// [`Jobs::read_log`](crate::Jobs::read_log) returns them.
    Log(LogChunk),
    /// Its end. None of its processes is left, and no update follows.
    Ended(JobOutcome),
}

/// A running job. Dropping it leaves the job running; [`Jobs::find`](crate::Jobs::find) finds it again.
#[derive(Debug)]
pub struct RunningJob {
    id: JobId,
    pid: Option<u32>,
    directory: JobDirectory,
    cleanup: Option<Cleanup>,
    process: Process,
    changes: Changes,
    updates: VecDeque<JobUpdate>,
    next_check: Instant,
    changed: bool,
    progress: Progress,
    log_offset: u64,
}

#[derive(Debug)]
enum Process {
    Child(Child),
    Adopted(ProcessHandle),
    Unit(Unit),
}

/// A job that the helper runs or is starting.
struct Unit {
    starting: Option<Starting>,
    /// The reason why it did not start.
    failed: Option<String>,
    watch: UnitWatch,
}

/// The pending start of a job by the helper.
pub(crate) type Starting = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit")
            .field("watch", &self.watch)
            .finish_non_exhaustive()
    }
}

impl Process {
    async fn ended(&mut self) -> io::Result<()> {
        match self {
            Self::Child(child) => child.wait().await.map(drop),
            Self::Adopted(process) => process.ended().await,
            Self::Unit(unit) => {
                if let Some(starting) = &mut unit.starting {
                    let started = starting.await;
                    unit.starting = None;
                    unit.failed = started.err();
                }
                if unit.failed.is_some() {
                    return Ok(());
                }
                unit.watch.ended().await
            }
        }
    }
}

impl RunningJob {
    pub(crate) fn child(
        id: JobId,
        directory: JobDirectory,
        cleanup: Cleanup,
        child: Child,
    ) -> Result<Self, JobError> {
        let watch = |source| JobError::Watch { id, source };
        let pid = child
            .id()
            .ok_or_else(|| watch(io::Error::other("it has ended already")))?;
        Self::new(id, Some(pid), directory, Some(cleanup), Process::Child(child)).map_err(watch)
    }

    pub(crate) fn adopted(
        id: JobId,
        directory: JobDirectory,
        cleanup: Cleanup,
        pid: u32,
        process: ProcessHandle,
    ) -> Result<Self, JobError> {
        Self::new(id, Some(pid), directory, Some(cleanup), Process::Adopted(process))
            .map_err(|source| JobError::Watch { id, source })
    }

    /// Returns a job that the helper runs; `starting` is its pending start, if it is not started yet.
    pub(crate) fn unit(
        id: JobId,
        directory: JobDirectory,
        cgroup: PathBuf,
        starting: Option<Starting>,
    ) -> Result<Self, JobError> {
        let unit = Unit {
            starting,
            failed: None,
            watch: UnitWatch::new(cgroup),
        };
        Self::new(id, None, directory, None, Process::Unit(unit))
            .map_err(|source| JobError::Watch { id, source })
    }

    fn new(
        id: JobId,
        pid: Option<u32>,
        directory: JobDirectory,
        cleanup: Option<Cleanup>,
        process: Process,
    ) -> io::Result<Self> {
        Ok(Self {
            changes: Changes::of(directory.path(), WatchFlags::MODIFY | WatchFlags::MOVED_TO)?,
            id,
            pid,
            directory,
            cleanup,
            process,
            updates: VecDeque::new(),
            next_check: Instant::now(),
            changed: true,
            progress: Progress::default(),
            log_offset: 0,
        })
    }

    /// Returns the job's id.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.id
    }

    /// Returns the process id of its runner, if that is not a unit.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Returns its outcome if it could not be started.
    fn not_started(&self) -> Option<JobOutcome> {
        match &self.process {
            Process::Unit(unit) => unit.failed.clone().map(|why| JobOutcome::Failed(why.into())),
            Process::Child(_) | Process::Adopted(_) => None,
        }
    }

    /// Waits for the next update: reads the job's files at most five times a second, and only when they have changed,
    /// and returns the end at once. Cancel-safe. After [`JobUpdate::Ended`] it returns the end again.
    pub async fn next_update(&mut self) -> JobUpdate {
        loop {
            if let Some(update) = self.updates.pop_front() {
                return update;
            }
            let may_check = Instant::now() >= self.next_check;
            if self.changed && may_check {
                self.changed = false;
                self.next_check = Instant::now() + UPDATE_INTERVAL;
                self.changes.take();
                self.check(false);
                continue;
            }
            tokio::select! {
                biased;
                _ = self.process.ended() => {
                    let outcome = match self.not_started() {
                        Some(outcome) => outcome,
                        None => conclude(&self.directory, self.cleanup.as_ref()).await,
                    };
                    self.check(true);
                    self.updates.push_back(JobUpdate::Ended(outcome));
                }
                () = sleep_until(self.next_check), if !may_check => {}
                _ = self.changes.wait(), if !self.changed && may_check => self.changed = true,
            }
        }
    }

    /// Waits for the end of the job. None of its processes is left when this returns.
    pub async fn ended(&mut self) -> JobOutcome {
        // An error means that the process does not exist, as awaited.
        let _ = self.process.ended().await;
        match self.not_started() {
            Some(outcome) => outcome,
            None => conclude(&self.directory, self.cleanup.as_ref()).await,
        }
    }

    fn check(&mut self, ended: bool) {
        if let Ok(Some(progress)) = self.directory.read_json::<Progress>(PROGRESS)
            && progress != self.progress
        {
            self.progress = progress.clone();
            self.updates.push_back(JobUpdate::Progress(progress));
        }
        let mut skipped = 0;
        if let Ok(end) = log::end(self.directory.path())
            && end.saturating_sub(self.log_offset) > MAX_LAG_BYTES
        {
            skipped = end - UPDATE_LOG_BYTES as u64 - self.log_offset;
            self.log_offset += skipped;
        }
        match log::read(self.directory.path(), self.log_offset, UPDATE_LOG_BYTES, ended) {
            Ok(mut chunk) => {
                // The part after the gap may begin in the middle of a line.
                if skipped > 0 {
                    let begin = chunk.text.find('\n').map_or(0, |end| end + 1);
                    chunk.text = format!(
                        "[… {} bytes left out …]\n{}",
                        skipped + begin as u64,
                        &chunk.text[begin..]
                    );
                }
                // The rest comes with the next update, even if nothing changes until then.
                self.changed |= log::end(self.directory.path()).is_ok_and(|end| end > chunk.next_offset);
                self.log_offset = chunk.next_offset;
                if !chunk.text.is_empty() {
                    self.updates.push_back(JobUpdate::Log(chunk));
                }
            }
            Err(error) => tracing::debug!(job = %self.id, %error, "can't read a job's log"),
        }
    }
}

/// The parameters of the cleanup after a job that are not in its order. A job in a unit needs none: the helper and the
/// job itself clean up.
#[derive(Debug, Clone)]
pub(crate) struct Cleanup {
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) tasks_cgroup: Option<PathBuf>,
    pub(crate) result_dir: PathBuf,
}

/// Cleans up after a runner that has ended, and returns the outcome of its job.
pub(crate) async fn conclude(directory: &JobDirectory, cleanup: Option<&Cleanup>) -> JobOutcome {
    let cleanup = cleanup.map(|cleanup| match directory.read_json::<Order>(ORDER) {
        // It may have been written with other settings.
        Ok(Some(order)) => Cleanup {
            cgroup: order.cgroup,
            tasks_cgroup: order.tasks_cgroup,
            result_dir: order.result_dir,
        },
        Ok(None) | Err(_) => cleanup.clone(),
    });
    if let Some(path) = cleanup.as_ref().and_then(|cleanup| cleanup.cgroup.as_ref())
        && let Err(error) = remove_cgroup(path).await
    {
        tracing::error!(cgroup = %path.display(), error = chain(&error), "can't remove a job's cgroup, which may still contain running processes");
    }
    // Its processes were those of the other one.
    if let Some(path) = cleanup.as_ref().and_then(|cleanup| cleanup.tasks_cgroup.as_ref())
        && let Err(error) = Cgroup::at(path).remove()
    {
        tracing::warn!(cgroup = %path.display(), error = chain(&error), "can't remove the cgroup that bounds a job's processes");
    }
    let outcome = match directory.read_json::<Ended>(OUTCOME) {
        Ok(Some(ended)) => ended.into_outcome(),
        Ok(None) if directory.is_cancelled() => JobOutcome::Cancelled,
        Ok(None) => {
            let why = directory.runner_errors().map(|why| format!(": {why}"));
            JobOutcome::Interrupted(format!(
                "the runner of the job ended without an outcome{}",
                why.unwrap_or_default()
            ))
        }
        Err(error) => JobOutcome::Interrupted(format!("can't read the outcome of the job: {error}")),
    };
    if let Some(cleanup) = cleanup
        && !matches!(outcome, JobOutcome::Succeeded(_))
    {
        remove_result(&cleanup.result_dir);
    }
    outcome
}

async fn remove_cgroup(path: &Path) -> Result<(), CgroupError> {
    let cgroup = Cgroup::at(path);
    cgroup.kill_and_wait(CLEAN_UP_PATIENCE).await?;
    cgroup.remove()
}
