//! The NATS users of containers: issued by the leaf's own identity for its embedded server, or with a given signing key on
//! a given NATS.

use std::sync::Arc;

use jiff::Timestamp;
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::embedded::Reloader;
use leaf_bus::identity::{ContainerSigner, Identity};
use leaf_bus::rights::{self, Finding, ScopeError};
use leaf_core::error::chain;
use leaf_core::host_op::Secret;
use leaf_core::id::{ContainerName, LeafName};
use leaf_core::renewal::Life;
use tokio::sync::OnceCell;

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
    Given(Box<GivenUsers>),
}

/// The users of containers on a given NATS.
pub struct GivenUsers {
    leaf: LeafName,
    signer: ContainerSigner,
    callers: ConnectSettings,
    /// Set once the key's scope was found to be that of containers.
    is_scoped: OnceCell<()>,
}

impl GivenUsers {
    /// Returns the users that a key issues, on the servers of these settings.
    #[must_use]
    pub fn new(leaf: LeafName, signer: ContainerSigner, callers: ConnectSettings) -> Self {
        Self {
            leaf,
            signer,
            callers,
            is_scoped: OnceCell::new(),
        }
    }
}

impl ContainerUsers {
    /// Returns new credentials of a container's user, and from when to when they are valid.
    #[must_use]
    pub fn credentials(&self, container: &ContainerName) -> (Secret, Life) {
        let credentials = match self {
            Self::Own { identity, .. } => identity.container_credentials(container),
            Self::Given(given) => given.signer.credentials(&given.leaf, container),
        };
        let life = Credentials::Text(credentials.clone()).life();
        let life = life.expect("their JWT was just made");
        let life = Life {
            issued_at: life.issued_at,
            ends_at: life.expires_at.unwrap_or(Timestamp::MAX),
        };
        (credentials, life)
    }

    /// Makes sure that containers can do no more than they may, before one gets credentials. A given key is tried once: an
    /// account may list it without a scope, and its users could do everything.
    ///
    /// # Errors
    /// Why no container can be given credentials.
    pub async fn check(&self) -> Result<(), String> {
        match self {
            Self::Own { .. } => Ok(()),
            Self::Given(given) => {
                let checked = given.is_scoped.get_or_try_init(|| async {
                    let missing = rights::check_scope(&given.leaf, &given.signer, &given.callers).await?;
                    for Finding { subject, advice, .. } in missing {
                        tracing::warn!(subject, advice, "containers lack a right on this NATS server");
                    }
                    Ok::<(), ScopeError>(())
                });
                checked.await.copied().map_err(|error| chain(&error))
            }
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
            Self::Given(given) => {
                tracing::info!(
                    name = %container,
                    user = given.signer.user(container),
                    account = given.signer.account(),
                    "the container's credentials are deleted with it; if they were copied, revoke this user in its account"
                );
                Ok(())
            }
        }
    }
}
