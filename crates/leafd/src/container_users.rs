//! The NATS users of containers: issued by the leaf's own identity for its embedded server, or with a given signing key on
//! a given NATS.

use std::sync::Arc;

use leaf_bus::embedded::Reloader;
use leaf_bus::identity::{ContainerSigner, Identity};
use leaf_core::error::chain;
use leaf_core::host_op::Secret;
use leaf_core::id::ContainerName;

/// Issues and revokes containers' users.
pub enum ContainerUsers {
    /// Those of the embedded server.
    Own {
        /// Issues them.
        identity: Arc<Identity>,
        /// Tells the server which are revoked.
        server: Reloader,
    },
    /// Those of a given NATS. It can't be told which are revoked: that takes a key of its operator.
    Given(Box<ContainerSigner>),
}

impl ContainerUsers {
    /// Returns credentials of a container's user.
    #[must_use]
    pub fn credentials(&self, container: &ContainerName) -> Secret {
        match self {
            Self::Own { identity, .. } => identity.container_credentials(container),
            Self::Given(signer) => signer.credentials(container),
        }
    }

    /// Revokes the credentials of a container that is destroyed. On a given NATS it logs whose they were; their only copy
    /// on this host is removed with the container.
    ///
    /// # Errors
    /// Why they could not be revoked.
    pub async fn revoke(&self, container: &ContainerName) -> Result<(), String> {
        match self {
            Self::Own { identity, server } => {
                identity
                    .revoke_container(container)
                    .map_err(|error| chain(&error))?;
                server.reload().await.map_err(|error| chain(&error))
            }
            Self::Given(signer) => {
                tracing::info!(
                    name = %container,
                    user = signer.user(container),
                    account = signer.account(),
                    "the container's credentials are deleted with it; if they were copied, revoke this user in its account"
                );
                Ok(())
            }
        }
    }
}
