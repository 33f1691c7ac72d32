//! Hints that something about the containers changed, and which. A hint says: observe it again. Nothing runs while nothing
//! changes.
//!
//! The kernel tells of files: of each `NAME.conf`, of what the helper writes of a run, and of processes that were
//! killed for want of memory. systemd tells of units, where it runs the containers.

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

/// How long after the first change of a burst the look is due.
const SETTLE: Duration = Duration::from_millis(20);

/// What directories are watched for. A supervisor replaces its status by a rename, and lets go of its lock by closing it.
fn mask() -> WatchMask {
    WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_FROM
        | WatchMask::MOVED_TO
        | WatchMask::CLOSE_WRITE
        | WatchMask::ONLYDIR
}

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Nothing but these containers, anybody's.
    These(BTreeSet<ContainerName>),
    /// Any of them.
    Any,
}

impl Changed {
    /// Nothing.
    #[must_use]
    pub const fn nothing() -> Self {
        Self::These(BTreeSet::new())
    }

    /// Only this one.
    #[must_use]
    pub fn one(name: ContainerName) -> Self {
        Self::These([name].into())
    }

    /// Adds what else may have changed.
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

/// What a watched file or directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Watched {
    /// The directory of all `NAME.conf`.
    Confs,
    /// The directory in which each container has one for its run.
    Runs,
    /// A container's directory of its run, or the count of its killed processes.
    Container(ContainerName),
    /// A directory above, where one of these may come, or this one that leads to it.
    Above(OsString),
}

impl Watched {
    /// What may have changed by an event on it; `name` is of what is in the directory.
    fn changed(&self, name: Option<&OsStr>) -> Changed {
        let named = |text: Option<&str>| match text.map(ContainerName::new) {
            Some(Ok(name)) => Changed::one(name),
            // Something on the way to its name, or of no container.
            _ => Changed::nothing(),
        };
        let text = name.and_then(OsStr::to_str);
        match self {
            Self::Confs => named(text.and_then(|file| file.strip_suffix(".conf"))),
            Self::Runs => named(text),
            Self::Container(name) => Changed::one(name.clone()),
            // Others have their own files there. One without a name is about the directory itself.
            Self::Above(leads) if name.is_some_and(|name| name != leads) => Changed::nothing(),
            Self::Above(_) => Changed::Any,
        }
    }
}

/// Hints that something about the containers changed.
pub struct Hints {
    containers: Containers,
    events: EventStream<[u8; 4096]>,
    /// What is watched, by the kernel's numbers.
    watched: BTreeMap<i32, Watched>,
    machines: Option<MachineEvents>,
    /// What was seen, and not told yet.
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
    /// Returns hints on the containers of this leaf, from now on: what changes after this call is not missed. Makes
    /// the leaf's run directory where it is missing and it may. Needs tokio with I/O.
    ///
    /// # Errors
    /// [`ObserveError::Watch`] when the kernel will not tell.
    pub fn watch(&self) -> Result<Hints, ObserveError> {
        let start = || {
            match std::fs::create_dir_all(&self.paths.run) {
                // The helper makes it, with the first container.
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
    /// Returns what may have changed since the last call, or since [`Containers::watch`], when something did. Several
    /// changes may make one hint, and a hint may come without a change. Dropping the future loses none.
    ///
    /// systemd or its bus may go away: that is no error, and there is a hint on all when they are back.
    ///
    /// # Errors
    /// [`ObserveError::Watch`] when the kernel will not tell any more.
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
            // A file's closing is told a moment before its lock is free, and changes come in bursts.
            tokio::time::sleep(SETTLE).await;
            while let Some(event) = self.events.next().now_or_never() {
                self.pending.add(told(&mut self.watched, event)?);
            }
            while let Some(event) = self.machines.as_mut().and_then(MachineEvents::next_at_hand) {
                self.pending.add(changed_by(event));
            }
            // A new container's directory is watched before the look that the hint brings about.
            self.watch_files()?;
            Ok(std::mem::replace(&mut self.pending, Changed::nothing()))
        };
        seen.await.map_err(self.containers.cannot_watch())
    }

    /// Watches the directory of each container, and what is counted of it; what is watched already stays so.
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
        // Where there is none yet, or none that may be looked into, that it comes or opens is seen in the directory above.
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
            // The helper makes it, and gives it to leafd's group a moment later.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(Ok(name)) = name.to_str().map(ContainerName::new) else {
                continue;
            };
            if !entry.file_type()?.is_dir() {
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

/// What may have changed by an event of machined. systemd itself is not asked for its signals: it would tell, by large
/// messages, of each change of each unit of the host, and what concerns containers is known without. The helper writes when
/// a run begins and ends, machined tells of machines, and what is moving is observed again soon.
fn changed_by(event: MachineEvent) -> Changed {
    match event {
        MachineEvent::Changed(machine) => {
            ContainerName::new(machine).map_or(Changed::nothing(), Changed::one)
        }
        MachineEvent::Listening => Changed::Any,
    }
}

/// Watches a file or directory, and returns whether it is there.
fn add(
    watches: &mut Watches,
    watched: &mut BTreeMap<i32, Watched>,
    path: &Path,
    mask: WatchMask,
    what: Watched,
) -> io::Result<bool> {
    match watches.add(path, mask) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => Ok(false),
        // A control group that is just being removed.
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(false),
        other => {
            watched.insert(other?.get_watch_descriptor_id(), what);
            Ok(true)
        }
    }
}

/// What may have changed by an event; what the event was does not matter: the look tells.
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
    // The last event of a watch whose file or directory is gone.
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
