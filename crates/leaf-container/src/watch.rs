//! Hints that containers may have changed and should be observed again. It does nothing while nothing changes.
//!
//! inotify reports changes of files: each `NAME.conf`, the status files, and the count of processes killed for lack of
//! memory. Under the systemd runtime, machined reports changes of machines.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use inotify::{Event, EventMask, EventStream, Inotify, WatchMask, Watches};
use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_host::cgroup;
use leaf_host::systemd::{MachineEvent, MachineEvents};

use crate::{Containers, ObserveError};

/// The delay of a hint after the first change of a burst.
const SETTLE: Duration = Duration::from_millis(20);

/// Returns the watched events. A supervisor replaces its status by a rename, and releases its lock by closing it.
fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::CLOSE_WRITE
        | WatchMask::ONLYDIR
}

/// The containers that may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Only these containers, of any owner.
    These(BTreeSet<ContainerName>),
    /// Any container.
    Any,
}

impl Changed {
    /// Returns a value without any container.
    #[must_use]
    pub const fn nothing() -> Self {
        Self::These(BTreeSet::new())
    }

    /// Returns a value with one container.
    #[must_use]
    pub fn one(name: ContainerName) -> Self {
        Self::These([name].into())
    }

    /// Adds further containers.
    pub fn add(&mut self, more: Self) {
        match (self, more) {
            (Self::These(names), Self::These(more)) => names.extend(more),
            (_, Self::These(_)) => {}
            (changed, Self::Any) => *changed = Self::Any,
        }
    }

    /// Returns whether nothing has changed.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::These(names) if names.is_empty())
    }
}

/// The role of a watched file or directory.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Watched {
    /// The directory of all `NAME.conf`.
    Confs,
    /// The directory of the containers' run directories.
    Runs,
    /// A container's run directory, or the file with the count of its killed processes.
    Container(ContainerName),
    /// A parent directory, in which one of these, or this directory on the way to it, may be created.
    Above(OsString),
}

impl Watched {
    /// Returns what may have changed with an event on it; `name` is the name in the directory.
    fn changed(&self, name: Option<&OsStr>) -> Changed {
        let named = |text: Option<&str>| match text.map(ContainerName::new) {
            Some(Ok(name)) => Changed::one(name),
            // A temporary file, or not a container's.
            _ => Changed::nothing(),
        };
        let text = name.and_then(OsStr::to_str);
        match self {
            Self::Confs => named(text.and_then(|file| file.strip_suffix(".conf"))),
            Self::Runs => named(text),
            Self::Container(name) => Changed::one(name.clone()),
            // Other programs have files there. An event without a name is about the directory itself.
            Self::Above(leads) if name.is_some_and(|name| name != leads) => Changed::nothing(),
            Self::Above(_) => Changed::Any,
        }
    }
}

/// The source of hints that containers may have changed.
pub struct Hints {
    containers: Containers,
    events: EventStream<[u8; 4096]>,
    /// The watched files and directories, by watch descriptor.
    watched: BTreeMap<i32, Watched>,
    machines: Option<MachineEvents>,
    /// Changes that were not returned yet.
    pending: Changed,
}

impl fmt::Debug for Hints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hints")
            .field("containers", &self.containers)
            .field("machines", &self.machines)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl Containers {
    /// Returns the source of hints about this leaf's containers: changes after this call are not missed. Creates the
    /// leaf's run directory if it is missing and this process may. Needs tokio with I/O.
    ///
    /// # Errors
    /// [`ObserveError::Watch`] when inotify fails.
    pub fn watch(&self) -> Result<Hints, ObserveError> {
        let start = || {
            match std::fs::create_dir_all(&self.paths.run) {
                // The helper creates it with the first container.
                Err(e) if e.kind() == ErrorKind::PermissionDenied => {}
                other => other?,
            }
            let mut hints = Hints {
                containers: self.clone(),
                events: Inotify::init()?.into_event_stream([0; 4096])?,
                watched: BTreeMap::new(),
                machines: (self.runtime == Runtime::Systemd).then(|| self.systemd.machine_events()),
                pending: Changed::nothing(),
            };
            hints.watch_files()?;
            Ok(hints)
        };
        start().map_err(self.cannot_watch())
    }

    fn cannot_watch(&self) -> impl FnOnce(io::Error) -> ObserveError {
        let path = self.paths.run.clone();
        move |source| ObserveError::Watch { path, source }
    }
}

impl Hints {
    /// Waits for a change since the last call, or since [`Containers::watch`], and returns what may have changed.
    /// Several changes may give one hint, and a hint may come without a change. Cancel-safe.
    ///
    /// It is not an error if systemd or D-Bus goes away; when they are back, there is a hint about all containers.
    ///
    /// # Errors
    /// [`ObserveError::Watch`] when inotify fails.
    pub async fn changed(&mut self) -> Result<Changed, ObserveError> {
        let seen = async {
            while self.pending.is_nothing() {
                let machine = async {
                    match &mut self.machines {
                        Some(machines) => changed_by(machines.next().await),
                        None => std::future::pending().await,
                    }
                };
                let changed = tokio::select! {
                    event = self.events.next() => told(&mut self.watched, event)?,
                    changed = machine => changed,
                };
                self.pending = changed;
            }
            // The event of a file's closing precedes the release of its lock, and changes come in bursts.
            tokio::time::sleep(SETTLE).await;
            while let Some(event) = self.events.next().now_or_never() {
                self.pending.add(told(&mut self.watched, event)?);
            }
            while let Some(event) = self.machines.as_mut().and_then(MachineEvents::next_at_hand) {
                self.pending.add(changed_by(event));
            }
            // A new container's directory is watched before the observation that follows the hint.
            self.watch_files()?;
            Ok(std::mem::replace(&mut self.pending, Changed::nothing()))
        };
        seen.await.map_err(self.containers.cannot_watch())
    }

