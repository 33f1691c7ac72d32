//! Observations of a leaf's containers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use leaf_core::container::{ObservedContainer, ObservedRun};
use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_host::cgroup;

use crate::conf::Conf;
use crate::{Containers, ObserveError};

/// The result of an observation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The containers that exist.
    pub containers: BTreeMap<ContainerName, ObservedContainer>,
    /// The containers in transition, whose next change may give no signal: they must be observed again soon.
    pub moving: BTreeSet<ContainerName>,
}

impl Containers {
    /// Observes this leaf's containers, without foreign ones. Blocks.
    ///
    /// # Errors
    /// [`ObserveError`] when an existing file can't be read, or systemd does not answer.
    pub fn observe(&self) -> Result<Seen, ObserveError> {
        let (mut confs, closed) = self.confs()?;
        closed.iter().try_for_each(|name| self.is_not_own(name))?;
        confs.retain(|conf| conf.is_of(&self.leaf));
        if self.runtime == Runtime::Systemd {
            let names: Vec<_> = confs.iter().map(|conf| conf.name.clone()).collect();
            self.forget_others(&names);
        }
        self.observe_these(confs)
    }

    /// Observes those of these containers that exist and are this leaf's. Blocks.
    ///
    /// # Errors
    /// [`ObserveError`] when an existing file can't be read, or systemd does not answer.
    pub fn observe_some(&self, names: &BTreeSet<ContainerName>) -> Result<Seen, ObserveError> {
        let mut confs = Vec::new();
        for name in names {
            match self.own_conf(name) {
                Err(ObserveError::Read { source, .. })
                    if source.kind() == io::ErrorKind::PermissionDenied =>
                {
                    self.is_not_own(name)?;
                }
                conf => confs.extend(conf?),
            }
        }
        self.observe_these(confs)
    }

    /// Observes one container, if it exists and is this leaf's. Blocks.
    ///
    /// # Errors
    /// [`ObserveError`] when an existing file can't be read, or systemd does not answer.
    pub fn observe_one(&self, name: &ContainerName) -> Result<Option<ObservedContainer>, ObserveError> {
        let conf = self.own_conf(name)?;
        Ok(self
            .observe_these(conf.into_iter().collect())?
            .containers
            .remove(name))
    }

    /// Fails if a container with an unreadable `NAME.conf` is this leaf's: it must not be taken for a missing one.
    fn is_not_own(&self, name: &ContainerName) -> Result<(), ObserveError> {
        if !self.paths.run.join(name.as_str()).exists() {
            return Ok(());
        }
        let path = self.paths.conf(name);
        Err(ObserveError::read(&path)(io::ErrorKind::PermissionDenied.into()))
    }

    fn own_conf(&self, name: &ContainerName) -> Result<Option<Conf>, ObserveError> {
        Ok(self.conf(name)?.filter(|conf| conf.is_of(&self.leaf)))
    }

    fn observe_these(&self, confs: Vec<Conf>) -> Result<Seen, ObserveError> {
        let names: Vec<_> = confs.iter().map(|conf| conf.name.clone()).collect();
        let (mut runs, moving) = match self.runtime {
            Runtime::Systemd => self.runs_of_units(&names)?,
            // The helper records each of their steps.
            Runtime::Nspawn => (self.supervised_runs(&names)?, BTreeSet::new()),
        };
        let mount = cgroup::mount().ok();
        let containers = confs.into_iter().filter_map(|conf| {
            let (run, oom_kills) = runs.remove(&conf.name)?;
            let (toplevel, digest) = (conf.system(), conf.digest());
            let observed = ObservedContainer {
                name: conf.name.clone(),
                toplevel,
                digest,
                run,
                oom_kills,
                frozen: mount
                    .as_ref()
                    .is_some_and(|mount| self.payload(mount, &conf.name).is_frozen()),
            };
            Some((conf.name, observed))
        });
        Ok(Seen {
            containers: containers.collect(),
            moving,
        })
    }

    fn supervised_runs(
        &self,
        names: &[ContainerName],
    ) -> Result<BTreeMap<ContainerName, (ObservedRun, u64)>, ObserveError> {
        let mount = cgroup::mount().ok();
        let mut runs = BTreeMap::new();
        for name in names {
            let (run, known) = self.supervised_run(name)?;
            // The cgroup is removed with the run; the last count is in the status then.
            let counted = mount
                .as_ref()
                .and_then(|mount| self.payload(mount, name).oom_kills());
            runs.insert(name.clone(), (run, known.max(counted.unwrap_or(0))));
        }
        Ok(runs)
    }
}
