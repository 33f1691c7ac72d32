//! Has the helper keep secrets. leafd itself sees age files at most, and doesn't log or keep them.

use std::time::Duration;

use leaf_core::command::Recipient;
use leaf_core::decide::SecretChange;
use leaf_core::error::chain;
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind, StoredSecret};
use leaf_core::json::to_json;
use leaf_core::problem::{Problem, ProblemCode};

use crate::complaints::Complaints;
use crate::helper::HostHelper;

/// The pause before another try to observe the secrets.
const OBSERVE_AGAIN: Duration = Duration::from_secs(10);

/// The helper, or the reason why this leaf keeps no secrets.
type Helper = Result<HostHelper, String>;

/// Makes a change, and returns the stored secret of one that was set.
///
/// # Errors
/// The problem for the sender.
pub async fn change(helper: Helper, change: SecretChange) -> Result<Option<StoredSecret>, Problem> {
    let is_set = matches!(change, SecretChange::Set { .. });
    let report = there(helper)?.insist(&change.into_op()).await.map_err(problem)?;
    match report.secrets.into_iter().next() {
        Some(stored) if is_set => Ok(Some(stored)),
        None if !is_set => Ok(None),
        _ => Err(Problem::new(
            ProblemCode::Failed,
            "the helper is of another version: it does not say what it stored",
        )),
    }
}

/// Returns what the host has of secrets, once the helper can say it.
pub async fn observe(helper: Helper) -> Vec<StoredSecret> {
    let mut complaints = Complaints::default();
    loop {
        let found = match &helper {
            Ok(helper) => helper
                .insist(&HostOp::ListSecrets {})
                .await
                .map_err(|e| chain(&e)),
            Err(why) => Err(why.clone()),
        };
        match found {
            Ok(report) => {
                for stored in &report.secrets {
                    if let Some(problem) = &stored.problem {
                        tracing::warn!(secret = %stored.name, problem, "a secret on this host can't be used");
                    }
                }
                return report.secrets;
            }
            Err(error) => {
                if complaints.is_new(&error) {
                    tracing::warn!(error, "can't observe the secrets on this host; leafd tries again");
                }
                tokio::time::sleep(OBSERVE_AGAIN).await;
            }
        }
    }
}

/// Returns the reply with the host key that secrets are encrypted to.
///
/// # Errors
/// The problem for the sender.
pub async fn recipient(helper: Helper) -> Result<Vec<u8>, Problem> {
    let report = there(helper)?
        .insist(&HostOp::ShowHostKey {})
        .await
        .map_err(problem)?;
    match report.host_key {
        Some(host_key) => Ok(to_json(&Recipient { host_key })),
        None => Err(Problem::new(
            ProblemCode::Unsupported,
            "the helper is of another version: it does not say the host key",
        )),
    }
}

fn there(helper: Helper) -> Result<HostHelper, Problem> {
    helper.map_err(|why| Problem::new(ProblemCode::Unsupported, why))
}

fn problem(error: HostOpError) -> Problem {
    let code = match error.kind {
        HostOpErrorKind::Refused => ProblemCode::Invalid,
        HostOpErrorKind::Unsupported => ProblemCode::Unsupported,
        HostOpErrorKind::NotReady | HostOpErrorKind::Failed | HostOpErrorKind::Interrupted => {
            ProblemCode::Failed
        }
    };
    Problem::new(code, chain(&error))
}
