//! Waits for the end of a unit by its cgroup, which leafd can only read.

use std::io;
use std::path::PathBuf;

use leaf_host::cgroup::Cgroup;
use rustix::fs::inotify::WatchFlags;
use rustix::io::Errno;

use crate::changes::Changes;

/// Waits for the end of a unit.
#[derive(Debug)]
pub(crate) struct UnitWatch {
    cgroup: Cgroup,
    changes: Option<Changes>,
}

impl UnitWatch {
    pub(crate) fn new(cgroup: PathBuf) -> Self {
        Self {
            cgroup: Cgroup::at(cgroup),
            changes: None,
        }
    }

    /// Waits until the unit's cgroup contains no process (cgroups(7), `cgroup.events`). Cancel-safe.
    pub(crate) async fn ended(&mut self) -> io::Result<()> {
        loop {
            if self.changes.is_none() {
                let events = self.cgroup.path().join("cgroup.events");
                match Changes::of(&events, WatchFlags::MODIFY | WatchFlags::DELETE_SELF) {
                    Ok(changes) => self.changes = Some(changes),
                    Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NODEV)) => {
                        return Ok(());
                    }
                    Err(e) => return Err(e),
                }
            }
            // Checked after the watch was set, so that no change is missed.
            if !self.cgroup.is_populated().map_err(io::Error::other)? {
                return Ok(());
            }
            if let Some(changes) = &self.changes {
                changes.wait().await?;
                changes.take();
            }
        }
    }
}
