//! Prepares a container's start on the host before systemd-nspawn runs: cleans up after an earlier run, creates the
//! veth, and adds its elements to the rules.
//!
//! The helper does that while systemd starts the unit ([`Helper::begin_to_prepare_start`]), and the unit waits for it
//! ([`Helper::prepared_start`]). Without the helper (at boot, when systemd restarts a container, or when the helper was
//! killed), the unit does it itself. The cleanup after the end is similar: it is done by the unit ([`Helper::launch`]),
//! or by the helper after its answer if it stopped the container ([`Helper::tidy`]).

use std::fs::File;
use std::path::Path;

use leaf_core::host_op::RunSpec;

use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::Directory;
use crate::systemd::payload::UnitCgroup;
use crate::{Helper, lock, network};

/// The lock held while a start is prepared or cleaned up after, in the container's run directory.
const LOCK: &str = "prepare.lock";
/// The lock held by the helper while systemd stops the container, in its run directory.
const ATTENDED: &str = "attended.lock";
/// The file that marks the next start as prepared.
pub(crate) const PREPARED: &str = "prepared.json";

/// The spec for which a start is prepared, and facts found on the way.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    digest: String,
    systemd_version: Option<u32>,
}

/// The lock for preparing a container's start: the starting unit waits until it is released.
#[derive(Debug)]
pub(crate) struct Preparing {
    run: Directory,
    _lock: File,
}

impl Helper {
    /// Takes the lock for preparing a container's start. The caller must check afterwards that the container is down:
    /// one that runs by then did not wait for the lock.
    pub(crate) async fn begin_to_prepare_start(&self, name: &ContainerName) -> Result<Preparing> {
        let run = self.run_directory(name)?;
        let held = lock::hold(&run, LOCK).await?;
        run.remove_file(PREPARED)?;
        Ok(Preparing { run, _lock: held })
    }

    /// Prepares the start of a container that is down.
    pub(crate) async fn prepare_start(&self, spec: &RunSpec, preparing: Preparing) -> Result<()> {
        let (version, connected) = tokio::join!(self.systemd.version(), self.connect(spec));
        connected?;
        let note = Note {
            digest: spec.digest(),
            systemd_version: version.ok(),
        };
        let text = serde_json::to_vec(&note).expect("a note always serializes");
        preparing.run.write(PREPARED, &text, 0o600)
    }

    /// Removes the mark of a prepared start that did not happen.
    pub(crate) async fn forget_prepared_start(&self, name: &ContainerName) -> Result<()> {
        self.begin_to_prepare_start(name).await.map(drop)
    }

    /// Returns when the start by this process is prepared, with systemd's version if known. Called by the container's
    /// unit.
    pub(crate) async fn prepared_start(&self, spec: &RunSpec) -> Result<Option<u32>> {
        let run = self.run_directory(&spec.name)?;
        let _lock = lock::hold(&run, LOCK).await?;
        let note = run.read(PREPARED)?;
        run.remove_file(PREPARED)?;
        let note: Option<Note> = note.and_then(|text| serde_json::from_str(&text).ok());
        if let Some(note) = note.filter(|note| note.digest == spec.digest())
            && network::is_there(&spec.name)?
        {
            return Ok(note.systemd_version);
        }
        let (version, connected) = tokio::join!(self.systemd.version(), self.connect(spec));
        connected?;
        Ok(version.ok())
    }

    /// Announces that the helper will clean up after a container that systemd stops, so that its unit does not, and the
    /// caller doesn't wait for it. The caller must call [`Self::tidy`] afterwards.
    pub(crate) async fn attend(&self, name: &ContainerName) -> Result<File> {
        lock::hold(&self.run_directory(name)?, ATTENDED).await
    }

    /// Returns whether the helper will clean up after a container.
    pub(crate) fn is_attended(&self, name: &ContainerName) -> Result<bool> {
        lock::is_held(&self.run_directory(name)?, ATTENDED)
    }

    /// Cleans up after a container, if it is down.
    pub(crate) async fn tidy(&self, name: &ContainerName) -> Result<()> {
        let Some(spec) = self.spec(name)? else {
            return Ok(());
        };
        let _preparing = self.begin_to_prepare_start(name).await?;
        // Without a cgroup it is down; otherwise systemd is asked.
        if UnitCgroup::of(name)?.exists() && self.unit_is_up(name).await? {
            return Ok(());
        }
        self.sweep_below_systemd(&spec).await
    }

    /// Creates a container's veth again, with its elements in the rules.
    async fn connect(&self, spec: &RunSpec) -> Result<()> {
        self.sweep_below_systemd(spec).await?;
        self.attach(spec).await
    }

    /// Cleans up after an earlier run, which must have ended.
    async fn sweep_below_systemd(&self, spec: &RunSpec) -> Result<()> {
        let name = &spec.name;
        let unit = Runtime::unit(name);
        // A killed systemd-nspawn leaves its registration, which would fail the next start. The machines are checked on
        // disk first: most starts need no D-Bus.
        if Path::new("/run/systemd/machines").join(name.as_str()).exists()
            && let Some(machine) = self.systemd.machine(name.as_str()).await?
        {
            if machine.unit != unit {
                return Err(Error::Refused(format!(
                    "the machine {name} is already running, in {}, which is not this leaf's; stop it there",
                    machine.unit
                )));
            }
            self.systemd.unregister_machine(name.as_str()).await?;
        }
        self.release_inputs(name)?;
        self.sweep_common(name).await
    }
}
