//! The hub agent's side of NATS: what it hears and reads of leaves, and the streams that it keeps at the hub.
//!
//! Start at [`Hub::connect`]. [`Hub::requests`] are those of leaves; a [`RemoteLeaf`] is what the agent reads of one, a
//! [`CopyStream`] the copy of its events, a [`StateCopy`] that of its state. The [`Registry`] keeps who was ever here, and
//! what happened. The module `kept` has the subjects that the last two are written on. `docs/fleet.md` is the contract.

mod active;
mod copy;
mod kept;
mod leaf;
mod page;
mod registry;
mod requests;
mod state;

use tokio::sync::watch;

use active::Fence;
use kept::Kept;
use registry::Streams;

use crate::embedded::MAX_PAYLOAD;
use crate::level::Mode;
use crate::link::Link;
use crate::settings::{ConnectError, ConnectSettings, Status};

pub use active::Allowed;
pub use copy::CopyStream;
pub use leaf::{RemoteError, RemoteLeaf};
pub use registry::{Known, Registry};
pub use requests::{Asked, DoneTo, LeafRequest, Requests};
pub use state::{LiveState, StateChange, StateCopy, StatePage};

/// Returns whether a nats-server of this version, as a hub, holds each leaf to the rights of its user: it checks what comes
/// from a leaf node since 2.12.7, and message traces respect accounts since 2.12.12 and 2.14.3.
fn keeps_leaves_apart(version: &str) -> bool {
    let release = version
        .trim_start_matches('v')
        .split(['-', '+'])
        .next()
        .unwrap_or_default();
    let numbers: Vec<u32> = release.split('.').map_while(|part| part.parse().ok()).collect();
    match numbers[..] {
        [2, 12, patch] => patch >= 12,
        [2, 14, patch] => patch >= 3,
        [2, minor, _] => minor >= 15,
        [major, _, _] => major > 2,
        _ => false,
    }
}

/// The agent's two connections to the hub. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub struct Hub {
    /// In the account `FLEET`: the streams, and what is read of leaves.
    fleet: Link,
    /// In the account `LINKS`: the requests of leaves.
    links: Link,
    /// Whether this process may write the streams.
    allowed: watch::Sender<Allowed>,
    /// The streams of the registry.
    streams: Streams,
    /// The bucket of the leaves' states.
    states: Kept,
}

impl Hub {
    /// Returns connections that are established later and retried for ever.
    ///
    /// # Errors
    /// [`ConnectError`] if settings can't be used: an address, the credentials, a certificate.
    pub async fn connect(fleet: &ConnectSettings, links: &ConnectSettings) -> Result<Self, ConnectError> {
        let fleet = Link::open(fleet, Mode::Forever).await?;
        Ok(Self {
            links: Link::open(links, Mode::Forever).await?,
            allowed: watch::Sender::new(Allowed::Always),
            streams: Streams::new(&fleet),
            states: Kept::new(fleet.clone(), state::bucket()),
            fleet,
        })
    }

    /// Says whether this process may write the hub's streams: at first it always may.
    pub fn allow(&self, allowed: Allowed) {
        self.allowed.send_replace(allowed);
    }

    fn fence(&self) -> Fence {
        Fence::new(self.allowed.subscribe())
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

    /// Returns why the connected server can't be a hub's; `None` if it can, or if there is no connection yet.
    #[must_use]
    pub fn unfit(&self) -> Option<String> {
        let server = self.fleet.server()?;
        if !keeps_leaves_apart(&server.version) {
            return Some(format!(
                "nats-server {} lets a leaf act for another one: install 2.14.3 or newer, or 2.12.12 or newer of 2.12",
                server.version
            ));
        }
        (server.max_payload_bytes != usize::try_from(MAX_PAYLOAD).unwrap_or(usize::MAX)).then(|| {
            format!(
                "the server accepts messages of {} bytes, and those of leaves accept {MAX_PAYLOAD}: a message that one side refuses \
                 cuts the connection, so set `max_payload: {MAX_PAYLOAD}`",
                server.max_payload_bytes
            )
        })
    }

    /// Returns as soon as both connections are established.
    pub async fn connected(&self) {
        self.fleet.connected().await;
        self.links.connected().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_let_a_leaf_act_for_another_are_no_hub() {
        for good in [
            "2.15.1",
            "v2.15.0",
            "2.14.3",
            "2.14.6",
            "2.12.12",
            "2.16.0-RC.1",
            "3.0.0",
        ] {
            assert!(keeps_leaves_apart(good), "{good}");
        }
        for bad in [
            "2.14.2", "2.12.11", "2.12.8", "2.11.16", "2.10.26", "1.4.1", "", "2.15", "new",
        ] {
            assert!(!keeps_leaves_apart(bad), "{bad}");
        }
    }
}
