//! The path of a container's cgroup.
//!
//! The container's processes are in `payload` below the cgroup of its unit or supervisor. Limits are set there, so
//! usage is read there.

use std::path::Path;

use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_host::cgroup::Cgroup;

use crate::Containers;

impl Containers {
    /// Returns the payload's cgroup of a container, unless systemd reports another one.
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
