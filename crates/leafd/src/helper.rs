//! Carries out host operations, which need root.

use leaf_core::host_op::{HostOp, HostOpError, HostReport};
use leaf_helper::{Client, Helper};

/// Carries out host operations, by the same code either way: in another process where leafd is not root.
#[derive(Debug, Clone)]
pub enum HostHelper {
    /// In this process, which runs as root.
    InProcess(Box<Helper>),
    /// By the service `leaf-helper`, over its socket.
    Service(Client),
}

impl HostHelper {
    /// Carries out an operation, and repeats it if the helper goes away before it answers.
    ///
    /// # Errors
    /// The helper's [`HostOpError`]; `Interrupted` if it stays away.
    pub async fn insist(&self, op: &HostOp) -> Result<HostReport, HostOpError> {
        match self {
            Self::InProcess(helper) => helper.carry_out(op).await,
            Self::Service(client) => client.insist(op).await,
        }
    }

    /// Carries out an operation, and waits for its end. Dropping the future doesn't stop the operation.
    ///
    /// # Errors
    /// The helper's [`HostOpError`].
    pub async fn carry_out(&self, op: &HostOp) -> Result<HostReport, HostOpError> {
        match self {
            Self::InProcess(helper) => helper.carry_out(op).await,
            Self::Service(client) => client.carry_out(op).await,
        }
    }
}
