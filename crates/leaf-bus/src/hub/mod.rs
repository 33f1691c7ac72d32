//! The hub agent's side of NATS: what it hears and reads of leaves, and the streams that it keeps at the hub.
//!
//! Start at [`Hub::connect`]. [`Hub::requests`] are those of leaves; a [`RemoteLeaf`] is what the agent reads of one, a
//! [`CopyStream`] the copy of its events, a [`StateCopy`] that of its state. The [`Registry`] keeps who was ever here, and
//! what happened. `docs/fleet.md` is the contract.

mod copy;
mod leaf;
mod page;
mod registry;
mod requests;
mod state;

use tokio::sync::watch;

use crate::level::Mode;
use crate::link::Link;
use crate::settings::{ConnectError, ConnectSettings, Status};

pub use copy::{CopyEvents, CopyStream};
pub use leaf::{EventsRequest, LiveEvents, RemoteError, RemoteLeaf, RemotePage};
pub use registry::{Known, Registry};
pub use requests::{Asked, LeafRequest, Requests, Resets};
pub use state::{LiveState, StateChange, StateCopy, StatePage};

/// The agent's two connections to the hub. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub struct Hub {
    /// In the account `FLEET`: the streams, and what is read of leaves.
    fleet: Link,
    /// In the account `LINKS`: the requests of leaves.
    links: Link,
}

impl Hub {
    /// Returns connections that are established later and retried for ever.
    ///
    /// # Errors
    /// [`ConnectError`] if settings can't be used: an address, the credentials, a certificate.
    pub async fn connect(fleet: &ConnectSettings, links: &ConnectSettings) -> Result<Self, ConnectError> {
        Ok(Self {
            fleet: Link::open(fleet, Mode::Forever).await?,
            links: Link::open(links, Mode::Forever).await?,
        })
    }

    /// The status of the connection in `FLEET`.
    #[must_use]
    pub fn fleet_status(&self) -> watch::Receiver<Status> {
        self.fleet.status()
    }

    /// The status of the connection in `LINKS`.
    #[must_use]
    pub fn links_status(&self) -> watch::Receiver<Status> {
        self.links.status()
    }

    /// Returns as soon as both connections are established.
    pub async fn connected(&self) {
        self.fleet.connected().await;
        self.links.connected().await;
    }
}
