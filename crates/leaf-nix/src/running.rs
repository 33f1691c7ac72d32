//! A job that runs, as the daemon sees it: what it says, and how it ends.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use leaf_core::command::LogChunk;
use leaf_core::id::JobId;
use leaf_core::job::{JobOutcome, Progress};
use rustix::fs::inotify;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::time::{Instant, sleep_until};

use crate::NixError;
use crate::cgroup::Cgroup;
use crate::folder::{Folder, ORDER, OUTCOME, PROGRESS};
use crate::log;
use crate::order::Order;
use crate::outcome::Ended;
use crate::unit::UnitWatch;

/// How often what a job says is looked at.
pub(crate) const NEWS_EVERY: Duration = Duration::from_millis(200);
const NEWS_LOG_BYTES: usize = 64 * 1024;
/// How far one who follows the log may lag behind before a part is left out.
const NEWS_LAG_BYTES: u64 = 256 * 1024;
const CLEAN_UP_PATIENCE: Duration = Duration::from_secs(10);

/// Something that a running job said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobNews {
    /// How far it is now.
    Progress(Progress),
    /// A part of its log. A job that says more than 320 KiB a second is not followed to the letter: a line says how
    /// much is left out, and [`Nix::read_log`](crate::Nix::read_log) has it.
    Log(LogChunk),
    /// Its end. Nothing of it runs any more, and no news follow.
    Ended(JobOutcome),
}

/// A job that runs. Dropping it leaves the job running; [`Nix::find`](crate::Nix::find) finds it again.
#[derive(Debug)]
pub struct RunningJob {
    id: JobId,
    pid: Option<Pid>,
    folder: Folder,
    process: Process,
    inotify: AsyncFd<OwnedFd>,
    news: VecDeque<JobNews>,
    next_look: Instant,
    changed: bool,
    progress: Progress,
    log_offset: u64,
}

#[derive(Debug)]
enum Process {
    Child(Child),
    Adopted(AsyncFd<OwnedFd>),
    Unit(Unit),
}

/// A job that the helper runs, or is asked to.
struct Unit {
    starting: Option<Starting>,
    /// Why it did not start.
    failed: Option<String>,
    watch: UnitWatch,
}

/// The helper at work.
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
            Self::Adopted(pidfd) => pidfd.readable().await.map(drop),
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
    pub(crate) fn child(id: JobId, folder: Folder, child: Child) -> Result<Self, NixError> {
        let watch = |source| NixError::Watch { id, source };
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.ok_or_else(|| watch(io::Error::other("it has ended already")))?;
        Self::new(id, Some(pid), folder, Process::Child(child)).map_err(watch)
    }

    pub(crate) fn adopted(
        id: JobId,
        folder: Folder,
        pid: Pid,
        pidfd: AsyncFd<OwnedFd>,
    ) -> Result<Self, NixError> {
        Self::new(id, Some(pid), folder, Process::Adopted(pidfd))
            .map_err(|source| NixError::Watch { id, source })
    }

    /// One that the helper runs; it is asked to where `starting` is given.
    pub(crate) fn unit(
        id: JobId,
        folder: Folder,
        cgroup: PathBuf,
        starting: Option<Starting>,
    ) -> Result<Self, NixError> {
        let unit = Unit {
            starting,
            failed: None,
            watch: UnitWatch::new(cgroup),
        };
        Self::new(id, None, folder, Process::Unit(unit)).map_err(|source| NixError::Watch { id, source })
    }

    fn new(id: JobId, pid: Option<Pid>, folder: Folder, process: Process) -> io::Result<Self> {
        use inotify::{CreateFlags, WatchFlags};
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, folder.path(), WatchFlags::MODIFY | WatchFlags::MOVED_TO)?;
        Ok(Self {
            id,
            pid,
            folder,
            process,
            inotify: async_fd(inotify)?,
            news: VecDeque::new(),
            next_look: Instant::now(),
            changed: true,
            progress: Progress::default(),
            log_offset: 0,
        })
    }

    /// The job's id.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.id
    }

    pub(crate) fn process_id(&self) -> Option<Pid> {
        self.pid
    }

    /// The process id of its runner, where it is this user's; else 0.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
            .map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs())
    }

    /// Why it never ran, if it did not.
    fn not_started(&self) -> Option<JobOutcome> {
        match &self.process {
            Process::Unit(unit) => unit.failed.clone().map(JobOutcome::Failed),
            Process::Child(_) | Process::Adopted(_) => None,
        }
    }

    /// Waits for the next thing that the job says: looks at most five times a second, never when nothing was said,
    /// and gives the end at once. It may be dropped at any time without a loss. After [`JobNews::Ended`] it gives the
    /// end again.
    pub async fn next(&mut self) -> JobNews {
        loop {
            if let Some(news) = self.news.pop_front() {
                return news;
            }
            let may_look = Instant::now() >= self.next_look;
            if self.changed && may_look {
                self.changed = false;
                self.next_look = Instant::now() + NEWS_EVERY;
                self.drain_inotify();
                self.look(false);
                continue;
            }
            tokio::select! {
                biased;
                _ = self.process.ended() => {
                    let outcome = match self.not_started() {
                        Some(outcome) => outcome,
                        None => conclude(&self.folder).await,
                    };
                    self.look(true);
                    self.news.push_back(JobNews::Ended(outcome));
                }
                () = sleep_until(self.next_look), if !may_look => {}
                _ = self.inotify.readable(), if !self.changed && may_look => self.changed = true,
            }
        }
    }

    /// Waits for the end of the job, and says nothing meanwhile. Nothing of it runs when this returns.
    pub async fn ended(&mut self) -> JobOutcome {
        // An error means that there is no such process, which is what is waited for.
        let _ = self.process.ended().await;
        match self.not_started() {
            Some(outcome) => outcome,
            None => conclude(&self.folder).await,
        }
    }

    fn drain_inotify(&self) {
        drain(&self.inotify);
    }

    fn look(&mut self, ended: bool) {
        if let Ok(Some(progress)) = self.folder.read_json::<Progress>(PROGRESS)
            && progress != self.progress
        {
            self.progress = progress.clone();
            self.news.push_back(JobNews::Progress(progress));
        }
        let mut skipped = 0;
        if let Ok(end) = log::end(self.folder.path())
            && end.saturating_sub(self.log_offset) > NEWS_LAG_BYTES
        {
            skipped = end - NEWS_LOG_BYTES as u64 - self.log_offset;
            self.log_offset += skipped;
        }
        match log::read(self.folder.path(), self.log_offset, NEWS_LOG_BYTES, ended) {
            Ok(mut chunk) => {
                // Where it goes on below what was skipped need not be the beginning of a line.
                if skipped > 0 {
                    let begin = chunk.text.find('\n').map_or(0, |end| end + 1);
                    chunk.text = format!(
                        "[… {} bytes left out …]\n{}",
                        skipped + begin as u64,
                        &chunk.text[begin..]
                    );
                }
                // Some is left: it comes with the next look, also if nothing changes until then.
                self.changed |= log::end(self.folder.path()).is_ok_and(|end| end > chunk.next_offset);
                self.log_offset = chunk.next_offset;
                if !chunk.text.is_empty() {
                    self.news.push_back(JobNews::Log(chunk));
                }
            }
            Err(error) => tracing::debug!(job = %self.id, %error, "the log of a job can't be read"),
        }
    }
}

