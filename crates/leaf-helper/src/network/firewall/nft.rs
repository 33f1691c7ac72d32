//! Runs `nft`, always with the same arguments and the script on its standard input.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use leaf_host::process::{self, Bounds, RunError};
use tokio::process::Command;

use crate::error::Error;

/// The time limit of a transaction.
const PATIENCE: Duration = Duration::from_secs(60);

/// The failure of a transaction, of which nothing was applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The program could not be run.
    #[error(transparent)]
    Run(RunError),
    /// The program, or the kernel, refused it.
    #[error("nft: {0}")]
    Said(String),
    /// A signal ended the program: it can't read what is in the kernel, such as tables that a newer version made.
    #[error("nft: {0}")]
    Killed(String),
}

impl Failure {
    /// Returns the error for a script that doesn't depend on existing rules: the kernel lacks something.
    pub(super) fn of_new_rules(self) -> Error {
        let lacks = |said: &str| {
            [
                "Operation not supported",
                "Protocol not supported",
                "No such file or directory",
            ]
            .iter()
            .any(|sign| said.contains(sign))
        };
        match self {
            Self::Said(said) if said.contains("Operation not permitted") => Error::Unsupported(format!(
                "this process lacks the privilege to change the host's network rules (CAP_NET_ADMIN); nft: {said}"
            )),
            Self::Said(said) if lacks(&said) => Error::Unsupported(format!(
                "this kernel lacks a part of nftables that the closed network needs: tables inet and arp, concatenated \
                 sets with ranges, fib, nat and masquerade (Linux 5.6 or later, with its modules); nft: {said}"
            )),
            other => other.into(),
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Run(RunError::NotFound { program }) => {
                Self::Unsupported(format!("{program} does not exist; install nftables"))
            }
            Failure::Run(error) => Self::Run(error),
            Failure::Said(_) | Failure::Killed(_) => Self::Failed(failure.to_string()),
        }
    }
}

/// Runs one transaction.
pub(super) async fn run(nft: &Path, script: &str) -> Result<(), Failure> {
    let mut command = Command::new(nft);
    command.args(["-f", "-"]).env_clear();
    let finished = process::run(command, script.as_bytes(), Bounds::of_time(PATIENCE))
        .await
        .map_err(Failure::Run)?;
    if finished.status.success() {
        return Ok(());
    }
    let why = finished.failure();
    Err(match finished.status.signal() {
        Some(_) => Failure::Killed(why),
        None => Failure::Said(why),
    })
}
