//! The order of a job: what its runner is to do, written by leafd and read by the runner.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The part of `order.json` that every task has. What the task itself needs stands beside it, in the same object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Named after what a build, the oldest of the tasks, keeps there.
    #[serde(rename = "gc_root")]
    pub(crate) result_dir: PathBuf,
    pub(crate) timeout_ms: u64,
    pub(crate) grace_ms: u64,
    pub(crate) max_log_bytes: u64,
    pub(crate) cgroup: Option<PathBuf>,
}

impl Order {
    pub(crate) fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// Removes what a job that did not succeed has kept for its result. What can't be removed, the next sweep finds.
pub(crate) fn remove_result(result_dir: &Path) {
    let _ = std::fs::remove_dir_all(result_dir);
}

/// The whole of `order.json`.
#[derive(Debug, Serialize)]
pub(crate) struct OrderFile<'a, T> {
    #[serde(flatten)]
    pub(crate) task: &'a T,
    #[serde(flatten)]
    pub(crate) order: Order,
}
