//! Lock files (flock(2)) in the helper's directories, shared with the programs of NixOS.

use std::fs::File;
use std::time::Duration;

use leaf_host::lock::{self, LockError};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::files::Directory;

/// The time limit for taking a lock: when many containers start at once, each waits for those before it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Returns whether another process holds a lock.
pub(crate) fn is_held(directory: &Directory, name: &str) -> Result<bool> {
    lock::is_held(&open(directory, name)?).map_err(failed(directory, name))
}

/// Takes a lock, creating its file if it is missing. Waiters are served in order.
pub(crate) async fn hold(directory: &Directory, name: &str) -> Result<File> {
    let file = open(directory, name)?;
    lock::exclusive(file, PATIENCE)
        .await
        .map_err(failed(directory, name))
}

fn open(directory: &Directory, name: &str) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory.as_fd(), name, flags, Mode::from_raw_mode(0o600))
        .map(File::from)
        .map_err(Error::io(format!("open {}/{name}", directory.path().display())))
}

fn failed<E: Into<LockError>>(directory: &Directory, name: &str) -> impl FnOnce(E) -> Error {
    let path = directory.path().join(name);
    move |source| Error::Lock {
        path,
        source: source.into(),
    }
}
