//! The files of changes. Each function leaves them complete, whatever happens in its middle.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use jiff::Timestamp;
use leaf_core::change::{Armed, Asking, Decided, HubOverride, Outcome};
use leaf_core::id::ChangeId;
use leaf_core::json::to_json;
use leaf_host::contract::{ARMED, ASKING, BLESSED, DECIDED, GOING_BACK, HUB_OVERRIDE, PROGRESS};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Changes;
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::lock;

/// A file that only takes space, which a change has for its records once the disk is full.
const RESERVE: &str = "reserve";
/// Its size, in bytes: for the reason, the step and the record of a change.
const RESERVE_BYTES: usize = 32 << 10;
/// The record of the open change as one that went back, written when it is armed: it needs no space when the disk is full.
const BACK: &str = "back.json";
/// Why the open change goes back before its time is over. It is removed with it.
const WHY: &str = "why.json";
/// The links to the new and to the earlier system of an open change. Links of the same names with `cim-leaf-` before them lead here
/// from Nix's directory of GC roots.
pub(super) const ROOTS: [&str; 2] = ["next", "previous"];
/// Where a record is moved that can't be read.
const UNREADABLE: &str = "unreadable.json";
/// The start of the names of copies of files.
pub(super) const SAVED: &str = "saved-";
/// The start of the names of the files beside [`HUB_OVERRIDE`] that belong to it.
const OF_HUB: &str = "hub-";
/// The number of decided changes that are kept.
const KEPT: usize = 16;
/// The mode of files that leafd may read.
pub(super) const SHOWN: u32 = 0o640;
/// The mode of files that only their owner may read.
pub(super) const PRIVATE: u32 = 0o400;

/// What was done of an open change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    id: ChangeId,
    step: Step,
    /// How often the present step was tried.
    #[serde(default)]
    tries: u32,
}

/// Why a change goes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Why {
    id: ChangeId,
    why: String,
}

/// The last step of an open change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// All of it is written.
    Written,
    /// The new system is being activated.
    Switching,
    /// The units that use it are restarted.
    Applied,
}

/// The state directory of changes.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) directory: Directory,
    decided: Directory,
}

impl Store {
    /// Opens the state directory, and creates it if it is missing.
    pub(super) fn make(changes: &Changes) -> Result<Self> {
        let directory = Directory::make_root(&changes.directory, 0o750)?;
        if let Some(group) = changes.observers {
            directory.give_to_group(group)?;
        }
        Self::of(directory)
    }

    /// Opens the state directory, if it exists.
    pub(super) fn open(path: &Path) -> Result<Option<Self>> {
        Directory::open_root(path)?.map(Self::of).transpose()
    }

    fn of(directory: Directory) -> Result<Self> {
        let decided = directory.make_if_missing(DECIDED, 0o750)?;
        // Whoever makes it: leafd reads it as well.
        decided.give_to_group(directory.group()?)?;
        Ok(Self { directory, decided })
    }

    /// Takes the lock that orders the steps of the helper and of the guard.
    pub(super) async fn lock(&self) -> Result<File> {
        lock::hold(&self.directory, "lock").await
    }

    /// Returns the armed change, if one is open.
    pub(super) fn armed(&self) -> Result<Option<Armed>> {
        self.read(ARMED)
    }

    /// Returns the change whose way back is being carried out.
    pub(super) fn going_back(&self) -> Result<Option<Armed>> {
        self.read(GOING_BACK)
    }

    /// Returns whether a change is open, be its record readable or not.
    pub(super) fn is_open(&self) -> Result<bool> {
        let has = |name| self.directory.has(name);
        Ok(has(ARMED)? || has(GOING_BACK)? || has(BLESSED)?)
    }

    pub(super) fn asking(&self) -> Result<Option<Asking>> {
        self.read(ASKING)
    }

    pub(super) fn hub(&self) -> Result<Option<HubOverride>> {
        self.read(HUB_OVERRIDE)
    }

    pub(super) fn decided(&self, id: ChangeId) -> Result<Option<Decided>> {
        parse(&self.decided, &file_of(id))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        parse(&self.directory, name)
    }

    pub(super) fn write(&self, name: &str, record: &impl Serialize) -> Result<()> {
        self.directory.write(name, &to_json(record), SHOWN)
    }

    /// Writes a record of a change that was armed: also on a full disk.
    fn write_at_last(&self, name: &str, record: &impl Serialize) -> Result<()> {
        let bytes = to_json(record);
        self.with_reserve(|| self.directory.write(name, &bytes, SHOWN))
    }

    /// Keeps some space for the records of a change that is decided on a full disk.
    pub(super) fn make_reserve(&self) -> Result<()> {
        // Not zeros, which some file systems keep no space for.
        self.directory.write(RESERVE, &[b'r'; RESERVE_BYTES], SHOWN)
    }

