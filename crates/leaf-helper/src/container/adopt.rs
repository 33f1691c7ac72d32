//! The adoption of a container that this leaf did not make.
//!
//! Its `NAME.conf` and its unit become the leaf's, and its root file system stays as it is. One that the system's own
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

/// How long a container that is taken over may take to stop.
const PATIENCE: Duration = Duration::from_secs(120);

impl Helper {
    /// Ends a container that somebody else made, so that it can be this leaf's; its root file system stays.
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
            // Refuses one that is a link: what it leads to is not known.
            roots.open(name.as_str())?;
        }
        let unit = Runtime::unit(name);
        tracing::info!(container = %name, conf = %confs.path().join(conf_name(name)).display(), "is adopted");
        if let Some(machine) = self.systemd.machine(name.as_str()).await?
            && machine.unit != unit
        {
            return Err(Error::Refused(format!(
                "it runs in {}, which is not {unit}; end it there, and adopt it then",
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
                        return Err(Error::Failed(format!("{unit} can't be ended")));
                    }
                }
            }
        }
        Ok(self.systemd.reset_failed(&unit).await?)
    }
}
