//! The ways to start runners.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use leaf_core::host_op::{HostOp, HostOpError};
use leaf_core::id::JobId;
use leaf_host::contract::job_unit;

/// Has the helper carry out a host operation, and repeats it if the helper goes away.
pub type HostOperations =
    Arc<dyn Fn(HostOp) -> Pin<Box<dyn Future<Output = Result<(), HostOpError>> + Send>> + Send + Sync>;

/// How runners are started and ended.
#[derive(Clone)]
pub enum Launch {
    /// As children of this process, under its own user.
    Child {
        /// The parent of the jobs' cgroups; see [`default_cgroup`](crate::default_cgroup). Without it, a job whose
        /// runner is killed may leave processes behind.
        cgroup: Option<PathBuf>,
    },
    /// By the helper, as the user `leaf-job`, each in a unit of its own. The job's directory is writable for that user,
    /// so its files are not trusted.
    Unit {
        /// Calls the helper.
        host_operations: HostOperations,
        /// The cgroup of the units' slice: `/sys/fs/cgroup/system.slice`.
        slice: PathBuf,
    },
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Child { cgroup } => f.debug_struct("Child").field("cgroup", cgroup).finish(),
            Self::Unit { slice, .. } => f
                .debug_struct("Unit")
                .field("slice", slice)
                .finish_non_exhaustive(),
        }
    }
}

impl Launch {
    /// Returns the cgroup of a job's unit, if jobs are units.
    pub(crate) fn unit(&self, id: JobId) -> Option<PathBuf> {
        match self {
            Self::Child { .. } => None,
            Self::Unit { slice, .. } => Some(slice.join(job_unit(id))),
        }
    }

    /// Returns the cgroup of a job that is a child of this process, if it gets one.
    pub(crate) fn child_cgroup(&self, id: JobId) -> Option<PathBuf> {
        match self {
            Self::Child { cgroup } => Some(cgroup.as_ref()?.join(id.to_string())),
            Self::Unit { .. } => None,
        }
    }
}
