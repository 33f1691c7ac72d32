//! Locks between programs: of files, by flock(2), as the programs of NixOS take them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::files::Folder;

/// How long a lock is waited for: many containers at once each wait for those before them.
const PATIENCE: Duration = Duration::from_secs(300);

/// Returns whether somebody holds a lock.
pub(crate) fn is_held(folder: &Folder, name: &str) -> Result<bool> {
    let fd = open(folder, name)?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(e) => Err(Error::io(what(folder, name))(e)),
    }
}

/// Makes the lock file where it is not there, and returns it, locked. Who waits is served in turn, and costs nothing
/// meanwhile: a thread waits in the kernel.
pub(crate) async fn hold(folder: &Folder, name: &str) -> Result<OwnedFd> {
    let fd = open(folder, name)?;
    let what = || what(folder, name);
    if rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(fd);
    }
    let (locked, lock) = tokio::sync::oneshot::channel();
    // Where nobody waits any more, it gets the lock in its turn and lets go of it at once.
    let wait = move || {
        let tried = rustix::io::retry_on_intr(|| rustix::fs::flock(&fd, FlockOperation::LockExclusive));
        let _ = locked.send(tried.map(|()| fd));
    };
    std::thread::Builder::new()
        .name("lock".into())
        .spawn(wait)
        .map_err(Error::io(what()))?;
    match tokio::time::timeout(PATIENCE, lock).await {
        Ok(Ok(tried)) => tried.map_err(Error::io(what())),
        Ok(Err(_)) => Err(Error::Failed(format!("{}: who waited for it has ended", what()))),
        Err(_) => Err(Error::Failed(format!(
            "{}: another program has held it for {} s",
            what(),
            PATIENCE.as_secs()
        ))),
    }
}

fn what(folder: &Folder, name: &str) -> String {
    format!("lock {}/{name}", folder.path().display())
}

fn open(folder: &Folder, name: &str) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder.as_fd(), name, flags, Mode::from_raw_mode(0o600))
        .map_err(Error::io(what(folder, name)))
}
