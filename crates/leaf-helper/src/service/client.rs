//! The caller's side of the helper's socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::error::chain;
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind};
use leaf_core::reconcile::BackOff;
use serde_json::{Map, Value};
use zlink::Call;
use zlink::tokio::unix;

use crate::service::wire::{self, Fault};

/// How often a helper that went away is asked: it is back a moment after an update of the host.
const HELPER_AWAY: BackOff = BackOff {
    tries: 5,
    first_pause: Duration::from_millis(250),
};

/// Sends operations to a helper that is another process. Each goes over a connection of its own, so a helper that was
/// restarted is found by itself.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Returns the client of a socket; it is not opened before the first operation.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Has an operation carried out, and again where the helper went away before it answered: operations are idempotent.
    /// A caller that plans anew from what the host shows uses [`Self::carry_out`] instead.
    ///
    /// # Errors
    /// [`HostOpError`], as [`Self::carry_out`] has it; `Interrupted` where the helper stayed away.
    pub async fn insist(&self, op: &HostOp) -> Result<(), HostOpError> {
        let mut failed = 0;
        loop {
            let error = match self.carry_out(op).await {
                Err(error) if error.kind == HostOpErrorKind::Interrupted => error,
                outcome => return outcome,
            };
            failed += 1;
            let Some(pause) = HELPER_AWAY.pause(failed) else {
                return Err(error);
            };
            tracing::warn!(
                op = op.summary(),
                reason = error.reason,
                "the helper is asked again"
            );
            tokio::time::sleep(pause).await;
        }
    }

    /// Has an operation carried out, and waits for its end. A caller that does not wait leaves it under way.
    ///
    /// # Errors
    /// [`HostOpError`]: the helper's own; `Unsupported` where there is no helper to call; `Interrupted` where it went away
    /// before it answered.
    pub async fn carry_out(&self, op: &HostOp) -> Result<(), HostOpError> {
        let error = |kind, reason| HostOpError {
            op: op.summary(),
            kind,
            reason,
        };
        let mut connection = match unix::connect(&self.socket).await {
            Ok(connection) => connection,
            Err(zlink::Error::Io(e)) => {
                let (kind, reason) = self.unreachable(&e);
                return Err(error(kind, reason));
            }
            Err(e) => return Err(error(HostOpErrorKind::Failed, chain(&e))),
        };
        let call = Call::new(wire::message(op));
        let answer = connection
            .call_method::<_, Map<String, Value>, Fault>(&call, Vec::new())
            .await;
        match answer {
            Ok((Ok(_), _)) => Ok(()),
            Ok((Err(fault), _)) => Err(wire::error_of(op, &fault)),
            Err(zlink::Error::VarlinkService(e)) => {
                use zlink::varlink_service::Error as Service;
                let (kind, reason) = match e.inner() {
                    Service::PermissionDenied => (
                        HostOpErrorKind::Refused,
                        format!(
                            "{} lets only the user call that its settings name, and this is user {}",
                            self.socket.display(),
                            rustix::process::geteuid().as_raw()
                        ),
                    ),
                    Service::MethodNotFound { .. } => (
                        HostOpErrorKind::Unsupported,
                        "the helper that runs does not know this; it is of an older version".to_owned(),
                    ),
                    other => (HostOpErrorKind::Failed, other.to_string()),
                };
                Err(error(kind, reason))
            }
            // The connection broke, or half an answer came.
            Err(e) => {
                let why = match &e {
                    zlink::Error::Io(e) => format!(" ({e})"),
                    _ => String::new(),
                };
                Err(error(
                    HostOpErrorKind::Interrupted,
                    format!("the helper went away before it answered{why}; how far it came is not known"),
                ))
            }
        }
    }

    fn unreachable(&self, e: &io::Error) -> (HostOpErrorKind, String) {
        let socket = self.socket.display();
        match e.kind() {
            io::ErrorKind::NotFound => (
                HostOpErrorKind::Unsupported,
                format!("{socket} is not there: start leaf-helper.socket, or set containers.helper_socket"),
            ),
            io::ErrorKind::PermissionDenied => (
                HostOpErrorKind::Unsupported,
                format!(
                    "user {} may not open {socket}: its owner must be the user that leafd runs as",
                    rustix::process::geteuid().as_raw()
                ),
            ),
            io::ErrorKind::ConnectionRefused => (
                HostOpErrorKind::Interrupted,
                format!("nobody listens on {socket}: is leaf-helper.socket active?"),
            ),
            _ => (
                HostOpErrorKind::Interrupted,
                format!("{socket} can't be reached: {e}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    /// Takes one call, and answers it if there is an answer.
    async fn take_call(listener: &UnixListener, answer: Option<&[u8]>) {
        let (stream, _) = listener.accept().await.expect("a caller");
        let mut stream = BufReader::new(stream);
        let mut call = Vec::new();
        stream.read_until(0, &mut call).await.expect("a call");
        let text = String::from_utf8_lossy(&call);
        assert!(text.contains("cim.leaf.Helper.RemoveJob"), "{text}");
        if let Some(answer) = answer {
            stream.write_all(answer).await.expect("an answer");
        }
    }

    fn operation() -> HostOp {
        let id = "01890000-0000-7000-8000-000000000001".parse().expect("an id");
        HostOp::RemoveJob { id }
    }

    #[tokio::test]
    async fn a_helper_that_goes_away_is_asked_again_until_it_answers() {
        let place = tempfile::tempdir().expect("a directory");
        let socket = place.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let helper = async {
            take_call(&listener, None).await;
            take_call(&listener, None).await;
            take_call(&listener, Some(b"{\"parameters\":{}}\0")).await;
        };
        let client = Client::new(&socket);
        let op = operation();
        let (outcome, ()) = tokio::join!(client.insist(&op), helper);
        outcome.expect("the third call is answered");
    }

    #[tokio::test]
    async fn a_refusal_is_not_asked_for_twice_and_one_call_is_one_try() {
        let place = tempfile::tempdir().expect("a directory");
        let socket = place.path().join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let client = Client::new(&socket);
        let op = operation();
        let refusal = br#"{"error":"cim.leaf.Helper.Refused","parameters":{"op":"remove","reason":"no"}}"#;
        let refusal = [&refusal[..], b"\0"].concat();
        let (outcome, ()) = tokio::join!(client.insist(&op), take_call(&listener, Some(&refusal)));
        assert_eq!(outcome.expect_err("it is refused").kind, HostOpErrorKind::Refused);
        let (outcome, ()) = tokio::join!(client.carry_out(&op), take_call(&listener, None));
        assert_eq!(outcome.expect_err("no answer").kind, HostOpErrorKind::Interrupted);
    }
}
