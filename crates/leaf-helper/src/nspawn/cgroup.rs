//! The cgroup of a container under the nspawn supervisor: `cim-leaf.slice/LEAF/NAME`. Below it are `helper`, for this
//! program, and `supervisor` and `payload`, which systemd-nspawn creates for itself and for the container. Limits are
//! set on the payload, and killing it leaves the supervisor, which records the end.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::id::{ContainerName, LeafName};
use leaf_host::cgroup::{self, Cgroup, CgroupError};

use crate::error::Result;

/// The time limit for killed processes to disappear.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// The cgroup of a container under the nspawn supervisor.
#[derive(Debug, Clone)]
pub(crate) struct SupervisedCgroup {
    group: Cgroup,
    /// The mount point of cgroup version 2.
    mount: PathBuf,
    /// The same group in systemd's hierarchy of version 1, if that is mounted: systemd-nspawn creates it there as well.
    legacy: Option<Cgroup>,
}

impl SupervisedCgroup {
    /// Returns the cgroup of a container, which need not exist.
    pub(crate) fn of(leaf: &LeafName, name: &ContainerName) -> Result<Self> {
        let relative = Path::new("cim-leaf.slice")
            .join(leaf.as_str())
            .join(name.as_str());
        let mount = cgroup::mount()?;
        Ok(Self {
            group: Cgroup::at(mount.join(&relative)),
            mount,
            legacy: cgroup::legacy_mount()?.map(|mount| Cgroup::at(mount.join(&relative))),
        })
    }

    /// Creates the cgroup and moves this process into it.
    pub(crate) fn enter(&self) -> Result<()> {
        let mut tries = 0;
        loop {
            match self.group.create() {
                // The end of another container has just removed the leaf's group.
                Err(CgroupError::Io { source, .. })
                    if source.kind() == ErrorKind::NotFound && tries < 100 =>
                {
                    tries += 1;
                }
                other => {
                    other?;
                    return Ok(self.group.attach_this_process()?);
                }
            }
        }
    }

    /// Moves this process into the group's `helper`, so that the group itself contains no process.
    pub(crate) fn step_aside(&self) -> Result<()> {
        let helper = self.group.child("helper");
        helper.create()?;
        Ok(helper.attach_this_process()?)
    }

    /// Moves this process out, into the root group, so that the cgroup can be removed.
    pub(crate) fn leave(&self) -> Result<()> {
        Ok(Cgroup::at(&self.mount).attach_this_process()?)
    }

    /// Returns whether a process is in this cgroup or below it.
    pub(crate) fn contains(&self, pid: u32) -> bool {
        self.group.contains(pid)
    }

    /// Returns the payload's cgroup.
    pub(crate) fn payload(&self) -> Cgroup {
        self.group.child("payload")
    }

    /// Kills every process of the container, even while it forks, and returns when none is left.
    pub(crate) async fn kill_payload(&self) -> Result<()> {
        Ok(self.payload().kill_and_wait(GONE_WITHIN).await?)
    }

    /// Kills every process in the group, the supervisor included, and returns when none is left.
    pub(crate) async fn kill_all(&self) -> Result<()> {
        Ok(self.group.kill_and_wait(GONE_WITHIN).await?)
    }

    /// Removes the group and its children, which must contain no process.
    pub(crate) fn remove(&self) -> Result<()> {
        for group in std::iter::once(&self.group).chain(&self.legacy) {
            group.remove()?;
            // The groups of the leaf and the slice are removed with the last container.
            for parent in group.path().ancestors().skip(1).take(2) {
                let _ = std::fs::remove_dir(parent);
            }
        }
        Ok(())
    }
}
