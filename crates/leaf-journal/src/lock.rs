//! One process holds a state directory. The lock is the kernel's (`flock`), so it ends with its process, however that
//! ends; the file's text says who holds it, for the error of whoever comes second.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The name of the lock file in the state directory.
pub(crate) const FILE: &str = "holder.json";

/// How long a lock may outlive its process: a child that it was just starting when it was killed has the lock until it runs
/// its own program.
const LINGERS: Duration = Duration::from_secs(2);

/// Who holds a state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// The host it runs on: the directory may be shared between hosts or containers.
    pub hostname: String,
    /// Since when it holds the directory.
    pub since: Timestamp,
    /// What it says of itself, such as its instance id.
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
    /// Whether it was a process of this host that has ended.
    fn is_gone(&self) -> bool {
        self.hostname == hostname() && !Path::new(&format!("/proc/{}", self.pid)).exists()
    }
}

fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[expect(clippy::disallowed_methods, reason = "nothing tells when a lock is free")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

/// Why a state directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "the state directory {path} is held by {}: stop that one first, or give this leaf a state directory of its own",
        holder.as_deref().map_or_else(|| "another process".to_owned(), ToString::to_string)
    )]
    Held {
        /// The state directory.
        path: PathBuf,
        /// Who, if its file could be read.
        holder: Option<Box<Holder>>,
    },
    /// The lock file could not be opened, or its file system has no locks.
    #[error("the lock file {path} can't be used")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// A locked state directory; dropping it lets go.
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
        // Written over the old text, whose space it has: a full disk is no reason to lose the lock, and so neither
        // is a text that can't be written.
        let written = file
            .write_all(&text)
            .and_then(|()| file.set_len(text.len() as u64));
        if let Err(error) = written {
            tracing::warn!(path = %path.display(), %error, "can't say in the lock file who holds it");
        }
        Ok(Self(file))
    }
}

/// Returns who holds a state directory, or held it last.
#[must_use]
pub fn holder_of(directory: &Path) -> Option<Holder> {
    let text = std::fs::read(directory.join(FILE)).ok()?;
    let mut values = serde_json::Deserializer::from_slice(&text).into_iter();
    values.next()?.ok()
}
