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

/// The daemon's connection, or two of them: where its callers are, and where the streams are. It is cheap to clone, and
/// all clones are one.
#[derive(Debug, Clone)]
pub struct Bus {
    /// Where the callers are.
    pub(crate) link: Link,
    /// Where the streams are; it may be the same.
    pub(crate) store: Link,
    apart: bool,
}

impl Bus {
    /// Returns a connection that may stand later: it is tried again without end, at most about 2.5 s apart.
    ///
    /// # Errors
    /// [`ConnectError`] when the settings themselves can't be used: an address, the credentials, a certificate.
    pub async fn connect(settings: &ConnectSettings) -> Result<Self, ConnectError> {
        let link = Link::open(settings, Mode::Forever).await?;
        Ok(Self {
            store: link.clone(),
            link,
            apart: false,
        })
    }

    /// Returns two connections as one: callers are answered with the first user, and the streams are kept with the second,
    /// which is in another account. So nobody who may ask the server can have it write into the streams.
    ///
    /// # Errors
    /// As [`Bus::connect`], of either.
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

    /// How the connection to the streams does.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.store.status()
    }

    /// How the connection to the callers does, where it is another one.
    #[must_use]
    pub fn callers_status(&self) -> Option<watch::Receiver<Status>> {
        self.apart.then(|| self.link.status())
    }

    /// Returns once the connection stands, or both do.
    pub async fn connected(&self) {
        self.store.connected().await;
        if self.apart {
            self.link.connected().await;
        }
    }

    /// How often the streams were connected; it differs after a reconnection.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.store.generation()
    }

    /// What the server says of itself; nothing before the first connection.
    #[must_use]
    pub fn server(&self) -> Option<ServerIdentity> {
        self.store.server()
    }

    /// How many messages were dropped since we were too slow to take them.
    #[must_use]
    pub fn dropped_messages(&self) -> u64 {
        let of_streams = if self.apart {
            self.store.dropped_messages()
        } else {
            0
        };
        self.link.dropped_messages() + of_streams
    }

    /// Asks whether JetStream answers us.
    ///
    /// # Errors
    /// [`ConnectError::JetStreamOff`], [`ConnectError::NoPermission`], or that there is no connection.
    pub async fn check_jetstream(&self) -> Result<(), ConnectError> {
        self.store.check_jetstream().await
    }

    /// Waits until the server has seen all that was published and subscribed so far.
    ///
    /// # Errors
    /// [`StreamError::Disconnected`] or [`StreamError::Unanswered`] within the limit.
    pub async fn flush(&self, limit: Duration) -> Result<(), StreamError> {
        if self.apart {
            self.store.flush(limit).await?;
        }
        self.link.flush(limit).await
    }

    /// Sends what is buffered and closes the connection for all clones; returns at the latest after `limit`.
    pub async fn close(self, limit: Duration) {
        if self.apart {
            self.store.close(limit).await;
        }
        self.link.close(limit).await;
    }
}
