//! A job's folder: its files, its lock, and how they are written so that a reader never sees half of one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use rustix::process::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Room that is set aside for the outcome, so that it can be written on a full disk.
const OUTCOME_ROOM: u64 = 64 * 1024;

pub(crate) const ORDER: &str = "order.json";
pub(crate) const PROGRESS: &str = "progress.json";
pub(crate) const OUTCOME: &str = "outcome.json";
pub(crate) const RUNNER_ERRORS: &str = "runner.err";
const OUTCOME_DRAFT: &str = "outcome.draft";
const LOCK: &str = "lock";
const PID: &str = "pid";
const CANCEL: &str = "cancel";

#[derive(Debug, Clone)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn exists(&self) -> bool {
        self.0.is_dir()
    }

    /// Makes the folder, readable by its owner only.
    pub(crate) fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }

    /// Takes the lock; nothing if another process has it.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        self.take(FlockOperation::NonBlockingLockExclusive)
    }

    /// Returns whether the runner lives.
    pub(crate) fn is_locked(&self) -> io::Result<bool> {
        match self.take(FlockOperation::NonBlockingLockShared) {
            Ok(lock) => Ok(lock.is_none()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn take(&self, operation: FlockOperation) -> io::Result<Option<File>> {
        let exclusive = matches!(operation, FlockOperation::NonBlockingLockExclusive);
        let file = OpenOptions::new()
            .read(true)
            .write(exclusive)
            .create(exclusive)
            .truncate(false)
            .mode(0o600)
            .open(self.0.join(LOCK))?;
        match flock(&file, operation) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    pub(crate) fn write_pid(&self, pid: Pid) -> io::Result<()> {
        self.replace(PID, pid.as_raw_nonzero().to_string().as_bytes())
    }

    /// The runner's process id, or nothing if it never began.
    pub(crate) fn pid(&self) -> io::Result<Option<Pid>> {
        match fs::read_to_string(self.0.join(PID)) {
            Ok(text) => Ok(text.trim().parse().ok().and_then(Pid::from_raw)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn mark_cancelled(&self) -> io::Result<()> {
        File::create(self.0.join(CANCEL)).map(drop)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.join(CANCEL).exists()
    }

    /// Writes a file as a whole: a reader sees the old one or the new one.
    pub(crate) fn write_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.replace(name, &serde_json::to_vec(value).map_err(io::Error::other)?)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let draft = self.0.join(format!("{name}.new"));
        fs::write(&draft, bytes)?;
        fs::rename(draft, self.0.join(name))
    }

    /// Returns what is in a file, or nothing if there is none.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.0.join(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Sets room aside for the outcome. Where the file system can't, the outcome needs room when it comes.
    pub(crate) fn reserve_outcome(&self) -> io::Result<File> {
        let file = File::create(self.0.join(OUTCOME_DRAFT))?;
        match fallocate(&file, FallocateFlags::empty(), 0, OUTCOME_ROOM) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(file),
            Err(e) => Err(e.into()),
        }
    }

    /// Writes the outcome into its room, and returns when it is on disk.
    pub(crate) fn write_outcome(&self, mut room: File, value: &impl Serialize) -> io::Result<()> {
        let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
        room.write_all(&bytes)?;
        room.set_len(bytes.len() as u64)?;
        room.sync_all()?;
        fs::rename(self.0.join(OUTCOME_DRAFT), self.0.join(OUTCOME))?;
        File::open(&self.0)?.sync_all()
    }

    /// The end of what the runner said on its stderr: why it could not do its work.
    pub(crate) fn runner_errors(&self) -> String {
        let text = fs::read(self.0.join(RUNNER_ERRORS)).unwrap_or_default();
        let end = &text[text.len().saturating_sub(1024)..];
        String::from_utf8_lossy(end).trim().to_owned()
    }
}
