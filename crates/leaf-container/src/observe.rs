//! One look at the containers of a leaf.

use std::collections::BTreeMap;
use std::io;

use leaf_core::container::{ObservedContainer, ObservedRun};
use leaf_core::host_op::Runtime;
use leaf_core::id::ContainerName;

use crate::conf::Conf;
use crate::{Containers, LookError, cgroup};

impl Containers {
    /// Returns the containers that this leaf made. Those of others are not among them. Blocks.
    ///
    /// # Errors
    /// [`LookError`] when a file that is there can't be read, or systemd does not answer.
    pub fn observe(&self) -> Result<BTreeMap<ContainerName, ObservedContainer>, LookError> {
        let (mut confs, closed) = self.confs()?;
        // One that this leaf made and can't see must not be taken for one that is gone.
        if let Some(name) = closed
            .iter()
            .find(|name| self.paths.run.join(name.as_str()).exists())
        {
            let path = self.paths.conf(name);
            return Err(LookError::read(&path)(io::ErrorKind::PermissionDenied.into()));
        }
        confs.retain(|conf| conf.is_of(&self.leaf));
        if self.runtime == Runtime::Systemd {
            let names: Vec<_> = confs.iter().map(|conf| conf.name.clone()).collect();
            self.forget_others(&names);
        }
        self.observe_these(confs)
    }

    /// Returns one container, if there is one of this name that this leaf made. Blocks.
    ///
    /// # Errors
    /// [`LookError`] when a file that is there can't be read, or systemd does not answer.
    pub fn observe_one(&self, name: &ContainerName) -> Result<Option<ObservedContainer>, LookError> {
        let conf = self.conf(name)?.filter(|conf| conf.is_of(&self.leaf));
        Ok(self.observe_these(conf.into_iter().collect())?.remove(name))
    }

    fn observe_these(
        &self,
        confs: Vec<Conf>,
    ) -> Result<BTreeMap<ContainerName, ObservedContainer>, LookError> {
        let names: Vec<_> = confs.iter().map(|conf| conf.name.clone()).collect();
        let mut runs = match self.runtime {
            Runtime::Systemd => self.runs_of_units(&names)?,
            Runtime::Nspawn => self.supervised_runs(&names)?,
        };
        let seen = confs.into_iter().filter_map(|conf| {
            let (run, oom_kills) = runs.remove(&conf.name)?;
            let (toplevel, digest) = (conf.system(), conf.digest());
            let observed = ObservedContainer {
                name: conf.name.clone(),
                toplevel,
                digest,
                run,
                oom_kills,
            };
            Some((conf.name, observed))
        });
        Ok(seen.collect())
    }

    fn supervised_runs(
        &self,
        names: &[ContainerName],
    ) -> Result<BTreeMap<ContainerName, (ObservedRun, u64)>, LookError> {
        let mount = cgroup::mount();
        let mut runs = BTreeMap::new();
        for name in names {
            let (run, known) = self.supervised_run(name)?;
            // The group goes with the run; what was counted last stands in the status then.
            let counted = mount
                .as_ref()
                .and_then(|mount| cgroup::oom_kills(&self.payload(mount, name)));
            runs.insert(name.clone(), (run, known.max(counted.unwrap_or(0))));
        }
        Ok(runs)
    }
}
