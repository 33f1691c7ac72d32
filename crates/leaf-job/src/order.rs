//! The order of a job, written by leafd and read by the runner.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The part of `order.json` that every task has. The task's own part is beside it, in the same object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The result directory; its name on disk is from builds, the oldest task.
    #[serde(rename = "gc_root")]
    pub(crate) result_dir: PathBuf,
    pub(crate) timeout_ms: u64,
    pub(crate) grace_ms: u64,
    pub(crate) max_log_bytes: u64,
    pub(crate) cgroup: Option<PathBuf>,
    /// The cgroup of version 1 that bounds the number of its processes, where version 2 does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tasks_cgroup: Option<PathBuf>,
}

impl Order {
    pub(crate) fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// Removes the result directory of a job that did not succeed. If that fails, the next sweep removes it.
pub(crate) fn remove_result(result_dir: &Path) {
    let _ = std::fs::remove_dir_all(result_dir);
}

/// The content of `order.json`.
#[derive(Debug, Serialize)]
pub(crate) struct OrderFile<'a, T> {
    #[serde(flatten)]
    pub(crate) task: &'a T,
    #[serde(flatten)]
    pub(crate) order: Order,
}
