//! The lock of a state directory, which only one process may hold. It is the kernel's (`flock`), so it ends with its
//! process; the file's text describes the holder, for the error message of a second process.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The name of the lock file in the state directory.
pub(crate) const FILE: &str = "holder.json";

/// How long a lock may outlive its process: a child that was being started when the process was killed holds it until it
/// executes its program.
const LINGERS: Duration = Duration::from_secs(2);

/// The holder of a state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process id.
    pub pid: u32,
    /// The name of its host, since the directory may be shared between hosts or containers.
    pub hostname: String,
    /// Since when it has held the directory.
    pub since: Timestamp,
    /// Its description of itself, such as its instance id.
    pub holder: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} on {} since {}",
            self.pid, self.hostname, self.since
        )?;
        if self.holder.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.holder)
        }
    }
}

impl Holder {
    /// Returns whether it was a process of this host that has ended.
    fn is_gone(&self) -> bool {
        self.hostname == hostname() && !Path::new(&format!("/proc/{}", self.pid)).exists()
    }
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[expect(clippy::disallowed_methods, reason = "there is no event for a released lock")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// An error of locking a state directory.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds it.
    #[error(
        "the state directory {path} is held by {}: stop that one first, or give this leaf a state directory of its own",
        holder.as_deref().map_or_else(|| "another process".to_owned(), ToString::to_string)
    )]
    Held {
        /// The state directory.
        path: PathBuf,
        /// The holder, if the file is readable.
        holder: Option<Box<Holder>>,
    },
    /// The lock file could not be opened, or its file system has no locks.
    #[error("can't use the lock file {path}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

/// A locked state directory; dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct DirectoryLock(#[expect(dead_code, reason = "its lock is what counts")] File);

impl DirectoryLock {
    pub(crate) fn take(directory: &Path, holder: &str) -> Result<Self, LockError> {
        let path = directory.join(FILE);
        let io = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io)?;
        let deadline = Instant::now() + LINGERS;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) => {
                    let holder = holder_of(directory);
                    if !holder.as_ref().is_some_and(Holder::is_gone) || Instant::now() > deadline {
                        return Err(LockError::Held {
                            path: directory.to_owned(),
                            holder: holder.map(Box::new),
                        });
                    }
                    pause();
                }
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
        }
        let me = Holder {
            pid: std::process::id(),
            hostname: hostname(),
            since: Timestamp::now(),
            holder: holder.to_owned(),
        };
        let mut text = serde_json::to_vec(&me).expect("a holder has string keys only");
        text.push(b'\n');
        // Overwrites the old text, whose space it reuses: a full disk must not make the lock fail, and neither must a
        // text that can't be written.
        let written = file
            .write_all(&text)
            .and_then(|()| file.set_len(text.len() as u64));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "can't write the holder into the lock file");
        }
        Ok(Self(file))
    }
}

/// Returns the present or last holder of a state directory.
#[must_use]
pub fn holder_of(directory: &Path) -> Option<Holder> {
    let text = std::fs::read(directory.join(FILE)).ok()?;
    let mut values = serde_json::Deserializer::from_slice(&text).into_iter();
    values.next()?.ok()
}
