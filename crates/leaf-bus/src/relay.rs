//! Passes connections of containers on to a NATS server elsewhere.
//!
//! A container reaches one address only, that of its leaf. The relay listens there and connects to the server as the
//! leaf does: with its CA, its client certificate and the host's routes and names. So a container's network stays
//! closed, and its connection is the same as that to an embedded server (`docs/decisions/0020-…`).
//!
//! The server authenticates the container by its own user's signature, which the relay passes on. Of what the server
//! says of itself the relay leaves out what is true of the leaf's connection only: TLS, and other servers' addresses,
//! which a container can't reach.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use leaf_core::error::chain;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{Id, JoinSet};

use crate::raw::{Dialled, Dialler, Frame, Frames, read_info};
use crate::settings::ConnectSettings;

pub use crate::raw::DialError;

/// The connections that one address, a container, may have at a time.
const PER_ADDRESS: usize = 64;
/// The bytes that are passed on at once where a server sends many small messages.
const BATCH: usize = 64 * 1024;
/// How long a container may take to accept what the server sent.
const ACCEPTS_WITHIN: Duration = Duration::from_secs(30);
/// The pause after an error of the listening socket, such as too many open files.
const PAUSE: Duration = Duration::from_millis(200);

/// The fields of the server's information that a container does not get.
const OF_THE_LEAFS_CONNECTION: [&str; 5] = [
    "tls_required",
    "tls_verify",
    "tls_available",
    "connect_urls",
    "ws_connect_urls",
];

/// Returns the port of the first of these servers that listens on this address without TLS, so that containers reach it
/// without a relay.
#[must_use]
pub fn port_at(to: &ConnectSettings, address: Ipv4Addr) -> Option<u16> {
    Dialler::new(to).ok()?.plain_port_at(&address.to_string())
}

/// Listens for containers' connections.
pub struct Relay {
    listener: TcpListener,
    dialler: Arc<Dialler>,
}

/// Why the relay can't listen.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The address is in use, or does not exist.
    #[error("can't listen on {address} for the NATS connections of containers")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
    /// The server's address can't be used.
    #[error(transparent)]
    Server(DialError),
}

impl Relay {
    /// Listens on this address for connections to these servers, with the TLS of these settings. The user of the settings
    /// is not used.
    ///
    /// # Errors
    /// [`RelayError`].
    pub async fn bind(address: SocketAddr, to: &ConnectSettings) -> Result<Self, RelayError> {
        let dialler = Dialler::new(to).map_err(RelayError::Server)?;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| RelayError::Listen { address, source })?;
        Ok(Self {
            listener,
            dialler: Arc::new(dialler),
        })
    }

    /// The address that it listens on.
    ///
    /// # Errors
    /// The operating system's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Passes connections on, until it is dropped.
    pub async fn run(self) {
        let mut connections = JoinSet::new();
        let mut from: BTreeMap<Id, IpAddr> = BTreeMap::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((client, peer)) => {
                        if from.values().filter(|address| **address == peer.ip()).count() >= PER_ADDRESS {
                            tracing::warn!(%peer, "more than {PER_ADDRESS} NATS connections: refused");
                            continue;
                        }
                        let dialler = Arc::clone(&self.dialler);
                        let task = connections.spawn(async move {
                            if let Err(error) = pass_on(client, &dialler).await {
                                tracing::debug!(%peer, error = chain(error.as_ref()), "a container's NATS connection ended");
                            }
                        });
                        from.insert(task.id(), peer.ip());
                    }
                    Err(error) => {
                        tracing::warn!(error = chain(&error), "no NATS connection of a container can be accepted");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next_with_id() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => error.id(),
                    };
                    from.remove(&id);
                }
            }
        }
    }
}

/// Passes one connection on until either side ends it.
async fn pass_on(
    client: TcpStream,
    dialler: &Dialler,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    client.set_nodelay(true)?;
    let Dialled {
        reader,
        mut writer,
        info,
        ..
    } = dialler.dial().await?;
    let (mut from_client, mut to_client) = client.into_split();
    write_in_time(&mut to_client, &info_line(info)).await?;
    tokio::select! {
        up = tokio::io::copy(&mut from_client, &mut writer) => up.map(drop)?,
        down = pass_down(reader, &mut to_client) => down?,
    }
    let _ = writer.shutdown().await;
    Ok(())
}

/// Passes on what the server sends.
async fn pass_down<R, W>(mut server: Frames<R>, client: &mut W) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut bytes = Vec::new();
    loop {
        let start = bytes.len();
        let frame = server.next(&mut bytes).await?;
        if frame == Some(Frame::Info) {
            let info = info_line(read_info(&bytes[start..])?);
            bytes.truncate(start);
            bytes.extend(info);
        }
        if frame.is_none() || !server.has_more() || bytes.len() >= BATCH {
            write_in_time(client, &bytes).await?;
            bytes.clear();
            bytes.shrink_to(BATCH);
        }
        if frame.is_none() {
            return Ok(());
        }
    }
}

async fn write_in_time(client: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    tokio::time::timeout(ACCEPTS_WITHIN, client.write_all(bytes)).await?
}

/// Returns the `INFO` line for a container.
fn info_line(mut info: Map<String, Value>) -> Vec<u8> {
    for field in OF_THE_LEAFS_CONNECTION {
        info.remove(field);
    }
    format!("INFO {}\r\n", Value::Object(info)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn no_information_of_the_server_leads_a_container_elsewhere() {
        let sent = b"PING\r\nINFO {\"server_id\":\"N\",\"connect_urls\":[\"10.0.0.9:4222\"],\"tls_required\":true,\"nonce\":\"n\"}\r\n\
            MSG s 1 36\r\nINFO {\"connect_urls\":[\"10.0.0.9\"]}\r\n\r\nPONG\r\n";
        let mut client = Vec::new();
        pass_down(Frames::new(&sent[..]), &mut client)
            .await
            .expect("whole frames");
        let text = String::from_utf8(client).expect("text");
        assert_eq!(
            text,
            "PING\r\nINFO {\"nonce\":\"n\",\"server_id\":\"N\"}\r\nMSG s 1 36\r\nINFO {\"connect_urls\":[\"10.0.0.9\"]}\r\n\r\nPONG\r\n"
        );
    }
}
