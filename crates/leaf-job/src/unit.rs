//! Waits for the end of a unit by its cgroup, in which leafd may change nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use leaf_host::cgroup::Cgroup;
use leaf_host::process::async_fd;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::running::drain;

/// Waits for the end of a unit.
#[derive(Debug)]
pub(crate) struct UnitWatch {
    cgroup: Cgroup,
    changes: Option<AsyncFd<OwnedFd>>,
}

impl UnitWatch {
    pub(crate) fn new(cgroup: PathBuf) -> Self {
        Self {
            cgroup: Cgroup::at(cgroup),
            changes: None,
        }
    }

    /// Waits until no process is in the unit's cgroup (cgroups(7), `cgroup.events`). It may be dropped at any time without
    /// a loss.
    pub(crate) async fn ended(&mut self) -> io::Result<()> {
        loop {
            if self.changes.is_none() {
                let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
                match inotify::add_watch(
                    &fd,
                    self.cgroup.path().join("cgroup.events"),
                    WatchFlags::MODIFY | WatchFlags::DELETE_SELF,
                ) {
                    Ok(_) => self.changes = Some(async_fd(fd)?),
                    Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
                    Err(e) => return Err(e.into()),
                }
            }
            // After the watch was set: no change is missed.
            if !self.cgroup.is_populated().map_err(io::Error::other)? {
                return Ok(());
            }
            if let Some(changes) = &self.changes {
                let _ = changes.readable().await?;
                drain(changes);
            }
        }
    }
}