    /// Writes something; on a full disk once more, with the space that was kept for that.
    fn with_reserve(&self, write: impl Fn() -> Result<()>) -> Result<()> {
        match write() {
            Err(error) if error.is_full_disk() && self.directory.has(RESERVE)? => {
                tracing::warn!("the disk is full: a change takes the space that was kept for its records");
                self.directory.remove_file(RESERVE)?;
                write()
            }
            written => written,
        }
    }

    /// Writes the record that a change has if it goes back, for a disk that is full then.
    pub(super) fn prepare_back(&self, decided: &Decided) -> Result<()> {
        self.write(BACK, decided)
    }

    /// Returns the record of [`Self::prepare_back`].
    pub(super) fn prepared_back(&self) -> Result<Option<Decided>> {
        self.read(BACK)
    }

    /// Makes space for the first step, which is then put into its place by [`Self::has_written`].
    pub(super) fn prepare_progress(&self, id: ChangeId) -> Result<()> {
        let step = Step::Written;
        self.directory
            .stage(PROGRESS, &to_json(&Progress { id, step, tries: 0 }), SHOWN)
    }

    /// Notes that all of the armed change is written.
    pub(super) fn has_written(&self) -> Result<()> {
        self.directory.put_staged(PROGRESS)
    }

    /// Notes that the units that use the armed change are restarted.
    pub(super) fn has_applied(&self, id: ChangeId) -> Result<()> {
        self.note(id, Step::Applied)
    }

    /// Notes a step of the open change.
    pub(super) fn note(&self, id: ChangeId, step: Step) -> Result<()> {
        self.write_at_last(PROGRESS, &Progress { id, step, tries: 0 })
    }

    /// Notes one more try of the step that the open change is at, and returns how many there were with it.
    pub(super) fn note_try(&self, id: ChangeId) -> Result<u32> {
        let progress: Option<Progress> = self.read(PROGRESS).unwrap_or_default();
        let Some(progress) = progress.filter(|progress| progress.id == id) else {
            return Ok(1);
        };
        let tries = progress.tries + 1;
        self.write_at_last(PROGRESS, &Progress { tries, ..progress })?;
        Ok(tries)
    }

    /// Returns whether there is a file with a step, be it readable or not.
    pub(super) fn has_step(&self) -> Result<bool> {
        self.directory.has(PROGRESS)
    }

    /// Returns the last step of a change, if there was one.
    pub(super) fn step(&self, id: ChangeId) -> Result<Option<Step>> {
        // One that a newer program wrote, and this one can't read, is like none: nothing is done about it.
        let progress: Option<Progress> = match self.read(PROGRESS) {
            Err(Error::Refused(_)) => None,
            read => read?,
        };
        Ok(progress
            .filter(|progress| progress.id == id)
            .map(|progress| progress.step))
    }

    /// Decides that the armed change stays.
    pub(super) fn decide_confirmed(&self, id: ChangeId) -> Result<()> {
        self.directory.move_to(ARMED, &self.decided, &file_of(id))
    }

    /// Returns the change of the system that is confirmed and waits to be installed.
    pub(super) fn blessed(&self) -> Result<Option<Decided>> {
        self.read(BLESSED)
    }

    /// Decides that the armed change of the system stays, and is installed.
    pub(super) fn bless(&self) -> Result<()> {
        self.directory.rename(ARMED, BLESSED)?;
        self.directory.sync()
    }

    /// Writes who confirmed the change that waits to be installed.
    pub(super) fn record_blessed(&self, decided: &Decided) -> Result<()> {
        self.write_at_last(BLESSED, decided)
    }

    /// Closes the change that waits to be installed, with this record if there is space for it.
    pub(super) fn close_blessed(&self, decided: &Decided) -> Result<()> {
        let id = decided.armed.id;
        if let Err(error) = self.record(decided) {
            let error = leaf_core::error::chain(&error);
            tracing::warn!(change = %id, error, "the record of a system that is installed is incomplete");
            return self.directory.move_to(BLESSED, &self.decided, &file_of(id));
        }
        self.directory.remove_file(BLESSED)?;
        self.directory.sync()
    }

    /// Notes why the open change goes back before its time is over. On a full disk nobody hears it.
    pub(super) fn note_why(&self, id: ChangeId, why: &str) {
        let why = Why {
            id,
            why: why.to_owned(),
        };
        if let Err(error) = self.write_at_last(WHY, &why) {
            let error = leaf_core::error::chain(&error);
            tracing::warn!(change = %id, error, "can't note why a change goes back");
        }
    }

    /// Returns why a change goes back before its time is over, if it does.
    pub(super) fn why(&self, id: ChangeId) -> Option<String> {
        let why: Option<Why> = self.read(WHY).unwrap_or_default();
        why.filter(|why| why.id == id).map(|why| why.why)
    }

