//! Whether a unit runs, as its cgroup tells: nothing of that is the job's to change.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::running::{async_fd, drain};

/// Returns whether any process is in a cgroup, which may be gone (cgroups(7), "cgroup.events").
pub(crate) fn is_populated(cgroup: &Path) -> io::Result<bool> {
    match std::fs::read_to_string(cgroup.join("cgroup.events")) {
        Ok(text) => Ok(text.lines().any(|line| line == "populated 1")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        // It went away while it was read.
        Err(e) if e.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Waits for the end of a unit.
#[derive(Debug)]
pub(crate) struct UnitWatch {
    cgroup: PathBuf,
    changes: Option<AsyncFd<OwnedFd>>,
}

impl UnitWatch {
    pub(crate) fn new(cgroup: PathBuf) -> Self {
        Self {
            cgroup,
            changes: None,
        }
    }

    /// Waits until no process is in the unit's cgroup. It may be dropped at any time without a loss.
    pub(crate) async fn ended(&mut self) -> io::Result<()> {
        loop {
            if self.changes.is_none() {
                let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
                match inotify::add_watch(
                    &fd,
                    self.cgroup.join("cgroup.events"),
                    WatchFlags::MODIFY | WatchFlags::DELETE_SELF,
                ) {
                    Ok(_) => self.changes = Some(async_fd(fd)?),
                    Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
                    Err(e) => return Err(e.into()),
                }
            }
            // After the watch was set: no change is missed.
            if !is_populated(&self.cgroup)? {
                return Ok(());
            }
            if let Some(changes) = &self.changes {
                let _ = changes.readable().await?;
                drain(changes);
            }
        }
    }
}
