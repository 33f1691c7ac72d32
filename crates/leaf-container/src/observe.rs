//! Observations of a leaf's containers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use leaf_core::container::ObservedContainer;
use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_host::cgroup;

use crate::conf::Conf;
use crate::units::Runs;
use crate::{Containers, ObserveError};

/// The result of an observation.
#[derive(Debug)]
pub struct Seen {
    /// The containers that exist.
    pub containers: BTreeMap<ContainerName, ObservedContainer>,
    /// The containers of which a file can't be read, with the reason: they may exist, in any state.
    pub unobserved: BTreeMap<ContainerName, ObserveError>,
    /// The containers in transition, whose next change may give no signal: they must be observed again soon.
    pub moving: BTreeSet<ContainerName>,
}

impl Containers {
    /// Observes this leaf's containers, without foreign ones. Blocks.
    ///
    /// # Errors
    /// [`ObserveError`] when the directory of the containers can't be listed, or systemd does not answer.
    pub fn observe(&self) -> Result<Seen, ObserveError> {
        let mut confs = self.confs()?;
        confs.found.retain(|conf| conf.is_of(&self.leaf));
        if self.runtime == Runtime::Systemd {
            let names: Vec<_> = confs.found.iter().map(|conf| conf.name.clone()).collect();
            self.forget_others(&names);
        }
        self.observe_these(confs.found, confs.unreadable)
    }

    /// Observes those of these containers that exist and are this leaf's. Blocks.
    ///
    /// # Errors
    /// [`ObserveError`] when systemd does not answer.
    pub fn observe_some(&self, names: &BTreeSet<ContainerName>) -> Result<Seen, ObserveError> {
        let (mut confs, mut unreadable) = (Vec::new(), Vec::new());
        for name in names {
            match self.own_conf(name) {
                Ok(conf) => confs.extend(conf),
                Err(error) => unreadable.push((name.clone(), error)),
            }
        }
        self.observe_these(confs, unreadable)
    }

    /// Observes one container, if it exists and is this leaf's. Blocks.
    ///
    /// # Errors
    /// [`ObserveError`] when one of its files can't be read, or systemd does not answer.
    pub fn observe_one(&self, name: &ContainerName) -> Result<Option<ObservedContainer>, ObserveError> {
        let conf = self.own_conf(name)?;
        let mut seen = self.observe_these(conf.into_iter().collect(), Vec::new())?;
        match seen.unobserved.remove(name) {
            Some(error) => Err(error),
            None => Ok(seen.containers.remove(name)),
        }
    }

    /// Returns whether a container with an unreadable `NAME.conf` may be this leaf's, so that it must not be taken for a
    /// missing one. The helper makes this leaf's files readable for its user; one that this user may not read is this
    /// leaf's only if the helper has made a run directory for it.
    fn may_be_own(&self, name: &ContainerName, error: &ObserveError) -> bool {
        let denied = matches!(error, ObserveError::Read { source, .. }
            if source.kind() == io::ErrorKind::PermissionDenied);
        !denied || self.paths.run.join(name.as_str()).exists()
    }

    fn own_conf(&self, name: &ContainerName) -> Result<Option<Conf>, ObserveError> {
        Ok(self.conf(name)?.filter(|conf| conf.is_of(&self.leaf)))
    }

    fn observe_these(
        &self,
        confs: Vec<Conf>,
        unreadable: Vec<(ContainerName, ObserveError)>,
    ) -> Result<Seen, ObserveError> {
        let names: Vec<_> = confs.iter().map(|conf| conf.name.clone()).collect();
        let (mut runs, moving) = match self.runtime {
            Runtime::Systemd => self.runs_of_units(&names)?,
            // The helper records each of their steps.
            Runtime::Nspawn => (self.supervised_runs(&names), BTreeSet::new()),
        };
        let mount = cgroup::mount().ok();
        let mut seen = Seen {
            containers: BTreeMap::new(),
            unobserved: BTreeMap::new(),
            moving,
        };
        let unreadable = unreadable.into_iter();
        seen.unobserved
            .extend(unreadable.filter(|(name, error)| self.may_be_own(name, error)));
        for conf in confs {
            let (run, oom_kills) = match runs.remove(&conf.name) {
                Some(Ok(run)) => run,
                Some(Err(error)) => {
                    seen.unobserved.insert(conf.name, error);
                    continue;
                }
                None => continue,
            };
            let observed = ObservedContainer {
                toplevel: conf.system(),
                digest: conf.digest(),
                run,
                oom_kills,
                frozen: mount
                    .as_ref()
                    .is_some_and(|mount| self.payload(mount, &conf.name).is_frozen()),
                name: conf.name.clone(),
            };
            seen.containers.insert(conf.name, observed);
        }
        Ok(seen)
    }