/// Takes what an inotify has to say.
pub(crate) fn drain(inotify: &AsyncFd<OwnedFd>) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    // Its error is that there is no more, which makes the next wait a real one.
    let _ = inotify.try_io(Interest::READABLE, |fd| -> io::Result<()> {
        let mut reader = inotify::Reader::new(fd, &mut buffer);
        loop {
            reader.next()?;
        }
    });
}

#[expect(
    deprecated,
    reason = "its successor is unsafe, for the sake of types that don't own what they name; an OwnedFd does"
)]
pub(crate) fn async_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// Opens the runner's pidfd, or nothing if it is gone.
pub(crate) fn open_pidfd(pid: Pid) -> io::Result<Option<AsyncFd<OwnedFd>>> {
    match pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(fd) => async_fd(fd).map(Some),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Cleans up behind a runner that has ended, and says how its job did.
pub(crate) async fn conclude(folder: &Folder) -> JobOutcome {
    // What is not this user's to clean up, the helper does, and the job itself.
    let order = folder.read_json::<Order>(ORDER).ok().flatten();
    let order = order.filter(|_| !folder.is_shared());
    if let Some(path) = order.as_ref().and_then(|order| order.cgroup.as_deref())
        && let Err(error) = Cgroup::new(path).end(CLEAN_UP_PATIENCE).await
    {
        tracing::error!(cgroup = %path.display(), %error, "a job's cgroup can't be removed; something in it may still run");
    }
    let outcome = match folder.read_json::<Ended>(OUTCOME) {
        Ok(Some(ended)) => ended.outcome.into(),
        Ok(None) if folder.is_cancelled() => JobOutcome::Cancelled,
        Ok(None) => {
            let said = folder.runner_errors();
            let said = if said.is_empty() {
                String::new()
            } else {
                format!(": {said}")
            };
            JobOutcome::Interrupted(format!("the runner of the job ended without an outcome{said}"))
        }
        Err(error) => JobOutcome::Interrupted(format!("the outcome of the job can't be read: {error}")),
    };
    if let (Some(order), false) = (order, matches!(outcome, JobOutcome::Succeeded(_))) {
        let _ = std::fs::remove_dir_all(order.gc_root);
    }
    outcome
}
