//! Hints that something about the containers changed. A hint says: look again. Nothing runs while nothing changes.

use std::io::ErrorKind;
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::{Containers, LookError};

/// How long after the first change of a burst the look is due.
const SETTLE: Duration = Duration::from_millis(20);

/// What the folders of containers are watched for. A supervisor replaces its status by a rename, and lets go of its
/// lock by closing it.
fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::CLOSE_WRITE
        | WatchMask::ONLYDIR
}

/// Hints that something about the containers changed.
#[derive(Debug)]
pub struct Hints {
    containers: Containers,
    inotify: AsyncFd<Inotify>,
}

impl Containers {
    /// Returns hints on the containers of this leaf, from now on: what changes after this call is not missed. Makes
    /// the leaf's run folder where it is missing. Needs tokio with I/O.
    ///
    /// # Errors
    /// [`LookError::Watch`] when the kernel will not tell.
    pub fn watch(&self) -> Result<Hints, LookError> {
        let failed = |source| LookError::Watch {
            path: self.paths.run.clone(),
            source,
        };
        std::fs::create_dir_all(&self.paths.run).map_err(failed)?;
        let inotify = Inotify::init().map_err(failed)?;
        let mut hints = Hints {
            containers: self.clone(),
            inotify: AsyncFd::with_interest(inotify, Interest::READABLE).map_err(failed)?,
        };
        hints.watch_folders().map_err(failed)?;
        Ok(hints)
    }
}

impl Hints {
    /// Returns when something changed since the last call, or since [`Containers::watch`]. Several changes may make
    /// one hint, and a hint may come without a change. Dropping the future loses none.
    ///
    /// # Errors
    /// [`LookError::Watch`] when the kernel will not tell any more.
    pub async fn changed(&mut self) -> Result<(), LookError> {
        let changed = async {
            // A file's closing is told a moment before its lock is free, and changes come in bursts. Nothing is taken
            // before this wait, so that a dropped future loses nothing.
            drop(self.inotify.readable_mut().await?);
            tokio::time::sleep(SETTLE).await;
            loop {
                let mut guard = self.inotify.readable_mut().await?;
                match drain(guard.get_inner_mut()) {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => guard.clear_ready(),
                    other => {
                        other?;
                        break;
                    }
                }
            }
            // A new container's folder is watched before the look that the hint brings about.
            self.watch_folders()
        };
        changed.await.map_err(|source| LookError::Watch {
            path: self.containers.paths.run.clone(),
            source,
        })
    }

    /// Watches the folder of each container; one that is watched already stays so.
    fn watch_folders(&mut self) -> std::io::Result<()> {
        let run = &self.containers.paths.run;
        let mut watches = self.inotify.get_ref().watches();
        watches.add(run, mask())?;
        for entry in std::fs::read_dir(run)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                match watches.add(entry.path(), mask()) {
                    Err(e) if e.kind() == ErrorKind::NotFound => {}
                    other => drop(other?),
                }
            }
        }
        Ok(())
    }
}

/// Takes all that waits, without looking at it.
fn drain(inotify: &mut Inotify) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    let mut any = false;
    loop {
        match inotify.read_events(&mut buffer) {
            Ok(_) => any = true,
            Err(e) if e.kind() == ErrorKind::WouldBlock && any => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}
