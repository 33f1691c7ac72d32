//! Detects the container runtime of this host.

use std::path::Path;

use leaf_core::runtime::Runtime;

/// Returns the container runtime of this host: systemd if it is PID 1 (sd_booted(3)).
#[must_use]
pub fn detect() -> Runtime {
    if Path::new("/run/systemd/system").is_dir() {
        Runtime::Systemd
    } else {
        Runtime::Nspawn
    }
}
