//! Runs nixos-facter: a program of its own, under another licence, as root, within a time limit.

use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use super::MAX_REPORT_BYTES;

/// How much of what it says on stderr is kept.
const MAX_STDERR_BYTES: u64 = 16 * 1024;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It isn't installed, or can't be started.
    #[error("can't start {program}")]
    Start {
        /// The program.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// It failed. It must be root, and fails where `/sys/kernel/iommu_groups` can't be read.
    #[error("{program} failed ({status}): {stderr}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// It took too long. A scan takes 8 s in a virtual machine, and 85 s with a slow serial port.
    #[error("{program} took longer than {} s", after.as_secs())]
    TimedOut {
        /// The program.
        program: String,
        /// The limit.
        after: Duration,
    },
    /// It wrote more than a report has.
    #[error("{program} wrote more than {MAX_REPORT_BYTES} bytes")]
    TooLarge {
        /// The program.
        program: String,
    },
    /// What it wrote can't be read.
    #[error("can't read what {program} writes")]
    Output {
        /// The program.
        program: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Returns the report that the program writes: bytes for [`read`](super::read). It is killed with its process group
/// when the time is over or the future is dropped.
///
/// # Errors
/// [`RunError`] when it can't be started, fails, or passes the limit of time or size.
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
        let (mut report, mut said) = (Vec::new(), Vec::new());
        let read_report = async { stdout.take(most + 1).read_to_end(&mut report).await };
        let read_said = async {
            let mut stderr = stderr;
            (&mut stderr)
                .take(MAX_STDERR_BYTES)
                .read_to_end(&mut said)
                .await?;
            // What is over the limit is read all the same, so that the program doesn't wait for it.
            tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await
        };
        let (_, _) = tokio::try_join!(async { read_report.await.map_err(output) }, async {
            read_said.await.map_err(output)
        })?;
        if report.len() > MAX_REPORT_BYTES {
            return Err(RunError::TooLarge { program: name() });
        }
        let status = child.wait().await.map_err(output)?;
        if !status.success() {
            return Err(RunError::Failed {
                program: name(),
                status,
                stderr: String::from_utf8_lossy(&said).trim().to_owned(),
            });
        }
        Ok(report)
    };
    let result = tokio::time::timeout(limit, work).await;
    if matches!(result, Ok(Ok(_))) {
        // It has been waited for, so its number may soon be another's.
        group.0 = None;
    } else {
        drop(group);
        // Nothing may stay behind.
        let _ = child.wait().await;
    }
    result.unwrap_or_else(|_| {
        Err(RunError::TimedOut {
            program: name(),
            after: limit,
        })
    })
}

/// A process group that ends with its owner.
struct Group(Option<rustix::process::Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It fails when the group has ended, which is what is wanted.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}
