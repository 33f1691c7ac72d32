//! The foreign containers of this host.

use std::collections::BTreeSet;
use std::path::Path;

use leaf_core::container::{EntryProblem, ForeignContainer};
use leaf_core::id::{ContainerName, StorePath};
use leaf_core::runtime::Runtime;

use crate::conf::{Conf, problem_of};
use crate::{Containers, ObserveError};

/// The directory of the profiles of containers made by `nixos-container` (nixos-container.pl).
const PROFILES: &str = "/nix/var/nix/profiles/per-container";
/// The directory of systemd-machined's running machines.
const MACHINES: &str = "/run/systemd/machines";

/// The foreign containers of a host, and the entries of the host's directories that are no usable container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreign {
    /// The foreign containers, sorted by name.
    pub containers: Vec<ForeignContainer>,
    /// The entries with a problem, of any owner.
    pub problems: Vec<EntryProblem>,
}

impl Containers {
    /// Returns the foreign containers of this host, and the entries with a problem. Blocks.
    ///
    /// A machine without a `NAME.conf` is not among them.
    ///
    /// # Errors
    /// [`ObserveError`] when the directory of the containers can't be listed, or systemd does not answer.
    pub fn foreign(&self) -> Result<Foreign, ObserveError> {
        let confs = self.confs()?;
        let mut problems = confs.problems();
        let (own, foreign): (Vec<_>, Vec<_>) =
            confs.found.into_iter().partition(|conf| conf.is_of(&self.leaf));
        let unobserved = own.iter().filter_map(|conf| self.recorded(&conf.name).err());
        problems.extend(unobserved.map(|error| problem_of(&error)));
        let unreadable: Vec<_> = confs.unreadable.into_iter().map(|(name, _)| name).collect();
        if foreign.is_empty() && unreadable.is_empty() {
            return Ok(Foreign {
                containers: Vec::new(),
                problems,
            });
        }
        let up: BTreeSet<_> = match self.runtime {
            Runtime::Systemd => self.units_up()?.into_iter().collect(),
            Runtime::Nspawn => BTreeSet::new(),
        };
        let runs = |name: &ContainerName| {
            up.contains(&Runtime::unit(name)) || Path::new(MACHINES).join(name.as_str()).exists()
        };
        let mut found: Vec<_> = foreign
            .iter()
            .map(|conf| foreign_of(conf, runs(&conf.name)))
            .collect();
        found.extend(unreadable.into_iter().map(|name| ForeignContainer {
            declarative: is_declarative(&self.paths.conf(&name)),
            running: runs(&name),
            toplevel: profile(&name),
            address: None,
            // Unknown, so the worse case is assumed.
            host_users: true,
            name,
        }));
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Foreign {
            containers: found,
            problems,
        })
    }
}

fn foreign_of(conf: &Conf, running: bool) -> ForeignContainer {
    let name = conf.name.clone();
    ForeignContainer {
        declarative: is_declarative(&conf.path),
        running,
        toplevel: conf.system().or_else(|| profile(&name)),
        address: conf
            .value("LOCAL_ADDRESS")
            .and_then(|address| address.split('/').next()?.parse().ok()),
        host_users: conf
            .value("PRIVATE_USERS")
            .is_none_or(|users| matches!(users, "" | "no")),
        name,
    }
}

/// Returns whether it is declared in the host's NixOS configuration: NixOS links declared files into the store, and a
/// file that is not writable must be left alone (nixos-container.pl, "destroy").
pub(crate) fn is_declarative(conf: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::symlink_metadata(conf)
        .is_ok_and(|meta| meta.is_symlink() || meta.permissions().mode() & 0o200 == 0)
}

/// Returns the system that its profile leads to.
fn profile(name: &ContainerName) -> Option<StorePath> {
    let profile = Path::new(PROFILES).join(name.as_str()).join("system");
    let path = std::fs::canonicalize(profile).ok()?;
    StorePath::new(path.to_str()?).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use leaf_core::id::LeafName;
    use leaf_host::contract::{HostPaths, conf_marker};

    use super::*;

    #[test]
    fn foreign_containers_are_listed_and_declared_ones_marked() {
        let place = tempfile::tempdir().expect("a directory");
        let leaf = LeafName::new("edge").expect("a leaf");
        let paths = HostPaths {
            confs: place.path().join("confs"),
            run: place.path().join("run"),
            ..HostPaths::new(&leaf)
        };
        let store = "/nix/store/00000000000000000000000000000000-system";
        std::fs::create_dir(&paths.confs).expect("a directory");
        let write = |file: &str, text: &str| std::fs::write(paths.confs.join(file), text).expect("a file");
        write("own.conf", &format!("{}\n", conf_marker(&leaf)));
        write(
            "made.conf",
            &format!("SYSTEM_PATH={store}\nLOCAL_ADDRESS=10.1.2.3/24\nPRIVATE_USERS=pick\n"),
        );
        write("fixed.conf", "PRIVATE_USERS=no\n");
        let fixed = std::fs::Permissions::from_mode(0o444);
        std::fs::set_permissions(paths.confs.join("fixed.conf"), fixed).expect("a mode");
        write("other.txt", "");
        write("bad name!.conf", "");
        std::fs::write(place.path().join("declared"), "").expect("a file");
        symlink(place.path().join("declared"), paths.confs.join("declared.conf")).expect("a link");

        let seen = Containers::new(leaf, paths, Runtime::Nspawn)
            .foreign()
            .expect("an observation");
        let [misnamed] = &seen.problems[..] else {
            panic!("{:?}", seen.problems);
        };
        assert!(misnamed.entry.ends_with("/bad name!.conf"), "{misnamed:?}");
        assert!(misnamed.problem.contains("' ' is not allowed"), "{misnamed:?}");
        let found = seen.containers;
        let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["declared", "fixed", "made"]);
        assert_eq!(
            found.iter().map(|one| one.declarative).collect::<Vec<_>>(),
            [true, true, false]
        );
        assert_eq!(
            found.iter().map(|one| one.host_users).collect::<Vec<_>>(),
            [true, true, false]
        );
        assert_eq!(found[2].toplevel.as_ref().map(|path| path.as_str()), Some(store));
        assert_eq!(found[2].address, Some("10.1.2.3".parse().expect("an address")));
        assert!(found.iter().all(|one| !one.running));
    }
}
