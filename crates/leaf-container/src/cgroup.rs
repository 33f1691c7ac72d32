//! Where the control group of a container is.
//!
//! The container's processes are in `payload` below the group of its unit or supervisor; limits are set there, so
//! that is where they are counted.

use std::path::Path;

use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_host::cgroup::Cgroup;

use crate::Containers;

impl Containers {
    /// Returns the cgroup of a container's own processes below the mount, where systemd doesn't say otherwise.
    pub(crate) fn payload(&self, mount: &Path, name: &ContainerName) -> Cgroup {
        let parent = match self.runtime {
            Runtime::Systemd => mount.join("machine.slice").join(Runtime::unit(name)),
            Runtime::Nspawn => mount
                .join("cim-leaf.slice")
                .join(self.leaf.as_str())
                .join(name.as_str()),
        };
        Cgroup::at(parent.join("payload"))
    }
}
