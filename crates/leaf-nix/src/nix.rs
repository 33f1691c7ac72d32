//! The daemon's side: starts jobs, finds them again, and everything else that is done to one by its id.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use leaf_core::command::LogChunk;
use leaf_core::host_op::HostOp;
use leaf_core::id::JobId;
use leaf_core::job::{BuildTask, JobOutcome, Progress};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::NixError;
use crate::cgroup::Cgroup;
use crate::folder::{Folder, ORDER, OUTCOME, PROGRESS, RUNNER_ERRORS};
use crate::launch::{Launch, insist};
use crate::log;
use crate::order::{Order, Target};
use crate::outcome::Ended;
use crate::running::{RunningJob, conclude, open_pidfd};
use crate::unit::is_populated;

/// What the runner and Nix get of the daemon's environment. No secrets are among it: tokens belong in `nix.conf`.
const ENVIRONMENT: &[&str] = &[
    "HOME",
    "PATH",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "NIX_CONF_DIR",
    "NIX_USER_CONF_FILES",
    "NIX_DATA_DIR",
    "NIX_LOG_DIR",
    "NIX_REMOTE",
    "NIX_STATE_DIR",
    "NIX_STORE_DIR",
    "NIX_SSL_CERT_FILE",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "TZDIR",
];

/// How jobs are run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where each job has its folder. It is made if it is not there.
    pub jobs_dir: PathBuf,
    /// Where each result has its GC root, such as `/nix/var/nix/gcroots/cim-leaf/NAME`. Any other folder works too:
    /// Nix registers the links.
    pub gc_roots_dir: PathBuf,
    /// The `nix` program.
    pub nix: PathBuf,
    /// The program that runs one job: it is given the job's folder after `runner_args`, and calls
    /// [`runner::main`](crate::runner::main).
    pub runner: PathBuf,
    /// What stands before the folder, such as `nix-job`.
    pub runner_args: Vec<OsString>,
    /// The templates: `NAME/default.nix` each.
    pub templates_dir: PathBuf,
    /// The static `leaf-init`, given to templates as the argument `leafInit`.
    pub leaf_init: PathBuf,
    /// Nix settings, as `nix.conf` has them, such as `substituters`.
    pub nix_options: BTreeMap<String, String>,
    /// How long Nix may take to end when it is asked to.
    pub cancel_grace: Duration,
    /// How much of a log is kept, head and tail together.
    pub max_log_bytes: u64,
    /// Who starts the runners. With [`Launch::ByHelper`] the folder of the jobs must be there, as the units' `tmpfiles.conf` makes
    /// it, and each GC root is in its job's own folder.
    pub launch: Launch,
}

impl Settings {
    /// Returns settings with `nix` from the `PATH`, 10 s of grace, 16 MiB of log, and the [`default_cgroup`].
    #[must_use]
    pub fn new(state_dir: &Path, gc_roots_dir: PathBuf, runner: PathBuf, runner_args: Vec<OsString>) -> Self {
        Self {
            jobs_dir: state_dir.join("jobs"),
            gc_roots_dir,
            nix: "nix".into(),
            runner,
            runner_args,
            templates_dir: state_dir.join("templates"),
            leaf_init: state_dir.join("leaf-init"),
            nix_options: BTreeMap::new(),
            cancel_grace: Duration::from_secs(10),
            max_log_bytes: 16 * 1024 * 1024,
            launch: Launch::Own {
                cgroup: default_cgroup(),
            },
        }
    }
}

/// Returns the Nix settings without which root can't build on this host: where there is no daemon and the group of
/// build users is missing (as with Debian's `nix-bin`), root builds itself. Empty elsewhere.
#[must_use]
pub fn host_options() -> BTreeMap<String, String> {
    let daemon =
        Path::new("/nix/var/nix/daemon-socket/socket").exists() || std::env::var_os("NIX_REMOTE").is_some();
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    if !rustix::process::geteuid().is_root()
        || daemon
        || groups.lines().any(|group| group.starts_with("nixbld:"))
    {
        return BTreeMap::new();
    }
    BTreeMap::from([("build-users-group".to_owned(), String::new())])
}

/// Returns where jobs get their cgroups: `cim-leaf-nix.slice` of the cgroup v2 hierarchy, if there is one and this
/// process is root.
#[must_use]
pub fn default_cgroup() -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .iter()
        .find(|root| Path::new(root).join("cgroup.controllers").exists())
        .map(|root| Path::new(root).join("cim-leaf-nix.slice"))
}

/// The version of the `nix` program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NixVersion {
    /// The major number: 2.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
    /// All that it says of itself: `nix (Nix) 2.8.0`.
    pub text: String,
}

