//! Connecting: where the server is, who we are, and what is wrong when it does not work.
//!
//! [`Bus::connect`] is for the daemon: it needs no server to be there, tries again without end, and tells how it
//! does as a [`Status`]. A person's program makes one attempt with [`crate::client::Client::connect`].

use std::time::Duration;

use tokio::sync::watch;

use crate::level::Mode;
use crate::link::Link;
use crate::stream_error::StreamError;

pub use crate::settings::{Cause, ConnectError, ConnectSettings, Credentials, ServerIdentity, Status, Tls};

/// The daemon's connection. It is cheap to clone, and all clones are one connection.
#[derive(Debug, Clone)]
pub struct Bus {
    pub(crate) link: Link,
}

impl Bus {
    /// Returns a connection that may stand later: it is tried again without end, at most about 2.5 s apart.
    ///
    /// # Errors
    /// [`ConnectError`] when the settings themselves can't be used: an address, the credentials, a certificate.
    pub async fn connect(settings: &ConnectSettings) -> Result<Self, ConnectError> {
        let link = Link::open(settings, Mode::Forever).await?;
        Ok(Self { link })
    }

    /// How the connection does.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.link.status()
    }

    /// Returns once the connection stands.
    pub async fn connected(&self) {
        self.link.connected().await;
    }

    /// How often it was connected; it differs after a reconnection.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.link.generation()
    }

    /// What the server says of itself; nothing before the first connection.
    #[must_use]
    pub fn server(&self) -> Option<ServerIdentity> {
        self.link.server()
    }

    /// How many messages were dropped since we were too slow to take them.
    #[must_use]
    pub fn dropped_messages(&self) -> u64 {
        self.link.dropped_messages()
    }

    /// Asks whether JetStream answers us.
    ///
    /// # Errors
    /// [`ConnectError::JetStreamOff`], [`ConnectError::NoPermission`], or that there is no connection.
    pub async fn check_jetstream(&self) -> Result<(), ConnectError> {
        self.link.check_jetstream().await
    }

    /// Waits until the server has seen all that was published and subscribed so far.
    ///
    /// # Errors
    /// [`StreamError::Disconnected`] or [`StreamError::Unanswered`] within the limit.
    pub async fn flush(&self, limit: Duration) -> Result<(), StreamError> {
        self.link.flush(limit).await
    }

    /// Sends what is buffered and closes the connection for all clones; returns at the latest after `limit`.
    pub async fn close(self, limit: Duration) {
        self.link.close(limit).await;
    }
}
