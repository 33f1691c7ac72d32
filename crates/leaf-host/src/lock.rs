//! File locks between processes: flock(2), through [`std::fs::File`].
//!
//! A lock belongs to the open file, and is released when that is closed, at the latest with the end of its process.

use std::fs::{File, TryLockError};
use std::io;
use std::time::Duration;

/// An error of taking a lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The file system or the kernel refused.
    #[error("the kernel refused the lock")]
    Io(#[from] io::Error),
    /// Another process held it for longer than this one waits.
    #[error("another process has held the lock for {} s", after.as_secs())]
    Held {
        /// How long this process waited.
        after: Duration,
    },
    /// The thread that waited for it ended.
    #[error("the thread that waited for the lock has ended")]
    Lost,
}

/// Returns whether another open file holds the exclusive lock. It takes the lock shared for a moment, so an attempt to
/// lock it exclusively may fail at that moment.
///
/// # Errors
/// The kernel's error, if the file can't be locked at all.
pub fn is_held(file: &File) -> io::Result<bool> {
    match file.try_lock_shared() {
        Ok(()) => file.unlock().map(|()| false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Tries to take the exclusive lock of a file; returns false if another open file holds a lock.
///
/// # Errors
/// The kernel's error, if the file can't be locked at all.
pub fn try_exclusive(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Takes the exclusive lock of a file, waiting up to `patience` for it. A thread waits in the kernel, which serves
/// waiters in order.
///
/// # Errors
/// [`LockError`] if the file can't be locked, or was not free in time.
pub async fn exclusive(file: File, patience: Duration) -> Result<File, LockError> {
    if try_exclusive(&file)? {
        return Ok(file);
    }
    let (locked, lock) = tokio::sync::oneshot::channel();
    // If the caller has given up, the thread takes the lock in its turn and releases it at once.
    let wait = move || {
        let taken = loop {
            match file.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                taken => break taken,
            }
        };
        let _ = locked.send(taken.map(|()| file));
    };
    std::thread::Builder::new().name("lock".into()).spawn(wait)?;
    match tokio::time::timeout(patience, lock).await {
        Ok(Ok(taken)) => Ok(taken?),
        Ok(Err(_)) => Err(LockError::Lost),
        Err(_) => Err(LockError::Held { after: patience }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> File {
        let mut options = std::fs::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        options.open(path).expect("a lock file")
    }

    #[tokio::test]
    async fn a_held_lock_is_observed_waited_for_and_taken_in_order() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("lock");
        let (holder, looker) = (open(&path), open(&path));
        assert!(!is_held(&looker).expect("a look"));
        assert!(try_exclusive(&holder).expect("a lock"));
        assert!(is_held(&looker).expect("a look"));
        assert!(!try_exclusive(&looker).expect("a try"));

        let soon = Duration::from_millis(50);
        let refused = exclusive(open(&path), soon).await.expect_err("it is held");
        assert!(matches!(refused, LockError::Held { after } if after == soon));

        let mut waits = tokio::task::JoinSet::new();
        waits.spawn(exclusive(open(&path), Duration::from_secs(60)));
        drop(holder);
        let taken = waits.join_next().await.expect("a task").expect("no panic");
        let taken = taken.expect("the lock");
        assert!(is_held(&looker).expect("a look"));
        drop(taken);
        assert!(!is_held(&looker).expect("a look"));
        // An observation leaves no lock behind.
        assert!(try_exclusive(&open(&path)).expect("a lock"));
    }
}
