//! Running `nft`: always by the same arguments, with the script on its standard input.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use crate::error::Error;

/// How long one transaction may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a transaction was not carried out; nothing of it was then.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The program is not there.
    #[error("{0} is not there; install nftables")]
    Missing(String),
    /// The program could not be run to its end.
    #[error("run nft: {0}")]
    Run(std::io::Error),
    /// It took too long.
    #[error("nft was not done within {} s", PATIENCE.as_secs())]
    Slow,
    /// The program, or the kernel, did not take it.
    #[error("nft: {0}")]
    Said(String),
}

impl Failure {
    /// What it means of a script that makes all that it needs itself: the kernel lacks something.
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
                "this process may not change the rules of the host's network (CAP_NET_ADMIN); nft: {said}"
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
            Failure::Missing(_) => Self::Unsupported(failure.to_string()),
            Failure::Run(source) => Self::Io {
                what: "run nft".into(),
                source,
            },
            Failure::Slow | Failure::Said(_) => Self::Failed(failure.to_string()),
        }
    }
}

/// Runs one transaction.
pub(super) async fn run(nft: &Path, script: &str) -> Result<(), Failure> {
    let spawned = tokio::process::Command::new(nft)
        .args(["-f", "-"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Failure::Missing(nft.display().to_string()));
        }
        other => other.map_err(Failure::Run)?,
    };
    let mut stdin = child.stdin.take().expect("stdin is piped, as asked above");
    let fed = async move {
        // One that ends early says why itself.
        let _ = stdin.write_all(script.as_bytes()).await;
        drop(stdin);
    };
    let done = async { tokio::join!(fed, child.wait_with_output()).1 };
    let output = tokio::time::timeout(PATIENCE, done)
        .await
        .map_err(|_| Failure::Slow)?
        .map_err(Failure::Run)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Said(
        said.lines().take(3).collect::<Vec<_>>().join(" | "),
    ))
}
