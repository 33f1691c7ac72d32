//! Runs nixos-facter, a separate program under another licence, as root and with a time limit.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::MAX_REPORT_BYTES;

/// How many bytes of the program's stderr are kept.
const MAX_STDERR_BYTES: u64 = 16 * 1024;

/// Why the program wrote no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The program is not installed or can't be started.
    #[error("can't start {program}")]
    Start {
        /// The program.
        program: String,
        /// The operating system's error.
        source: io::Error,
    },
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
    /// The time limit passed. A scan takes 8 s in a virtual machine, and 85 s with a slow serial port.
    #[error("{program} took longer than {} s", after.as_secs())]
    TimedOut {
        /// The program.
        program: String,
        /// The limit.
        after: Duration,
    },
    /// The output is larger than a report.
    #[error("{program} wrote more than {MAX_REPORT_BYTES} bytes")]
    TooLarge {
        /// The program.
        program: String,
    },
    /// The output can't be read.
    #[error("can't read the output of {program}")]
    Output {
        /// The program.
        program: String,
        /// The operating system's error.
        source: io::Error,
    },
}

/// Runs the program and returns its report: bytes for [`read`](super::read). Its process group is killed when the time
/// limit passes or the future is dropped.
///
/// # Errors
/// [`RunError`] when the program can't be started, fails, or exceeds the limit of time or size.
pub async fn run(program: &Path, limit: Duration) -> Result<Vec<u8>, RunError> {
    let name = || program.display().to_string();
    let mut child = Command::new(program)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|source| RunError::Start {
            program: name(),
            source,
        })?;
    let mut group = Group(
        child
            .id()
            .and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?)),
    );
    let stdout = child.stdout.take().expect("it is piped");
    let stderr = child.stderr.take().expect("it is piped");
    let output = |source| RunError::Output {
        program: name(),
        source,
    };
    let most = u64::try_from(MAX_REPORT_BYTES).unwrap_or(u64::MAX);
    let work = async {
        let (mut report, mut stderr_bytes) = (Vec::new(), Vec::new());
        let read_report = async { stdout.take(most + 1).read_to_end(&mut report).await };
        let read_stderr = async {
            let mut stderr = stderr;
            (&mut stderr)
                .take(MAX_STDERR_BYTES)
                .read_to_end(&mut stderr_bytes)
                .await?;
            // The rest is read and dropped, so that the program doesn't block on it.
            tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await
        };
        let (_, _) = tokio::try_join!(async { read_report.await.map_err(output) }, async {
            read_stderr.await.map_err(output)
        })?;
        if report.len() > MAX_REPORT_BYTES {
            return Err(RunError::TooLarge { program: name() });
        }
        let status = child.wait().await.map_err(output)?;
        if !status.success() {
            return Err(RunError::Failed {
                program: name(),
                status,
                stderr: String::from_utf8_lossy(&stderr_bytes).trim().to_owned(),
            });
        }
        Ok(report)
    };
    let result = tokio::time::timeout(limit, work).await;
    if matches!(result, Ok(Ok(_))) {
        // It has been reaped, so its process group id may be reused.
        group.0 = None;
    } else {
        drop(group);
        // Reaps the killed process.
        let _ = child.wait().await;
    }
    result.unwrap_or_else(|_| {
        Err(RunError::TimedOut {
            program: name(),
            after: limit,
        })
    })
}

/// A process group that is killed on drop.
struct Group(Option<rustix::process::Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It fails if the group has ended already.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}
