//! The client of the helper's service.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::error::chain;
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind, HostReport};
use leaf_core::reconcile::BackOff;
use serde_json::{Map, Value};
use zlink::Call;
use zlink::tokio::unix;

use crate::service::wire::{self, Fault};

/// The back-off for a helper that went away: after an update of the host it is back in a moment.
const HELPER_AWAY: BackOff = BackOff {
    tries: 5,
    first_pause: Duration::from_millis(250),
};

/// Sends operations to a helper in another process. Each uses a connection of its own, so a restarted helper needs no
/// special handling.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Returns the client of a socket, which is not opened before the first operation.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Returns the socket's path.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Has an operation carried out, and repeats it if the helper goes away before it answers: operations are
    /// idempotent. A caller that would rather observe and plan again uses [`Self::carry_out`].
    ///
    /// # Errors
    /// [`HostOpError`], as for [`Self::carry_out`]; `Interrupted` if the helper stays away.
    pub async fn insist(&self, op: &HostOp) -> Result<HostReport, HostOpError> {
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
                "the helper went away, repeating the operation"
            );
            tokio::time::sleep(pause).await;
        }
    }

    /// Has an operation carried out, and waits for its end. Dropping the future does not stop the operation.
    ///
    /// # Errors
    /// The helper's [`HostOpError`]; `Unsupported` if there is no helper; `Interrupted` if it went away before it
    /// answered.
    pub async fn carry_out(&self, op: &HostOp) -> Result<HostReport, HostOpError> {
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
            Ok((Ok(reply), _)) => wire::report_of(reply.into_parameters().unwrap_or_default()).map_err(|e| {
                error(
                    HostOpErrorKind::Failed,
                    format!("can't read the helper's answer: {e}"),
                )
            }),
            Ok((Err(fault), _)) => Err(wire::error_of(op, &fault)),
            Err(zlink::Error::VarlinkService(e)) => {
                use zlink::varlink_service::Error as Service;
                let (kind, reason) = match e.inner() {
                    Service::PermissionDenied => (
                        HostOpErrorKind::Refused,
                        format!(
                            "{} accepts calls only from the user named in its settings, and this process runs as user {}",
                            self.socket.display(),
                            rustix::process::geteuid().as_raw()
                        ),
                    ),
                    Service::MethodNotFound { .. } => (
                        HostOpErrorKind::Unsupported,
                        "the running helper does not know this operation; it is of an older version"
                            .to_owned(),
                    ),
                    other => (HostOpErrorKind::Failed, other.to_string()),
                };
                Err(error(kind, reason))
            }
            // The connection broke, or the answer is incomplete.
            Err(e) => {
                let why = match &e {
                    zlink::Error::Io(e) => format!(" ({e})"),
                    _ => String::new(),
                };
                Err(error(
                    HostOpErrorKind::Interrupted,
                    format!("the helper went away before it answered{why}; its progress is unknown"),
                ))
            }
        }
    }

    fn unreachable(&self, e: &io::Error) -> (HostOpErrorKind, String) {
        let socket = self.socket.display();
        match e.kind() {
            io::ErrorKind::NotFound => (
                HostOpErrorKind::Unsupported,
                format!("{socket} does not exist: start leaf-helper.socket, or set containers.helper_socket"),
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
                format!("no process listens on {socket}: is leaf-helper.socket active?"),
            ),
            _ => (
                HostOpErrorKind::Interrupted,
                format!("can't connect to {socket}: {e}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    /// Receives one call, and sends the answer if one is given.
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
    async fn an_operation_is_repeated_while_the_helper_goes_away() {
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
    async fn a_refused_operation_is_not_repeated_and_carry_out_tries_once() {
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
