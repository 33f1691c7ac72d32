//! The daemon's connection to NATS.
//!
//! [`Bus::connect`] returns before a server is reachable, retries for ever, and reports its [`Status`]. A command line
//! tries once, with [`crate::client::Client::connect`].

use std::time::Duration;

use tokio::sync::watch;

use crate::level::Mode;
use crate::link::Link;
use crate::stream_error::StreamError;

pub use crate::settings::{
    Cause, ConnectError, ConnectSettings, Credentials, CredentialsLife, ServerIdentity, Status, Tls,
    is_websocket,
};

/// The daemon's connection, or two of them: one in the callers' account, one in the streams'. Cheap to clone; clones
/// share the connections.
#[derive(Debug, Clone)]
pub struct Bus {
    /// The connection in the callers' account.
    pub(crate) link: Link,
    /// The connection in the streams' account, which may be the same.
    pub(crate) store: Link,
    apart: bool,
}

impl Bus {
    /// Returns a connection that is established later: it retries for ever, with a back-off of at most about 2.5 s.
    ///
    /// # Errors
    /// [`ConnectError`] if the settings can't be used: an address, the credentials, a certificate.
    pub async fn connect(settings: &ConnectSettings) -> Result<Self, ConnectError> {
        let link = Link::open(settings, Mode::Forever).await?;
        Ok(Self {
            store: link.clone(),
            link,
            apart: false,
        })
    }

    /// Returns two connections: the first user answers callers; the second, in another account, writes the streams. So
    /// no caller can make the server write into the streams.
    ///
    /// # Errors
    /// As [`Bus::connect`], for either user.
    pub async fn connect_apart(
        callers: &ConnectSettings,
        streams: &ConnectSettings,
    ) -> Result<Self, ConnectError> {
        Ok(Self {
            link: Link::open(callers, Mode::Forever).await?,
            store: Link::open(streams, Mode::Forever).await?,
            apart: true,
        })
    }

    /// The status of the streams' connection.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.store.status()
    }

    /// The status of the callers' connection, if it is a separate one.
    #[must_use]
    pub fn callers_status(&self) -> Option<watch::Receiver<Status>> {
        self.apart.then(|| self.link.status())
    }

    /// Waits until all connections are established.
    pub async fn connected(&self) {
        self.store.connected().await;
        if self.apart {
            self.link.connected().await;
        }
    }

    /// The number of times that the streams' connection was established; it changes with each reconnection.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.store.generation()
    }

    /// The server's information; `None` before the first connection.
    #[must_use]
    pub fn server(&self) -> Option<ServerIdentity> {
        self.store.server()
    }

    /// The largest message that the servers of all connections accept, with its headers, in bytes; `None` before the first
    /// connection.
    #[must_use]
    pub fn max_message_bytes(&self) -> Option<usize> {
        let of_streams = self.store.max_message_bytes()?;
        Some(if self.apart {
            of_streams.min(self.link.max_message_bytes()?)
        } else {
            of_streams
        })
    }

    /// The number of messages that were dropped because a subscriber was too slow.
    #[must_use]
    pub fn dropped_messages(&self) -> u64 {
        let of_streams = if self.apart {
            self.store.dropped_messages()
        } else {
            0
        };
        self.link.dropped_messages() + of_streams
    }

    /// Checks that JetStream is enabled and that this user may use it.
    ///
    /// # Errors
    /// [`ConnectError::JetStreamOff`], [`ConnectError::NoJetStream`], [`ConnectError::NoPermission`], or an error if there is no
    /// connection.
    pub async fn check_jetstream(&self) -> Result<(), ConnectError> {
        self.store.check_jetstream().await
    }

    /// Waits until the server has processed all publishes and subscriptions so far.
    ///
    /// # Errors
    /// [`StreamError::Disconnected`], or [`StreamError::Unanswered`] after the limit.
    pub async fn flush(&self, limit: Duration) -> Result<(), StreamError> {
        if self.apart {
            self.store.flush(limit).await?;
        }
        self.link.flush(limit).await
    }

    /// Flushes and closes the connections for all clones, within `limit`.
    pub async fn close(self, limit: Duration) {
        if self.apart {
            self.store.close(limit).await;
        }
        self.link.close(limit).await;
    }
}
