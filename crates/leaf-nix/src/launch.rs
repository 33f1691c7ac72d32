//! Who starts the runners of jobs.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind};
use leaf_core::id::JobId;
use leaf_host::contract::job_unit;

/// Carries out an operation that needs root, or has it carried out.
pub type CarryOut =
    Arc<dyn Fn(HostOp) -> Pin<Box<dyn Future<Output = Result<(), HostOpError>> + Send>> + Send + Sync>;

/// Who starts the runners of jobs, and ends them.
#[derive(Clone)]
pub enum Launch {
    /// This process, as its own user.
    Own {
        /// The cgroup v2 folder below which each job gets its own; see [`default_cgroup`](crate::default_cgroup). Without
        /// it a job whose runner is killed may leave processes.
        cgroup: Option<PathBuf>,
    },
    /// The helper, as another user, in a unit of its own. The job's folder is that user's to write to; what stands there is not
    /// trusted.
    ByHelper {
        /// Reaches the helper.
        carry_out: CarryOut,
        /// The cgroup of the slice that has the units: `/sys/fs/cgroup/system.slice`.
        slice: PathBuf,
    },
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { cgroup } => f.debug_struct("Own").field("cgroup", cgroup).finish(),
            Self::ByHelper { slice, .. } => f
                .debug_struct("ByHelper")
                .field("slice", slice)
                .finish_non_exhaustive(),
        }
    }
}

impl Launch {
    /// The cgroup of a job's unit, where it has one.
    pub(crate) fn unit(&self, id: JobId) -> Option<PathBuf> {
        match self {
            Self::Own { .. } => None,
            Self::ByHelper { slice, .. } => Some(slice.join(job_unit(id))),
        }
    }
}

/// How often a helper that went away is asked again, and the pause before.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// Has an operation carried out, again where the helper went away: each may be carried out more than once.
pub(crate) async fn insist(carry_out: &CarryOut, op: HostOp) -> Result<(), HostOpError> {
    for left in (0..TRIES).rev() {
        match carry_out(op.clone()).await {
            Err(error) if error.kind == HostOpErrorKind::Interrupted && left > 0 => {
                tracing::warn!(reason = error.reason, op = op.summary(), "asked again");
                tokio::time::sleep(PAUSE).await;
            }
            outcome => return outcome,
        }
    }
    unreachable!("the last try is returned, whatever came of it")
}