impl NixVersion {
    pub(crate) fn parse(said: &str) -> Option<Self> {
        let text = said.lines().next()?.trim().to_owned();
        if !text.starts_with("nix ") {
            return None;
        }
        let number = text
            .split_whitespace()
            .rev()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let mut numbers = number
            .split(|c: char| !c.is_ascii_digit())
            .map_while(|part| part.parse().ok());
        Some(Self {
            major: numbers.next()?,
            minor: numbers.next()?,
            text,
        })
    }
}

/// What is left of a job that was started once.
#[derive(Debug)]
pub enum Found {
    /// It runs.
    Running(Box<RunningJob>),
    /// It has ended; nothing of it runs.
    Ended(JobOutcome),
    /// It never began to run, or its folder is gone; the text says which.
    Lost(String),
}

/// What a sweep did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs that are forgotten now.
    pub removed: Vec<JobId>,
    /// Jobs that nobody knows, but that run: to be cancelled.
    pub running: Vec<JobId>,
}

/// Nix as a runner of jobs. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Nix(Arc<Settings>);

impl Nix {
    /// Returns it. Nothing is touched before the first job.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(settings))
    }

    /// Returns the version of the `nix` program.
    ///
    /// # Errors
    /// [`NixError::NoNix`], [`NixError::NotNix`] or [`NixError::TooOld`].
    pub fn check(&self) -> Result<NixVersion, NixError> {
        let program = &self.0.nix;
        let output = std::process::Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| NixError::NoNix {
                program: program.clone(),
                source,
            })?;
        let said = String::from_utf8_lossy(&output.stdout);
        let version = NixVersion::parse(&said)
            .filter(|_| output.status.success())
            .ok_or_else(|| NixError::NotNix {
                program: program.clone(),
                said: format!("{said}{}", String::from_utf8_lossy(&output.stderr))
                    .chars()
                    .take(300)
                    .collect(),
            })?;
        if (version.major, version.minor) < (2, 8) {
            return Err(NixError::TooOld { found: version.text });
        }
        Ok(version)
    }

    fn folder(&self, id: JobId) -> Folder {
        let path = self.0.jobs_dir.join(id.to_string());
        match self.0.launch {
            Launch::Own { .. } => Folder::new(path),
            Launch::ByHelper { .. } => Folder::shared(path),
        }
    }

    fn gc_root(&self, id: JobId) -> PathBuf {
        match self.0.launch {
            Launch::Own { .. } => self.0.gc_roots_dir.join(id.to_string()),
            Launch::ByHelper { .. } => self.folder(id).path().join("root"),
        }
    }

    /// Returns whether anything of a job runs.
    fn runs(&self, id: JobId) -> Result<bool, NixError> {
        let folder = self.folder(id);
        match self.0.launch.unit(id) {
            Some(cgroup) => is_populated(&cgroup).map_err(NixError::file("read", cgroup)),
            None => folder.is_locked().map_err(NixError::file("lock", folder.path())),
        }
    }

    /// Returns whether [`start`](Self::start) would take this: is it well formed, is there such a template.
    ///
    /// # Errors
    /// [`NixError::Installable`] or [`NixError::Template`], the caller's fault both.
    pub fn validate(&self, task: &BuildTask) -> Result<(), NixError> {
        Target::new(&task.installable, &self.0.templates_dir, &self.0.leaf_init).map(drop)
    }

    /// Starts a job, and returns at once; it goes on when this process ends. To be called within a tokio runtime.
    ///
    /// # Errors
    /// What [`validate`](Self::validate) says; [`NixError::Started`] if this job ran before; [`NixError::Runner`],
    /// [`NixError::File`] or [`NixError::Watch`] if it can't be started.
    pub fn start(&self, id: JobId, task: &BuildTask) -> Result<RunningJob, NixError> {
        let target = Target::new(&task.installable, &self.0.templates_dir, &self.0.leaf_init)?;
        let folder = self.folder(id);
        let file = |what| NixError::file(what, folder.path());
        folder.create().map_err(file("make"))?;
        let gc_root = self.gc_root(id);
        let (lock, parent) = match &self.0.launch {
            Launch::Own { cgroup } => {
                let lock = folder
                    .lock()
                    .map_err(file("lock"))?
                    .ok_or(NixError::Started(id))?;
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(&gc_root)
                    .map_err(NixError::file("make", &gc_root))?;
                (Some(lock), cgroup.as_ref())
            }
            Launch::ByHelper { .. } => (None, None),
        };
        if folder.pid().map_err(file("read"))?.is_some() || (lock.is_none() && self.runs(id)?) {
            return Err(NixError::Started(id));
        }
        let cgroup = parent.map(|parent| parent.join(id.to_string()));
        let cgroup = cgroup.filter(|path| match Cgroup::new(path).create() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(cgroup = %path.display(), %error, "a job runs without a cgroup of its own");
                false
            }
        });
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let order = Order {
            nix: self.0.nix.clone(),
            target,
            options: self.0.nix_options.clone(),
            gc_root,
            timeout_ms: u64::from(task.timeout_seconds) * 1000,
            grace_ms: milliseconds(self.0.cancel_grace),
            max_log_bytes: self.0.max_log_bytes,
            cgroup,
        };
        folder.write_json(ORDER, &order).map_err(file("write"))?;
        match (&self.0.launch, lock) {
            (Launch::ByHelper { carry_out, .. }, _) => {
                let carry_out = carry_out.clone();
                let starting = async move {
                    let start = insist(&carry_out, HostOp::StartJob { id }).await;
                    start.map_err(|error| error.to_string())
                };
                let cgroup = self.0.launch.unit(id).expect("what the helper starts is a unit");
                RunningJob::unit(id, folder, cgroup, Some(Box::pin(starting)))
            }
            (Launch::Own { .. }, lock) => {
                let lock = lock.expect("it was taken above");
                let child = self.spawn(&folder, lock).map_err(|source| NixError::Runner {
                    program: self.0.runner.clone(),
                    source,
                })?;
                RunningJob::child(id, folder, child)
            }
        }
    }

    /// Starts the runner of a job, with the job's lock as its stdin.
    fn spawn(&self, folder: &Folder, lock: File) -> io::Result<Child> {
        let mut command = Command::new(&self.0.runner);
        command
            .args(&self.0.runner_args)
            .arg(folder.path())
            .current_dir("/")
            .env_clear()
            .envs(
                ENVIRONMENT
                    .iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            .env("LANG", "C.UTF-8")
            .stdin(lock)
            .stdout(Stdio::null())
            .stderr(File::create(folder.path().join(RUNNER_ERRORS))?)
            .kill_on_drop(false);
        command.spawn()
    }

    /// Finds a job that was started once, by this process or one before it.
    ///
    /// # Errors
    /// [`NixError::File`] or [`NixError::Watch`].
    pub async fn find(&self, id: JobId) -> Result<Found, NixError> {
        let folder = self.folder(id);
        if !folder.exists() {
            return Ok(Found::Lost("its folder is gone".to_owned()));
        }
        let file = |what| NixError::file(what, folder.path());
        if let Some(cgroup) = self.0.launch.unit(id) {
            return if self.runs(id)? {
                RunningJob::unit(id, folder, cgroup, None).map(|job| Found::Running(Box::new(job)))
            } else if folder.pid().map_err(file("read"))?.is_some() {
                Ok(Found::Ended(conclude(&folder).await))
            } else {
                Ok(Found::Lost("it never began to run".to_owned()))
            };
        }
        // The lock comes before the pid: a runner that was just started may not have written it yet.
        for _ in 0..500 {
            let Some(pid) = folder.pid().map_err(file("read"))? else {
                if !folder.is_locked().map_err(file("lock"))? {
                    return Ok(Found::Lost("it never began to run".to_owned()));
                }
                sleep(Duration::from_millis(10)).await;
                continue;
            };
            let pidfd = open_pidfd(pid).map_err(|source| NixError::Watch { id, source })?;
            // Locked after the pidfd was opened: so it is the runner's, and no other process has got its number.
            return match pidfd {
                Some(pidfd) if folder.is_locked().map_err(file("lock"))? => {
                    RunningJob::adopted(id, folder, pid, pidfd).map(|job| Found::Running(Box::new(job)))
                }
                _ => Ok(Found::Ended(conclude(&folder).await)),
            };
        }
        Err(NixError::Watch {
            id,
            source: io::Error::other("its runner does not say its pid"),
        })
    }

    /// Returns how far a job is, as it said last; nothing if it said nothing yet.
    #[must_use]
    pub fn progress(&self, id: JobId) -> Option<Progress> {
        self.folder(id).read_json(PROGRESS).ok().flatten()
    }

    /// Returns the log from an offset on, also while the job runs: at most about `max_bytes` of it. Offsets stay what
    /// they are; where bytes were left out, a line says how many.
    ///
    /// # Errors
    /// [`NixError::NoJob`] or [`NixError::File`].
    pub fn read_log(&self, id: JobId, offset: u64, max_bytes: usize) -> Result<LogChunk, NixError> {
        let folder = self.folder(id);
        if !folder.exists() {
            return Err(NixError::NoJob(id));
        }
        let ended = !self.runs(id)?;
        let mut chunk = log::read(folder.path(), offset, max_bytes, ended)
            .map_err(NixError::file("read", folder.path()))?;
        if chunk.complete
            && let Some(missing) = folder
                .read_json::<Ended>(OUTCOME)
                .ok()
                .flatten()
                .and_then(|e| e.log_missing)
        {
            chunk.text.push_str(&missing);
        }
        Ok(chunk)
    }

    /// Ends a job: SIGTERM to Nix, after the grace time SIGKILL to all that is left. Returns when nothing of it runs;
    /// how it ended says [`RunningJob`] or [`find`](Self::find). One that has ended is fine.
    ///
    /// # Errors
    /// [`NixError::NoJob`], [`NixError::File`] or [`NixError::Watch`].
    pub async fn cancel(&self, id: JobId) -> Result<(), NixError> {
        let folder = self.folder(id);
        if !folder.exists() {
            return Err(NixError::NoJob(id));
        }
        if let Launch::ByHelper { carry_out, .. } = &self.0.launch {
            folder
                .mark_cancelled()
                .map_err(NixError::file("write", folder.path()))?;
            let stop = HostOp::StopJob {
                id,
                grace_seconds: u32::try_from(self.0.cancel_grace.as_secs()).unwrap_or(u32::MAX),
            };
            return insist(carry_out, stop)
                .await
                .map_err(|source| NixError::Helper { id, source });
        }
        if self.runs(id)? {
            // Before the signal: a runner that just starts dies of it, and then this says why.
            folder
                .mark_cancelled()
                .map_err(NixError::file("write", folder.path()))?;
        }
        let Found::Running(mut job) = self.find(id).await? else {
            return Ok(());
        };
        let watch = |source| NixError::Watch { id, source };
        let Some(pidfd) = job
            .process_id()
            .map(open_pidfd)
            .transpose()
            .map_err(watch)?
            .flatten()
        else {
            return Ok(());
        };
        match pidfd_send_signal(&pidfd, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(watch(e.into())),
        }
        if timeout(self.0.cancel_grace + Duration::from_secs(10), job.ended())
            .await
            .is_err()
        {
            tracing::error!(job = %id, "the runner of a job does not end when asked to; it is killed");
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            job.ended().await;
        }
        Ok(())
    }

    /// Removes a job's folder with its log. Its GC root stays; see [`release`](Self::release).
    ///
    /// # Errors
    /// [`NixError::Runs`], [`NixError::Helper`] or [`NixError::File`].
    pub async fn forget(&self, id: JobId) -> Result<(), NixError> {
        if self.runs(id)? {
            return Err(NixError::Runs(id));
        }
        match &self.0.launch {
            Launch::Own { .. } => remove(self.folder(id).path()),
            Launch::ByHelper { carry_out, .. } => insist(carry_out, HostOp::RemoveJob { id })
                .await
                .map_err(|source| NixError::Helper { id, source }),
        }
    }

    /// Removes a job's GC root: the garbage collector may take its result.
    ///
    /// # Errors
    /// [`NixError::File`].
    pub fn release(&self, id: JobId) -> Result<(), NixError> {
        match self.0.launch {
            Launch::Own { .. } => remove(&self.gc_root(id)),
            // It went with the job's folder.
            Launch::ByHelper { .. } => Ok(()),
        }
    }

    /// Forgets and releases every job that is not among those given and does not run.
    ///
    /// # Errors
    /// [`NixError::Helper`] or [`NixError::File`].
    pub async fn sweep(&self, known: &BTreeSet<JobId>) -> Result<Swept, NixError> {
        let mut unknown = BTreeSet::new();
        for dir in [&self.0.jobs_dir, &self.0.gc_roots_dir] {
            match fs::read_dir(dir) {
                Ok(entries) => unknown.extend(
                    entries
                        .flatten()
                        .filter_map(|entry| entry.file_name().to_str()?.parse::<JobId>().ok())
                        .filter(|id| !known.contains(id)),
                ),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(NixError::file("read", dir)(e)),
            }
        }
        let mut swept = Swept::default();
        for id in unknown {
            match self.forget(id).await {
                Ok(()) => {
                    self.release(id)?;
                    swept.removed.push(id);
                }
                Err(NixError::Runs(_)) => swept.running.push(id),
                Err(e) => return Err(e),
            }
        }
        Ok(swept)
    }
}

fn remove(path: &Path) -> Result<(), NixError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(NixError::file("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_kinds_of_nix_are_read() {
        for (said, major, minor) in [
            ("nix (Nix) 2.8.0\n", 2, 8),
            ("nix (Nix) 2.19pre20231009_f5a5c1e", 2, 19),
            ("nix (Lix, like Nix) 2.91.1\nmore", 2, 91),
            ("nix (Determinate Nix 3.5.2) 2.28.3", 2, 28),
        ] {
            let version = NixVersion::parse(said).expect(said);
            assert_eq!((version.major, version.minor), (major, minor), "{said}");
        }
        assert_eq!(NixVersion::parse("no"), None);
    }
}
