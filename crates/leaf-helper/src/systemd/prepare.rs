//! What a container's start needs on the host before systemd-nspawn runs: nothing left of an earlier run, a link, and the
//! link's part in the rules.
//!
//! The helper makes that while systemd starts the unit ([`Helper::begin_to_prepare_start`]), and the unit waits for it
//! ([`Helper::prepared_start`]). Where there is no helper, at boot and when systemd starts a container again, or where the helper
//! was killed, the unit makes it itself. Afterwards it is the same: what a container leaves is removed by its unit
//! ([`Helper::launch`]), or by the helper once it has answered, where that had the container stopped ([`Helper::tidy`]).

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

/// Held by whoever prepares a start, or tidies up, in the container's run directory.
const LOCK: &str = "prepare.lock";
/// Held by the helper while it has systemd stop the container, in its run directory.
const ATTENDED: &str = "attended.lock";
/// What says that a start is prepared: for the next one, and once.
const PREPARED: &str = "prepared.json";

/// For which spec a start is prepared, and what was found out meanwhile.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    digest: String,
    systemd_version: Option<u32>,
}

/// The right to prepare a container's start: a unit that is started waits until it is let go of.
#[derive(Debug)]
pub(crate) struct Preparing {
    run: Directory,
    _lock: File,
}

impl Helper {
    /// Takes the right to prepare a container's start. Whether the container is down is to be looked at afterwards: what
    /// runs by then has got past it.
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
        let text = serde_json::to_vec(&note).expect("a note has text keys and no failing parts");
        preparing.run.write(PREPARED, &text, 0o600)
    }

    /// Takes back that a start is prepared: it did not come about.
    pub(crate) async fn forget_prepared_start(&self, name: &ContainerName) -> Result<()> {
        self.begin_to_prepare_start(name).await.map(drop)
    }

    /// Returns when all is prepared for the start that this process is to make, with systemd's version where it is known.
    /// To be called by the container's unit.
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

    /// Takes it on to remove what a container leaves that systemd is asked to stop: its unit does not, so that nobody has to
    /// wait for that. It is to be [tidied up](Self::tidy) after it.
    pub(crate) async fn attend(&self, name: &ContainerName) -> Result<File> {
        lock::hold(&self.run_directory(name)?, ATTENDED).await
    }

    /// Returns whether a helper removes what a container leaves.
    pub(crate) fn is_attended(&self, name: &ContainerName) -> Result<bool> {
        lock::is_held(&self.run_directory(name)?, ATTENDED)
    }

    /// Removes what a container left on the host, if it is down.
    pub(crate) async fn tidy(&self, name: &ContainerName) -> Result<()> {
        let Some(spec) = self.spec(name)? else {
            return Ok(());
        };
        let _preparing = self.begin_to_prepare_start(name).await?;
        // Without a cgroup it is down; only otherwise systemd need be asked.
        if UnitCgroup::of(name)?.exists() && self.unit_is_up(name).await? {
            return Ok(());
        }
        self.sweep_below_systemd(&spec).await
    }

    /// Makes a container's link anew, with its part in the rules.
    async fn connect(&self, spec: &RunSpec) -> Result<()> {
        self.sweep_below_systemd(spec).await?;
        let (linked, admitted) = tokio::join!(
            network::make_link(&spec.name, spec.network),
            self.admit(&spec.name)
        );
        linked?;
        admitted
    }

    /// Removes what an earlier run left on the host. Nothing of it runs.
    async fn sweep_below_systemd(&self, spec: &RunSpec) -> Result<()> {
        let name = &spec.name;
        let unit = Runtime::unit(name);
        // An nspawn that was killed leaves its registration, and the next start would fail on it. The machines are looked
        // at first: most starts need no D-Bus.
        if Path::new("/run/systemd/machines").join(name.as_str()).exists()
            && let Some(machine) = self.systemd.machine(name.as_str()).await?
        {
            if machine.unit != unit {
                return Err(Error::Refused(format!(
                    "the machine {name} runs already, in {}, which is not this leaf's; end it there",
                    machine.unit
                )));
            }
            self.systemd.unregister_machine(name.as_str()).await?;
        }
        self.release_inputs(name)?;
        self.sweep_common(name).await
    }
}
