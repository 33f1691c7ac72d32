//! Starting, updating and stopping a container, whatever runs it.

use std::time::Duration;

use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;

use crate::Helper;
use crate::error::Result;
use crate::files::Directory;
use crate::nspawn::cgroup::SupervisedCgroup;
use crate::systemd::payload::UnitCgroup;
use crate::systemd::start::WANTED;

/// How long the kernel may take to freeze all processes of a container.
const FROZEN_WITHIN: Duration = Duration::from_secs(5);

impl Helper {
    /// Starts a container and returns when it is ready. It stays when this process ends.
    pub(crate) async fn start(&self, name: &ContainerName, limit: Duration) -> Result<()> {
        let spec = self.owned_spec(name)?;
        self.state_directory(name)?.touch(WANTED, 0o600)?;
        match self.settings.runtime {
            Runtime::Systemd => self.start_unit(&spec, limit).await,
            Runtime::Nspawn => self.start_supervised(&spec, limit).await,
        }
    }

    /// Stops a container: a word to its init, a grace time, then the end of its cgroup.
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

    /// Freezes the processes of a container, or thaws them. What runs the container stays outside: the freezer of the payload's
    /// own cgroup does it for both runtimes, where systemd's FreezeUnit would freeze that as well, and refuse to stop the unit.
    pub(crate) async fn set_frozen(&self, name: &ContainerName, frozen: bool) -> Result<()> {
        self.owned_spec(name)?;
        let payload = match self.settings.runtime {
            Runtime::Systemd => UnitCgroup::of(name)?.payload(),
            Runtime::Nspawn => SupervisedCgroup::of(&self.leaf, name)?.payload(),
        };
        Ok(payload.set_frozen(frozen, FROZEN_WITHIN).await?)
    }

    /// Brings a running container to what its spec is now, and starts one that does not run.
    pub(crate) async fn update(&self, name: &ContainerName, limit: Duration, grace: Duration) -> Result<()> {
        let spec = self.owned_spec(name)?;
        match self.settings.runtime {
            Runtime::Systemd => {
                self.state_directory(name)?.touch(WANTED, 0o600)?;
                self.update_unit(&spec, limit, grace).await
            }
            // Only systemd's unit has a way to switch to another system inside.
            Runtime::Nspawn => {
                self.stop(name, grace).await?;
                self.start(name, limit).await
            }
        }
    }
}
