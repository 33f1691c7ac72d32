//! Lock files between programs, in directories of the helper, as the programs of NixOS take them (flock(2)).

use std::fs::File;
use std::time::Duration;

use leaf_host::lock::{self, LockError};
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::files::Directory;

/// How long a lock is waited for: many containers at once each wait for those before them.
const PATIENCE: Duration = Duration::from_secs(300);

/// Returns whether another process holds a lock.
pub(crate) fn is_held(directory: &Directory, name: &str) -> Result<bool> {
    lock::is_held(&open(directory, name)?).map_err(failed(directory, name))
}

/// Returns a lock file, which is created where it is missing, locked. Those who wait are served in turn.
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
