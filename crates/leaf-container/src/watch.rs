//! Hints that something about the containers changed. A hint says: look again. Nothing runs while nothing changes.
//!
//! The kernel tells of files: of each `NAME.conf`, of what the helper writes of a run, and of processes that were
//! killed for want of memory. systemd tells of units, where it runs the containers.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use inotify::{EventStream, Inotify, WatchMask, Watches};
use leaf_core::host_op::Runtime;
use leaf_core::id::ContainerName;

use crate::signals::Signals;
use crate::{Containers, LookError, cgroup};

/// How long after the first change of a burst the look is due.
const SETTLE: Duration = Duration::from_millis(20);

/// What folders are watched for. A supervisor replaces its status by a rename, and lets go of its lock by closing it.
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
    signals: Option<Signals>,
    /// A change was seen, and not told yet.
    pending: bool,
}

impl fmt::Debug for Hints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hints")
            .field("containers", &self.containers)
            .field("signals", &self.signals)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl Containers {
    /// Returns hints on the containers of this leaf, from now on: what changes after this call is not missed. Makes
    /// the leaf's run folder where it is missing and it may. Needs tokio with I/O.
    ///
    /// # Errors
    /// [`LookError::Watch`] when the kernel will not tell.
    pub fn watch(&self) -> Result<Hints, LookError> {
        let start = || {
            match std::fs::create_dir_all(&self.paths.run) {
                // The helper makes it, with the first container.
                Err(e) if e.kind() == ErrorKind::PermissionDenied => {}
                other => other?,
            }
            let mut hints = Hints {
                containers: self.clone(),
                events: Inotify::init()?.into_event_stream([0; 4096])?,
                signals: (self.runtime == Runtime::Systemd).then(Signals::new),
                pending: false,
            };
            hints.watch_files()?;
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
    /// systemd or its bus may go away: that is no error, and there is a hint when they are back.
    ///
    /// # Errors
    /// [`LookError::Watch`] when the kernel will not tell any more.
    pub async fn changed(&mut self) -> Result<(), LookError> {
        let seen = async {
            if !self.pending {
                let signal = async {
                    match &mut self.signals {
                        Some(signals) => signals.next().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    event = self.events.next() => told(event)?,
                    () = signal => {}
                }
                self.pending = true;
            }
            // A file's closing is told a moment before its lock is free, and changes come in bursts.
            tokio::time::sleep(SETTLE).await;
            while let Some(event) = self.events.next().now_or_never() {
                told(event)?;
            }
            if let Some(signals) = &mut self.signals {
                signals.drain();
            }
            self.pending = false;
            // A new container's folder is watched before the look that the hint brings about.
            self.watch_files()
        };
        seen.await.map_err(self.containers.cannot_watch())
    }

    /// Watches the folder of each container, and what is counted of it; what is watched already stays so.
    fn watch_files(&mut self) -> io::Result<()> {
        let Containers { paths, .. } = &self.containers;
        let mut watches = self.events.watches();
        add(&mut watches, &paths.confs, mask())?;
        // Where there is none yet, or none that may be looked into, that it comes or opens is seen in the folder above.
        if !add(&mut watches, &paths.run, mask())? {
            for folder in paths.run.ancestors().skip(1) {
                if add(&mut watches, folder, mask() | WatchMask::ATTRIB)? {
                    break;
                }
            }
        }
        let mount = cgroup::mount();
        let entries = match std::fs::read_dir(&paths.run) {
            // The helper makes it, and gives it to leafd's group a moment later.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            add(&mut watches, &entry.path(), mask())?;
            let name = entry.file_name();
            if let (Some(mount), Some(Ok(name))) = (&mount, name.to_str().map(ContainerName::new)) {
                let events = self.containers.payload(mount, &name).join("memory.events");
                add(&mut watches, &events, WatchMask::MODIFY)?;
            }
        }
        Ok(())
    }
}

/// Watches a file or folder, and returns whether it is there.
fn add(watches: &mut Watches, path: &Path, mask: WatchMask) -> io::Result<bool> {
    match watches.add(path, mask) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Ok(false),
        // A control group that is just being removed.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(false),
        other => other.map(|_| true),
    }
}

/// What the event was does not matter: the look tells.
fn told<T>(event: Option<io::Result<T>>) -> io::Result<()> {
    match event {
        Some(Ok(_)) => Ok(()),
        Some(Err(e)) => Err(e),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}
