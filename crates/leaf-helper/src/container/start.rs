//! Starts, updates and stops a container under either runtime.

use std::time::Duration;

use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;

use crate::Helper;
use crate::container::status::note_restart;
use crate::error::Result;
use crate::files::Directory;
use crate::nspawn::cgroup::SupervisedCgroup;
use crate::systemd::payload::UnitCgroup;
use crate::systemd::start::WANTED;

/// The time limit for the kernel to freeze all processes of a container.
const FROZEN_WITHIN: Duration = Duration::from_secs(5);

impl Helper {
    /// Starts a container and returns when it is ready. It outlives this process.
    pub(crate) async fn start(&self, name: &ContainerName, limit: Duration) -> Result<()> {
        let spec = self.owned_spec(name)?;
        self.state_directory(name)?.touch(WANTED, 0o600)?;
        match self.settings.runtime {
            Runtime::Systemd => self.start_unit(&spec, limit).await,
            Runtime::Nspawn => self.start_supervised(&spec, limit).await,
        }
    }

    /// Stops a container: a signal to its init and, after the grace time, SIGKILL to its cgroup.
    pub(crate) async fn stop(&self, name: &ContainerName, grace: Duration) -> Result<()> {
        let confs = Directory::make_root(&self.paths.confs, 0o755)?;
        let owned = self.owns(&confs, name)?;
        let spec = self.spec(name)?;
        if !owned && spec.is_none() {
            return Ok(());
        }
        if spec.is_some() {
            self.state_directory(name)?.remove_file(WANTED)?;
        }
        match self.settings.runtime {
            Runtime::Systemd => self.end_unit(name, grace).await,
            Runtime::Nspawn => self.stop_supervised(name, grace).await,
        }
    }

    /// Freezes or thaws the processes of a container, by the freezer of the payload's cgroup under both runtimes:
    /// systemd's FreezeUnit would freeze the supervisor as well, and then refuse to stop the unit.
    pub(crate) async fn set_frozen(&self, name: &ContainerName, frozen: bool) -> Result<()> {
        self.owned_spec(name)?;
        let payload = match self.settings.runtime {
            Runtime::Systemd => UnitCgroup::of(name)?.payload(),
            Runtime::Nspawn => SupervisedCgroup::of(&self.leaf, name)?.payload(),
        };
        Ok(payload.set_frozen(frozen, FROZEN_WITHIN).await?)
    }

    /// Brings a running container to its present spec; starts a stopped one.
    pub(crate) async fn update(&self, name: &ContainerName, limit: Duration, grace: Duration) -> Result<()> {
        let spec = self.owned_spec(name)?;
        match self.settings.runtime {
            Runtime::Systemd => {
                self.state_directory(name)?.touch(WANTED, 0o600)?;
                self.update_unit(&spec, limit, grace).await
            }
            Runtime::Nspawn => {
                let reason = "a container that is not a unit of systemd can't switch in place";
                note_restart(&self.run_directory(name)?, &spec, reason.to_owned())?;
                // What can't be started again is not stopped.
                self.check_inputs_of_start(name, &spec.options)?;
                self.stop(name, grace).await?;
                self.start(name, limit).await
            }
        }
    }
}
