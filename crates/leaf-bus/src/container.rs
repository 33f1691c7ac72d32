//! The containers' side: answers health requests below the container's own subject prefix, with its own credentials.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use leaf_core::host_op::ContainerBinding;
use leaf_core::subject;
use tokio::sync::watch;

use crate::level::Mode;
use crate::link::Link;
use crate::settings::{ConnectError, ConnectSettings, Credentials, Status};
use crate::stream_error::StreamError;

/// A container's connection to its leaf. It retries for ever, with pauses that grow to a minute: the network may be set
/// up after the container has started, and the leaf may be gone.
#[derive(Debug, Clone)]
pub struct ContainerClient {
    link: Link,
    health: String,
}

impl ContainerClient {
    /// Returns a connection that is established later, with the credentials of this file: it is read at each connection, since the
    /// leaf renews it.
    ///
    /// # Errors
    /// [`ConnectError`] if the address or the credentials can't be used.
    pub async fn connect(binding: &ContainerBinding, credentials: &Path) -> Result<Self, ConnectError> {
        let mut settings = ConnectSettings::new(&binding.nats_url);
        settings.credentials = Credentials::File(credentials.to_owned());
        settings.inbox_prefix.clone_from(&binding.inbox_prefix);
        settings.name = format!("container {} of {}", binding.container, binding.leaf);
        Ok(Self {
            link: Link::open(&settings, Mode::Patiently).await?,
            health: format!("{}.health", binding.subject_prefix),
        })
    }

    /// The connection's status.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.link.status()
    }

    /// Makes the next attempt to connect follow at once, as after a change of the network.
    pub fn hurry(&self) {
        self.link.hurry();
    }

    /// Answers each health request with the value of `health` at that time (a JSON document), until the connection is
    /// closed.
    ///
    /// # Errors
    /// [`StreamError`] if the connection is closed.
    pub async fn serve_health(&self, health: impl Fn() -> Vec<u8>) -> Result<(), StreamError> {
        let mut requests = self.link.subscribe(self.health.clone()).await?;
        while let Some(request) = requests.next().await {
            // Replies go to inboxes only, whichever subject a request names.
            let reply = request.reply.filter(|reply| subject::is_inbox(reply));
            if let Some(reply) = reply
                && self.link.is_connected()
                && let Err(error) = self.link.client().publish(reply, health().into()).await
            {
                tracing::warn!(%error, "can't send a reply");
            }
        }
        Err(StreamError::Disconnected)
    }

    /// Closes the connection within `limit`.
    pub async fn close(self, limit: Duration) {
        self.link.close(limit).await;
    }
}