    /// Watches the run directory and the memory events of each container; existing watches are kept.
    fn watch_files(&mut self) -> io::Result<()> {
        let Self {
            containers,
            events,
            watched,
            ..
        } = self;
        let paths = &containers.paths;
        let mut watches = events.watches();
        let mut watch = |path: &Path, mask, what| add(&mut watches, watched, path, mask, what);
        watch(&paths.confs, mask(), Watched::Confs)?;
        // If one is missing or not accessible yet, its creation or change of mode is an event in the parent directory.
        if !watch(&paths.run, mask(), Watched::Runs)? {
            for path in paths.run.ancestors() {
                let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
                    break;
                };
                let above = Watched::Above(name.to_owned());
                if watch(directory, mask() | WatchMask::ATTRIB, above)? {
                    break;
                }
            }
        }
        let mount = cgroup::mount().ok();
        let entries = match std::fs::read_dir(&paths.run) {
            // The helper creates it, and makes it accessible for leafd's group a moment later.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(Ok(name)) = name.to_str().map(ContainerName::new) else {
                continue;
            };
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            watch(&entry.path(), mask(), Watched::Container(name.clone()))?;
            if let Some(mount) = &mount {
                let events = containers.payload(mount, &name).path().join("memory.events");
                watch(&events, WatchMask::MODIFY, Watched::Container(name))?;
            }
        }
        Ok(())
    }
}

/// Returns what may have changed with an event of machined. systemd's own signals are not subscribed to: it would send
/// large messages about each change of each unit of the host. They are not needed: the helper records the begin and end
/// of runs, machined reports machines, and containers in transition are observed again soon.
fn changed_by(event: MachineEvent) -> Changed {
    match event {
        MachineEvent::Changed(machine) => {
            ContainerName::new(machine).map_or(Changed::nothing(), Changed::one)
        }
        MachineEvent::Listening => Changed::Any,
    }
}

/// Watches a file or directory, and returns whether it exists.
fn add(
    watches: &mut Watches,
    watched: &mut BTreeMap<i32, Watched>,
    path: &Path,
    mask: WatchMask,
    what: Watched,
) -> io::Result<bool> {
    match watches.add(path, mask) {
        // Also one that was replaced by a file in the meantime.
        Err(e)
            if matches!(
                e.kind(),
                ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::NotADirectory
            ) =>
        {
            Ok(false)
        }
        // A cgroup that is being removed.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(false),
        other => {
            watched.insert(other?.get_watch_descriptor_id(), what);
            Ok(true)
        }
    }
}

/// Returns what may have changed with an event. The kind of event does not matter, since an observation follows.
fn told<T: AsRef<OsStr>>(
    watched: &mut BTreeMap<i32, Watched>,
    event: Option<io::Result<Event<T>>>,
) -> io::Result<Changed> {
    let event = event.ok_or_else(|| io::Error::from(ErrorKind::UnexpectedEof))??;
    // Events were lost.
    if event.mask.contains(EventMask::Q_OVERFLOW) {
        return Ok(Changed::Any);
    }
    let name = event.name.as_ref().map(AsRef::as_ref);
    let descriptor = event.wd.get_watch_descriptor_id();
    let changed = watched
        .get(&descriptor)
        .map_or(Changed::Any, |watched| watched.changed(name));
    // The last event of a watch whose file or directory was removed.
    if event.mask.contains(EventMask::IGNORED) {
        watched.remove(&descriptor);
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_about_the_container_whose_file_it_is() {
        let web = ContainerName::new("web").expect("a name");
        let of = |watched: &Watched, name: &str| watched.changed(Some(OsStr::new(name)));
        assert_eq!(of(&Watched::Confs, "web.conf"), Changed::one(web.clone()));
        assert_eq!(of(&Watched::Confs, ".web.conf.new"), Changed::nothing());
        assert_eq!(of(&Watched::Runs, "web"), Changed::one(web.clone()));
        assert_eq!(
            of(&Watched::Container(web.clone()), "status.json"),
            Changed::one(web.clone())
        );
        let above = Watched::Above("containers".into());
        assert_eq!(of(&above, "containers"), Changed::Any);
        assert_eq!(of(&above, "rules.lock"), Changed::nothing());
        assert_eq!(above.changed(None), Changed::Any);
        let mut changed = Changed::nothing();
        assert!(changed.is_nothing());
        changed.add(Changed::one(web.clone()));
        changed.add(Changed::nothing());
        assert_eq!(changed, Changed::one(web.clone()));
        changed.add(Changed::Any);
        changed.add(Changed::one(web));
        assert_eq!(changed, Changed::Any);
    }
}
