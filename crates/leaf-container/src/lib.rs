//! Observes the containers of a leaf on this host, and hints when to observe them again.
//!
//! Start at [`Containers`]. The host is the truth: everything is read from the files that [`HostPaths`] names, from
//! the kernel, and from systemd where that runs the containers; nothing is changed. Under systemd the state of the
//! unit counts; under `leaf-helper supervise` a supervisor lives exactly while its lock is held, and a status without
//! an end below a free lock is that of a supervisor that was killed.
//!
//! All of it works for an unprivileged user who may read the journal (group `systemd-journal`). The functions block:
//! they are to be called on a thread of their own (`spawn_blocking`), within tokio, and never from asynchronous code.

mod cgroup;
mod conf;
mod error;
mod foreign;
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
pub use observe::Seen;
pub use watch::{Changed, Hints};

/// How long systemd is waited for.
const PATIENCE: Patience = Patience {
    answer: Duration::from_secs(20),
    away: Duration::from_secs(10),
};

/// The containers of one leaf on this host. Copies share one connection to systemd.
#[derive(Debug, Clone)]
pub struct Containers {
    leaf: LeafName,
    paths: HostPaths,
    runtime: Runtime,
    systemd: Systemd,
    known: known::KnownRuns,
}

impl Containers {
    /// Returns the containers of a leaf, as this runtime runs them; nothing is read or connected yet.
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

/// Runs a future to its end, on this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    Handle::current().block_on(future)
}
