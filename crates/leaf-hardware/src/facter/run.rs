//! Runs nixos-facter, a separate program under another licence, as root and with a time limit.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use leaf_host::process::{self, Bounds};
use tokio::process::Command;

use super::MAX_REPORT_BYTES;

/// How many bytes of the program's stderr are kept.
const MAX_STDERR_BYTES: usize = 16 * 1024;

/// Why the program wrote no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program could not be run to its end. A scan takes 8 s in a virtual machine, and 85 s with a slow serial port.
    #[error(transparent)]
    Run(#[from] process::RunError),
    /// The program failed. It needs root, and fails if it can't read `/sys/kernel/iommu_groups`.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program.
        program: String,
        /// The exit status.
        status: ExitStatus,
        /// Its stderr.
        stderr: String,
    },
}

/// Runs the program and returns its report: bytes for [`read`](super::read). Its process group is killed when the time
/// limit passes or the future is dropped.
///
/// # Errors
/// [`RunError`] when the program can't be started, fails, or exceeds the limit of time or size.
pub async fn run(program: &Path, limit: Duration) -> Result<Vec<u8>, RunError> {
    let bounds = Bounds {
        time: limit,
        stdout_bytes: MAX_REPORT_BYTES,
        stderr_bytes: MAX_STDERR_BYTES,
    };
    let finished = process::run(Command::new(program), b"", bounds).await?;
    if !finished.status.success() {
        return Err(RunError::Failed {
            program: program.display().to_string(),
            status: finished.status,
            stderr: finished.stderr,
        });
    }
    Ok(finished.stdout)
}
