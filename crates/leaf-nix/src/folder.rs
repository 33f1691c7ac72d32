//! A job's folder: its files, its lock, and how they are written so that a reader never sees half of one.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock};
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

/// The most that is read of one file.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
    shared: bool,
}

impl Folder {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            shared: false,
        }
    }

    /// One that another user, who runs the job, may write to as well.
    pub(crate) fn shared(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            shared: true,
        }
    }

    /// Whether somebody else may have written what stands in it.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// Makes the folder, readable by its owner only. A shared one is its group's, too, which it has of the folder that it
    /// is in (a set-group-ID one); nobody can remove there what is not theirs.
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
            .custom_flags(NO_SURPRISE)
            .open(self.path.join(LOCK))?;
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
        match self.read(PID) {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes)
                .trim()
                .parse()
                .ok()
                .and_then(Pid::from_raw)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn mark_cancelled(&self) -> io::Result<()> {
        match self.make(CANCEL, 0o644) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map(drop),
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.path.join(CANCEL).symlink_metadata().is_ok()
    }

    /// Writes a file as a whole: a reader sees the old one or the new one.
    pub(crate) fn write_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.replace(name, &serde_json::to_vec(value).map_err(io::Error::other)?)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let draft = format!("{name}.new");
        match fs::remove_file(self.path.join(&draft)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.make(&draft, 0o644)?.write_all(bytes)?;
        fs::rename(self.path.join(draft), self.path.join(name))
    }

    /// Makes a file that was not there, so nothing that somebody put there is followed or written to.
    fn make(&self, name: &str, mode: u32) -> io::Result<File> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(self.path.join(name))?;
        // Whatever the umask is: in a shared folder the other user reads it, and nobody else gets at the folder.
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

    /// Returns what is in a file, or nothing if there is none.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match self.read(name) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Sets room aside for the outcome. Where the file system can't, the outcome needs room when it comes.
    pub(crate) fn reserve_outcome(&self) -> io::Result<File> {
        let file = File::create(self.path.join(OUTCOME_DRAFT))?;
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
        fs::rename(self.path.join(OUTCOME_DRAFT), self.path.join(OUTCOME))?;
        File::open(&self.path)?.sync_all()
    }

    /// The end of what the runner said on its stderr: why it could not do its work.
    pub(crate) fn runner_errors(&self) -> String {
        let text = self.read(RUNNER_ERRORS).unwrap_or_default();
        let end = &text[text.len().saturating_sub(1024)..];
        String::from_utf8_lossy(end).trim().to_owned()
    }
}

/// No symbolic link is followed, and no pipe waited for.
const NO_SURPRISE: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();

/// Opens a regular file to be read: a job that another user runs may have put something else there, which leads to what that
/// user must not see, or has no end.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(NO_SURPRISE)
        .open(path)?;
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
    fn nothing_that_a_job_put_into_its_folder_leads_elsewhere() {
        let secret = tempfile::NamedTempFile::new().expect("a file");
        fs::write(secret.path(), "\"secret\"").expect("written");
        let parent = tempfile::tempdir().expect("a folder");
        let folder = Folder::shared(parent.path().join("job"));
        folder.create().expect("made");
        let link = |name: &str| {
            std::os::unix::fs::symlink(secret.path(), folder.path().join(name)).expect("a link");
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
        folder.read_json::<String>(OUTCOME).expect_err("a link");
        folder.pid().expect_err("a link");
        folder.lock().expect_err("a link");
        assert_eq!(folder.runner_errors(), "");
        folder.mark_cancelled().expect("it counts as there");
        folder.write_json(ORDER, &"order").expect("the link is replaced");
        assert_eq!(fs::read_to_string(secret.path()).expect("there"), "\"secret\"");
        assert_eq!(
            folder.read_json::<String>(ORDER).expect("a file").as_deref(),
            Some("order")
        );
        rustix::fs::mknodat(
            rustix::fs::CWD,
            folder.path().join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o666),
            0,
        )
        .expect("a pipe");
        folder.read_json::<String>("pipe").expect_err("it has no end");
    }
}