    fn supervised_runs(&self, names: &[ContainerName]) -> Runs {
        let mount = cgroup::mount().ok();
        let run = |name: &ContainerName| {
            let (run, known) = self.supervised_run(name)?;
            // The cgroup is removed with the run; the last count is in the status then.
            let counted = mount
                .as_ref()
                .and_then(|mount| self.payload(mount, name).oom_kills());
            Ok((run, known.max(counted.unwrap_or(0))))
        };
        names.iter().map(|name| (name.clone(), run(name))).collect()
    }
}

#[cfg(test)]
mod tests {
    use leaf_core::container::ObservedRun;
    use leaf_core::id::LeafName;
    use leaf_host::contract::{HostPaths, conf_marker};
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn an_odd_entry_becomes_a_problem_and_the_other_containers_are_observed() {
        let place = tempfile::tempdir().expect("a directory");
        let leaf = LeafName::new("edge").expect("a leaf");
        let paths = HostPaths {
            confs: place.path().join("confs"),
            run: place.path().join("run"),
            ..HostPaths::new(&leaf)
        };
        std::fs::create_dir(&paths.confs).expect("a directory");
        let at = |name: &str| paths.confs.join(format!("{name}.conf"));
        for name in ["web", "torn", "pipe", "foreign"] {
            let own = if name == "foreign" {
                String::new()
            } else {
                conf_marker(&leaf)
            };
            std::fs::write(at(name), format!("{own}\n")).expect("a conf");
        }
        std::fs::create_dir(at("directory")).expect("a directory");
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
        std::fs::File::create(at("huge"))
            .and_then(|file| file.set_len(1 << 40))
            .expect("a huge file");
        std::os::unix::fs::symlink("/no/such/file", at("link")).expect("a link");
        std::fs::write(at("name-of-a-long-one"), "").expect("a conf");
        for (name, status) in [
            ("web", None),
            ("torn", Some("{\"supervisor_pid\":")),
            ("pipe", None),
        ] {
            let run = paths.run.join(name);
            std::fs::create_dir_all(&run).expect("a directory");
            if let Some(status) = status {
                std::fs::write(run.join("status.json"), status).expect("a status");
            }
        }
        mknodat(
            CWD,
            paths.run.join("pipe/status.json"),
            FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .expect("a FIFO");

        let view = Containers::new(leaf, paths, Runtime::Nspawn);
        let name = |name: &str| ContainerName::new(name).expect("a name");
        let seen = view.observe().expect("an observation");
        let observed: Vec<_> = seen.containers.keys().map(ContainerName::as_str).collect();
        assert_eq!(observed, ["web"]);
        assert_eq!(seen.containers[&name("web")].run, ObservedRun::Stopped);
        let unobserved: Vec<_> = seen.unobserved.keys().map(ContainerName::as_str).collect();
        assert_eq!(unobserved, ["directory", "fifo", "huge", "link", "pipe", "torn"]);
        let some = [name("web"), name("torn"), name("fifo")].into();
        let seen = view.observe_some(&some).expect("an observation");
        assert_eq!((seen.containers.len(), seen.unobserved.len()), (1, 2));
        view.observe_one(&name("torn")).expect_err("its status is torn");
        assert!(view.observe_one(&name("web")).expect("an observation").is_some());

        let foreign = view.foreign().expect("an observation");
        let listed: Vec<_> = foreign.containers.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(listed, ["directory", "fifo", "foreign", "huge", "link"]);
        for (entry, problem) in [
            ("confs/directory.conf", "it is a directory, not a regular file"),
            ("confs/fifo.conf", "it is a FIFO, not a regular file"),
            ("confs/huge.conf", "it has more than 1048576 bytes"),
            ("confs/link.conf", "it is a link to a missing file"),
            (
                "confs/name-of-a-long-one.conf",
                "it has 18 bytes, at most 11 are allowed",
            ),
            ("run/torn/status.json", "it is not a container's status"),
            ("run/pipe/status.json", "it is a FIFO, not a regular file"),
        ] {
            let found = foreign.problems.iter().find(|found| found.entry.ends_with(entry));
            let found = found.unwrap_or_else(|| panic!("{entry}: {:?}", foreign.problems));
            assert!(found.problem.contains(problem), "{found:?}");
        }
        assert_eq!(foreign.problems.len(), 7, "{:?}", foreign.problems);
    }
}
