//! The caller's side of the helper's socket.

use std::io;
use std::path::{Path, PathBuf};

use leaf_core::error::chain;
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind};
use serde_json::{Map, Value};
use zlink::Call;
use zlink::tokio::unix;

use crate::service::wire::{self, Fault};

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
