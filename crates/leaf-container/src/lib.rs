//! Observes the containers of a leaf on this host, and gives hints when to observe them again.
//!
//! Start at [`Containers`]. Everything is read from the files in [`HostPaths`], from the kernel and, under the systemd
//! runtime, from systemd; nothing is changed. Under systemd the state of the unit counts. Under `leaf-helper
//! supervise`, a supervisor is running exactly while its lock is held; if the lock is free and the status has no end,
//! the supervisor was killed.
//!
//! This works for an unprivileged user that may read the systemd journal (group `systemd-journal`). The functions
//! block: call them on a blocking thread (`spawn_blocking`) within tokio, never from asynchronous code.

mod cgroup;
mod conf;
mod error;
mod foreign;
mod in_use;
mod journal;
mod known;
mod log_file;
mod logs;
mod observe;
mod stats;
mod supervisor;
mod unit;
mod units;
mod watch;

use std::time::Duration;

use leaf_core::id::LeafName;
use leaf_core::runtime::Runtime;
use leaf_host::contract::HostPaths;
use leaf_host::systemd::{Patience, Systemd};
use tokio::runtime::Handle;

pub use error::{ObserveError, ObserveErrorKind};
pub use foreign::Foreign;
pub use observe::Seen;
pub use watch::{Changed, Hints};

/// The time limits for calls to systemd.
const PATIENCE: Patience = Patience {
    answer: Duration::from_secs(20),
    away: Duration::from_secs(10),
};

/// The observer of one leaf's containers on this host. Clones share one connection to systemd.
#[derive(Debug, Clone)]
pub struct Containers {
    leaf: LeafName,
    paths: HostPaths,
    runtime: Runtime,
    systemd: Systemd,
    known: known::KnownRuns,
}

impl Containers {
    /// Returns the observer of a leaf's containers under a runtime; nothing is read or connected yet.
    #[must_use]
    pub fn new(leaf: LeafName, paths: HostPaths, runtime: Runtime) -> Self {
        Self {
            leaf,
            paths,
            runtime,
            systemd: Systemd::new(PATIENCE),
            known: known::KnownRuns::default(),
        }
    }
}

/// Runs a future to completion on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    Handle::current().block_on(future)
}
