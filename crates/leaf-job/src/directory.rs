//! A job's directory: its files, its lock, and atomic writes.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_host::lock;
use rustix::fs::{FallocateFlags, OFlags, fallocate, statvfs};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The space reserved for the outcome, in bytes, so that it can be written on a full disk.
const OUTCOME_RESERVE_BYTES: u64 = 64 * 1024;

pub(crate) const ORDER: &str = "order.json";
pub(crate) const PROGRESS: &str = "progress.json";
pub(crate) const ACTIVITIES: &str = "activities.json";
pub(crate) const OUTCOME: &str = "outcome.json";
pub(crate) const RUNNER_ERRORS: &str = "runner.err";
const OUTCOME_DRAFT: &str = "outcome.draft";
const LOCK: &str = "lock";
const PID: &str = "pid";
const CANCEL: &str = "cancel";

/// The least time between two versions of [`PROGRESS`] and two writes to the log, and between two reads of them.
pub(crate) const UPDATE_INTERVAL: Duration = Duration::from_millis(200);

/// The maximum size of a file that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// The directory of one job.
#[derive(Debug, Clone)]
pub(crate) struct JobDirectory {
    path: PathBuf,
    shared: bool,
}

impl JobDirectory {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            shared: false,
        }
    }

    /// Returns a directory to which the user that runs the job may write as well.
    pub(crate) fn shared(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            shared: true,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Creates the directory, readable by its owner only. A shared one is its group's, too, which it inherits from the
    /// set-group-ID directory that it is in; its sticky bit keeps each user from removing the other's files. Idempotent.
    pub(crate) fn create(&self) -> io::Result<()> {
        if !self.shared {
            return DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        }
        match fs::create_dir(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        fs::set_permissions(&self.path, Permissions::from_mode(0o1770))
    }

    /// Takes the lock; returns `None` if another process holds it.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(SAFE_OPEN)
            .open(self.path.join(LOCK))?;
        Ok(lock::try_exclusive(&file)?.then_some(file))
    }

    /// Returns whether the runner is running, according to the lock that it holds.
    pub(crate) fn is_locked(&self) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        match options
            .read(true)
            .custom_flags(SAFE_OPEN)
            .open(self.path.join(LOCK))
        {
            Ok(file) => lock::is_held(&file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn write_pid(&self, pid: u32) -> io::Result<()> {
        self.replace(PID, pid.to_string().as_bytes())
    }

    /// Returns the runner's process id; `None` if it never started.
    pub(crate) fn pid(&self) -> io::Result<Option<u32>> {
        let bytes = self.read_if_any(PID)?;
        Ok(bytes.and_then(|bytes| String::from_utf8_lossy(&bytes).trim().parse().ok()))
    }

    pub(crate) fn mark_cancelled(&self) -> io::Result<()> {
        match self.create_file(CANCEL, 0o644) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            created => created.map(drop),
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.path.join(CANCEL).symlink_metadata().is_ok()
    }

    /// Replaces a file atomically: a reader sees the old or the new content.
    pub(crate) fn write_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.replace(name, &serde_json::to_vec(value).map_err(io::Error::other)?)
    }

    /// Removes a file that says what the job is doing; what can't be removed stays.
    pub(crate) fn remove_activities(&self) {
        let _ = fs::remove_file(self.path.join(ACTIVITIES));
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let draft = format!("{name}.new");
        match fs::remove_file(self.path.join(&draft)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.create_file(&draft, 0o644)?.write_all(bytes)?;
        fs::rename(self.path.join(draft), self.path.join(name))
    }

    /// Creates a file that must not exist, so that no link of another user is followed.
    fn create_file(&self, name: &str, mode: u32) -> io::Result<File> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(self.path.join(name))?;
        // Independent of the umask: in a shared directory the other user must be able to read it; no third user may
        // enter the directory.
        if self.shared {
            file.set_permissions(Permissions::from_mode(mode))?;
        }
        Ok(file)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        open(&self.path.join(name))?
            .take(MAX_BYTES)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Returns the contents of a file, if it exists.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        let bytes = self.read_if_any(name)?;
        let json = bytes.map(|bytes| serde_json::from_slice(&bytes));
        json.transpose().map_err(io::Error::other)
    }

    fn read_if_any(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match self.read(name) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Reserves space for the outcome. If the file system doesn't support that, the outcome needs space when it is
    /// written.
    pub(crate) fn reserve_outcome(&self) -> io::Result<File> {
        let file = File::create(self.path.join(OUTCOME_DRAFT))?;
        match fallocate(&file, FallocateFlags::empty(), 0, OUTCOME_RESERVE_BYTES) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(file),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes the outcome into the reserved space, and returns when it is on the disk.
    pub(crate) fn write_outcome(&self, mut reserved: File, value: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
        reserved.write_all(&bytes)?;
        reserved.set_len(bytes.len() as u64)?;
        reserved.sync_all()?;
        fs::rename(self.path.join(OUTCOME_DRAFT), self.path.join(OUTCOME))?;
        File::open(&self.path)?.sync_all()
    }

    /// Returns the reason why a runner ended without an outcome: the end of its standard error, or a full disk; `None`
    /// if unknown.
    pub(crate) fn runner_errors(&self) -> Option<String> {
        let text = self.read(RUNNER_ERRORS).unwrap_or_default();
        let end = &text[text.len().saturating_sub(1024)..];
        let text = String::from_utf8_lossy(end).trim().to_owned();
        if !text.is_empty() {
            return Some(text);
        }
        let free = statvfs(&self.path).ok()?;
        (free.f_bavail.saturating_mul(free.f_frsize) < OUTCOME_RESERVE_BYTES)
            .then(|| format!("the file system of {} is full", self.path.display()))
    }
}

/// Flags that neither follow a symbolic link nor block on a pipe.
const SAFE_OPEN: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();

/// Opens a regular file for reading. A job of another user may have replaced it by something else: a link to a file
/// that the user must not read, or a pipe without an end.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(SAFE_OPEN).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other(format!(
            "{} is not a regular file",
            path.display()
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_or_pipe_in_a_shared_directory_is_followed() {
        let secret = tempfile::NamedTempFile::new().expect("a file");
        fs::write(secret.path(), "\"secret\"").expect("written");
        let parent = tempfile::tempdir().expect("a directory");
        let directory = JobDirectory::shared(parent.path().join("job"));
        directory.create().expect("created");
        let link = |name: &str| {
            std::os::unix::fs::symlink(secret.path(), directory.path().join(name)).expect("a link");
        };
        for name in [
            OUTCOME,
            PROGRESS,
            RUNNER_ERRORS,
            PID,
            CANCEL,
            LOCK,
            "order.json.new",
        ] {
            link(name);
        }
        directory.read_json::<String>(OUTCOME).expect_err("a link");
        directory.pid().expect_err("a link");
        directory.lock().expect_err("a link");
        assert_eq!(directory.runner_errors(), None);
        directory.mark_cancelled().expect("it counts as there");
        directory
            .write_json(ORDER, &"order")
            .expect("the link is replaced");
        assert_eq!(fs::read_to_string(secret.path()).expect("there"), "\"secret\"");
        assert_eq!(
            directory.read_json::<String>(ORDER).expect("a file").as_deref(),
            Some("order")
        );
        rustix::fs::mknodat(
            rustix::fs::CWD,
            directory.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .expect("a pipe");
        directory.read_json::<String>("pipe").expect_err("it has no end");
    }
}
