//! The adoption of a container that this leaf did not make.
//!
//! Its `NAME.conf` and its unit become the leaf's, and its root file system stays as it is. One that the host's NixOS
//! configuration declares can't be adopted, since the next switch would bring its files back.

use std::time::Duration;

use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_host::systemd::{KillWhom, UnitJob, UnitJobOutcome};
use rustix::process::Signal;

use crate::Helper;
use crate::container::conf::conf_name;
use crate::container::owner::Foreign;
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::systemd::payload::UnitCgroup;

/// The time limit for an adopted container to stop.
const PATIENCE: Duration = Duration::from_secs(120);

impl Helper {
    /// Stops a foreign container, so that it can be adopted; its root file system is kept.
    pub(crate) async fn take_over(
        &self,
        confs: &Directory,
        name: &ContainerName,
        foreign: Foreign,
    ) -> Result<()> {
        if foreign != Foreign::Person {
            let Error::Refused(why) = foreign.refused(self, name) else {
                return Err(foreign.refused(self, name));
            };
            return Err(Error::Refused(format!("it can't be adopted: {why}")));
        }
        let roots = Directory::make_root(&self.paths.roots, 0o700)?;
        if roots.has(name.as_str())? {
            // Refuses a link, since its target is unknown.
            roots.open(name.as_str())?;
        }
        let unit = Runtime::unit(name);
        tracing::info!(container = %name, conf = %confs.path().join(conf_name(name)).display(), "adopting a container");
        if let Some(machine) = self.systemd.machine(name.as_str()).await?
            && machine.unit != unit
        {
            return Err(Error::Refused(format!(
                "it runs in {}, which is not {unit}; stop it there before adopting it",
                machine.unit
            )));
        }
        if self
            .systemd
            .loaded_unit(&unit)
            .await?
            .is_some_and(|look| look.is_up())
        {
            match self.systemd.run_job(UnitJob::Stop, &unit, PATIENCE).await? {
                UnitJobOutcome::Done => {}
                UnitJobOutcome::Failed(why) => {
                    return Err(Error::Failed(format!("systemd did not stop {unit}: {why}")));
                }
                UnitJobOutcome::TimedOut => {
                    UnitCgroup::of(name)?.kill_payload().await?;
                    self.systemd
                        .kill(&unit, KillWhom::All, Signal::KILL.as_raw())
                        .await?;
                    if self.systemd.run_job(UnitJob::Stop, &unit, PATIENCE).await? != UnitJobOutcome::Done {
                        return Err(Error::Failed(format!("can't stop {unit}")));
                    }
                }
            }
        }
        Ok(self.systemd.reset_failed(&unit).await?)
    }
}
