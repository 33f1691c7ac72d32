//! Hints that something about the containers changed. A hint says: look again. Nothing runs while nothing changes.

use std::fmt;
use std::io::{self, ErrorKind};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use inotify::{EventStream, Inotify, WatchMask};

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
pub struct Hints {
    containers: Containers,
    events: EventStream<[u8; 4096]>,
    /// A change was seen, and not told yet.
    pending: bool,
}

impl fmt::Debug for Hints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hints")
            .field("containers", &self.containers)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl Containers {
    /// Returns hints on the containers of this leaf, from now on: what changes after this call is not missed. Makes
    /// the leaf's run folder where it is missing. Needs tokio with I/O.
    ///
    /// # Errors
    /// [`LookError::Watch`] when the kernel will not tell.
    pub fn watch(&self) -> Result<Hints, LookError> {
        let start = || {
            std::fs::create_dir_all(&self.paths.run)?;
            let mut hints = Hints {
                containers: self.clone(),
                events: Inotify::init()?.into_event_stream([0; 4096])?,
                pending: false,
            };
            hints.watch_folders()?;
            Ok(hints)
        };
        start().map_err(self.cannot_watch())
    }

    fn cannot_watch(&self) -> impl FnOnce(io::Error) -> LookError {
        let path = self.paths.run.clone();
        move |source| LookError::Watch { path, source }
    }
}

impl Hints {
    /// Returns when something changed since the last call, or since [`Containers::watch`]. Several changes may make
    /// one hint, and a hint may come without a change. Dropping the future loses none.
    ///
    /// # Errors
    /// [`LookError::Watch`] when the kernel will not tell any more.
    pub async fn changed(&mut self) -> Result<(), LookError> {
        let seen = async {
            if !self.pending {
                next(self.events.next().await)?;
                self.pending = true;
            }
            // A file's closing is told a moment before its lock is free, and changes come in bursts.
            tokio::time::sleep(SETTLE).await;
            while let Some(event) = self.events.next().now_or_never() {
                next(event)?;
            }
            self.pending = false;
            // A new container's folder is watched before the look that the hint brings about.
            self.watch_folders()
        };
        seen.await.map_err(self.containers.cannot_watch())
    }

    /// Watches the folder of each container; one that is watched already stays so.
    fn watch_folders(&mut self) -> io::Result<()> {
        let run = &self.containers.paths.run;
        let mut watches = self.events.watches();
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

/// What the event was does not matter: the look tells.
fn next<T>(event: Option<io::Result<T>>) -> io::Result<()> {
    match event {
        Some(Ok(_)) => Ok(()),
        Some(Err(e)) => Err(e),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}
