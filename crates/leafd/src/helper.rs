//! Carries out the operations that need root.

use leaf_core::host_op::{HostOp, HostOpError};
use leaf_helper::{Client, Helper};

/// Carries out the operations that need root, by the same code either way: in another process where leafd is not root.
#[derive(Debug, Clone)]
pub enum HostHelper {
    /// This process, which is root's, carries them out itself.
    InProcess(Box<Helper>),
    /// The service `leaf-helper`, over its socket.
    Service(Client),
}

impl HostHelper {
    /// Carries out an operation, and waits for its end. A caller that stops waiting leaves it under way.
    ///
    /// # Errors
    /// [`HostOpError`], as the helper says it.
    pub async fn carry_out(&self, op: &HostOp) -> Result<(), HostOpError> {
        match self {
            Self::InProcess(helper) => helper.carry_out(op).await,
            Self::Service(client) => client.carry_out(op).await,
        }
    }
}