    /// Decides that the armed change goes back.
    pub(super) fn decide_back(&self) -> Result<()> {
        self.directory.rename(ARMED, GOING_BACK)?;
        self.directory.sync()
    }

    /// Writes how a change was decided.
    pub(super) fn record(&self, decided: &Decided) -> Result<()> {
        let bytes = to_json(decided);
        self.with_reserve(|| self.decided.write(&file_of(decided.armed.id), &bytes, SHOWN))
    }

    /// Writes that a change went back, with the record that was prepared if there is no space for this one, and closes it.
    pub(super) fn close_back(&self, decided: &Decided) -> Result<()> {
        let id = decided.armed.id;
        if let Err(error) = self.record(decided) {
            if !self.directory.has(BACK)? {
                return Err(error);
            }
            let error = leaf_core::error::chain(&error);
            tracing::warn!(change = %id, error, "the record of a change that went back has no time");
            self.directory.move_to(BACK, &self.decided, &file_of(id))?;
        }
        self.directory.remove_file(GOING_BACK)?;
        self.directory.sync()
    }

    /// Removes the armed change of which nothing was applied, after its files were put back.
    pub(super) fn disarm(&self) -> Result<()> {
        self.directory.remove_file(ARMED)?;
        self.directory.sync()
    }

    /// Moves a record that can't be read out of the way.
    pub(super) fn set_aside(&self, name: &str) -> Result<()> {
        self.directory.rename(name, UNREADABLE)?;
        self.directory.sync()
    }

    /// Returns the name of a file of a hub's change, beside [`HUB_OVERRIDE`].
    pub(super) fn file_of_hub(id: ChangeId, end: &str) -> String {
        format!("{OF_HUB}{id}.{end}")
    }

    /// Copies a file that is to be put back, and returns the copy's name; `None` if there is no such file.
    pub(super) fn save(&self, number: usize, name: &str) -> Result<Option<String>> {
        if !self.directory.has(name)? {
            return Ok(None);
        }
        let saved = format!("{SAVED}{number}");
        self.directory.copy_from(&self.directory, name, &saved)?;
        Ok(Some(saved))
    }

    /// Removes what changes that are decided left. None may be open.
    pub(super) fn tidy(&self) -> Result<()> {
        let hub = self.hub();
        let is_used = |name: &str| match &hub {
            Ok(Some(hub)) => [&hub.ca, &hub.credentials]
                .into_iter()
                .flatten()
                .any(|used| used == name),
            Ok(None) => false,
            // Of a newer program: what it uses is unknown.
            Err(_) => true,
        };
        let is_staged = |name: &str| name.starts_with('.') && name.ends_with(".new");
        for name in self.directory.names()? {
            let left = [PROGRESS, BACK, ASKING, WHY, RESERVE].contains(&name.as_str())
                || ROOTS.contains(&name.as_str())
                || name.starts_with(SAVED)
                || is_staged(&name)
                || name.starts_with(OF_HUB) && !is_used(&name);
            if left {
                self.directory.remove_file(&name)?;
            }
        }
        for name in self.decided.names()?.iter().filter(|name| is_staged(name)) {
            self.decided.remove_file(name)?;
        }
        self.directory.sync()
    }

    /// Removes all but the newest decided changes. This one is kept.
    pub(super) fn prune(&self, just_decided: ChangeId) -> Result<()> {
        let mut files = Vec::new();
        for name in self.decided.names()? {
            if name == file_of(just_decided) {
                continue;
            }
            let path = self.decided.path().join(&name);
            let metadata = std::fs::symlink_metadata(&path)
                .map_err(Error::io(format!("read the metadata of {}", path.display())))?;
            files.push((metadata.mtime(), name));
        }
        files.sort_unstable();
        let surplus = files.len().saturating_sub(KEPT - 1);
        for (_, name) in files.iter().take(surplus) {
            self.decided.remove_file(name)?;
        }
        Ok(())
    }
}

/// Returns a decided change.
pub(super) fn decided(armed: Armed, outcome: Outcome) -> Decided {
    Decided {
        armed,
        outcome: Some(outcome),
    }
}

/// Returns the time for people.
pub(super) fn wall_clock() -> Option<Timestamp> {
    Some(Timestamp::now())
}

fn file_of(id: ChangeId) -> String {
    format!("{id}.json")
}

fn parse<T: DeserializeOwned>(directory: &Directory, name: &str) -> Result<Option<T>> {
    let Some(text) = directory.read(name)? else {
        return Ok(None);
    };
    serde_json::from_str(&text).map(Some).map_err(|e| {
        let path = directory.path().join(name);
        Error::Refused(format!("{} can't be read: {e}", path.display()))
    })
}
