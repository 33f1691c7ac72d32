//! A bound for the number of processes and threads in a cgroup: the controller `pids`, in the hierarchy of version 2, or in its own of
//! version 1 where a host has it there (`Documentation/admin-guide/cgroup-v1/pids.rst` of the kernel).

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup::{Cgroup, CgroupError};
use crate::mounts::{self, Mount};

/// The name of the controller.
const PIDS: &str = "pids";

/// Bounds the number of processes and threads that a cgroup of version 2, which exists, may have: what is forked beyond it fails with
/// `EAGAIN`. Returns a further cgroup that its processes must be moved into as well, where the controller is one of version 1.
///
/// # Errors
/// [`CgroupError`] if this host has no such controller, or the kernel refuses.
pub fn limit_tasks(group: &Cgroup, max: u64) -> Result<Option<Cgroup>, CgroupError> {
    let table = mounts::table()?;
    let of_two = table.iter().find(|mount| mount.fs_type == "cgroup2");
    let of_two = of_two.ok_or(CgroupError::NotMounted)?;
    let inside = group
        .path()
        .strip_prefix(&of_two.target)
        .map_err(|_| CgroupError::NotACgroup {
            path: group.path().to_owned(),
        })?;
    if has_controller(&of_two.target) {
        let mut parent = of_two.target.clone();
        for name in inside {
            write(&parent.join("cgroup.subtree_control"), "+pids")?;
            parent.push(name);
        }
        write(&group.path().join("pids.max"), &max.to_string())?;
        return Ok(None);
    }
    let of_one = own_mount(&table).ok_or(CgroupError::NoController { name: PIDS })?;
    let own = Cgroup::at(of_one.join(inside));
    own.create()?;
    write(&own.path().join("pids.max"), &max.to_string())?;
    Ok(Some(own))
}

/// Returns whether the hierarchy of version 2 has the controller.
fn has_controller(mount: &Path) -> bool {
    let controllers = fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    controllers.split_whitespace().any(|name| name == PIDS)
}

/// Returns the mount point of the controller's own hierarchy of version 1.
fn own_mount(table: &[Mount]) -> Option<PathBuf> {
    let has_it =
        |mount: &&Mount| mount.fs_type == "cgroup" && mount.options.iter().any(|option| option == PIDS);
    table.iter().find(has_it).map(|mount| mount.target.clone())
}

fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(|source| CgroupError::Io {
        what: "limit the processes of",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controllers_own_hierarchy_is_found() {
        let hybrid = mounts::parse(
            "30 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
             32 31 0:39 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
             31 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(own_mount(&hybrid), Some("/sys/fs/cgroup/pids".into()));
        let unified =
            mounts::parse("31 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(own_mount(&unified), None);
    }
}
