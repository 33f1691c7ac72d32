//! Connects to one of several servers, with the TLS that the settings and the server ask for.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::frames::{Frame, Frames, invalid};
use crate::settings::{ConnectSettings, Tls, without_user};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);

/// The default ports of nats-server for clients and for leaf nodes.
const CLIENTS: u16 = 4222;
pub(crate) const LEAF_NODES: u16 = 7422;

/// Why no connection can be made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// An address that is none, or that of a websocket.
    #[error(
        "{server:?} can't be used: write it like nats://host:{default_port} or tls://host:{default_port}"
    )]
    BadAddress {
        /// The address.
        server: String,
        /// The port that servers listen on by default.
        default_port: u16,
    },
    /// A certificate or key can't be read.
    #[error("the certificates of the connection to NATS can't be used")]
    Certificates(#[source] io::Error),
    /// No server answers as it must.
    #[error("can't connect to {server}")]
    NoServer {
        /// The last server that was tried.
        server: String,
        /// Its error.
        source: io::Error,
    },
}

/// Both directions of a connection, whatever carries it.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A new connection: the server has sent its information and waits for `CONNECT`.
pub(crate) struct Dialled {
    /// What the server sends.
    pub(crate) reader: Frames<ReadHalf<Box<dyn Stream>>>,
    /// What it receives.
    pub(crate) writer: WriteHalf<Box<dyn Stream>>,
    /// The server's information.
    pub(crate) info: Map<String, Value>,
    /// Its address, for errors.
    pub(crate) server: String,
}

struct Server {
    host: String,
    port: u16,
    tls: bool,
}

impl Server {
    fn text(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// Makes connections to the same servers.
pub(crate) struct Dialler {
    servers: Vec<Server>,
    tls: Tls,
}

impl Dialler {
    /// # Errors
    /// [`DialError::BadAddress`].
    pub(crate) fn new(settings: &ConnectSettings) -> Result<Self, DialError> {
        Self::at(settings, CLIENTS)
    }

    /// Connects to the servers' ports for leaf nodes, where their addresses name no other.
    ///
    /// # Errors
    /// [`DialError::BadAddress`].
    pub(crate) fn of_leaf_nodes(settings: &ConnectSettings) -> Result<Self, DialError> {
        Self::at(settings, LEAF_NODES)
    }

    fn at(settings: &ConnectSettings, default_port: u16) -> Result<Self, DialError> {
        let mut servers = Vec::new();
        for server in &settings.servers {
            let address = server.parse::<async_nats::ServerAddr>().ok();
            let usable = address.filter(|address| !address.host().is_empty() && !address.is_websocket());
            let address = usable.ok_or_else(|| DialError::BadAddress {
                server: without_user(server),
                default_port,
            })?;
            servers.push(Server {
                host: address.host().to_owned(),
                port: address.clone().into_inner().port().unwrap_or(default_port),
                tls: settings.tls.required || address.tls_required(),
            });
        }
        if servers.is_empty() {
            return Err(DialError::BadAddress {
                server: String::new(),
                default_port,
            });
        }
        Ok(Self {
            servers,
            tls: settings.tls.clone(),
        })
    }

    /// The port of the first server with this host that needs no TLS by its address.
    pub(crate) fn plain_port_at(&self, host: &str) -> Option<u16> {
        let found = self
            .servers
            .iter()
            .find(|server| server.host == host && !server.tls);
        found.map(|server| server.port)
    }

    /// Connects to the first server that answers.
    ///
    /// # Errors
    /// [`DialError`], of the last server.
    pub(crate) async fn dial(&self) -> Result<Dialled, DialError> {
        let mut last = None;
        for server in &self.servers {
            let late = || io::Error::from(io::ErrorKind::TimedOut);
            let dialled = tokio::time::timeout(ATTEMPT, self.dial_one(server)).await;
            match dialled.unwrap_or_else(|_| Err(Failure::Server(late()))) {
                Ok(dialled) => return Ok(dialled),
                Err(Failure::Certificates(source)) => return Err(DialError::Certificates(source)),
                Err(Failure::Server(source)) => {
                    last = Some(DialError::NoServer {
                        server: server.text(),
                        source,
                    });
                }
            }
        }
        Err(last.expect("there is a server"))
    }

    async fn dial_one(&self, server: &Server) -> Result<Dialled, Failure> {
        let plain = TcpStream::connect((server.host.as_str(), server.port)).await?;
        plain.set_nodelay(true)?;
        let mut frames = Frames::new(plain);
        let mut line = Vec::new();
        if frames.next(&mut line).await? != Some(Frame::Info) {
            return Err(invalid("it is not a NATS server, which begins with INFO").into());
        }
        let info = read_info(&line)?;
        let tls = server.tls || info.get("tls_required") == Some(&Value::Bool(true));
        if tls && frames.has_more() {
            return Err(invalid("it sent data before the TLS handshake").into());
        }
        let stream: Box<dyn Stream> = if tls {
            let config = config(&self.tls).await.map_err(Failure::Certificates)?;
            let name = ServerName::try_from(server.host.clone()).map_err(io::Error::other)?;
            let connector = TlsConnector::from(Arc::new(config));
            Box::new(connector.connect(name, frames.into_inner()).await?)
        } else if frames.has_more() {
            return Err(invalid("it sent data before CONNECT").into());
        } else {
            Box::new(frames.into_inner())
        };
        let (reader, writer) = tokio::io::split(stream);
        Ok(Dialled {
            reader: Frames::new(reader),
            writer,
            info,
            server: server.text(),
        })
    }
}

enum Failure {
    Certificates(io::Error),
    Server(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Server(error)
    }
}

/// Returns the server's information of an `INFO` line.
pub(crate) fn read_info(line: &[u8]) -> io::Result<Map<String, Value>> {
    let start = line.iter().position(|byte| *byte == b'{').unwrap_or(line.len());
    serde_json::from_slice(&line[start..]).map_err(|_| invalid("the server's information is not valid"))
}

/// Trusts the CA of the settings, or else those of the system, as the client of the leaf's own connection does.
async fn config(tls: &Tls) -> io::Result<ClientConfig> {
    let tls = tls.clone();
    tokio::task::spawn_blocking(move || {
        let mut roots = RootCertStore::empty();
        if let Some(ca) = &tls.ca {
            for certificate in certificates(ca)? {
                roots.add(certificate).map_err(|error| in_file(ca, error))?;
            }
        } else {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let (Some(cert), Some(key)) = (&tls.cert, &tls.key) else {
            return Ok(builder.with_no_client_auth());
        };
        let private = PrivateKeyDer::from_pem_file(key).map_err(|error| in_file(key, error))?;
        builder
            .with_client_auth_cert(certificates(cert)?, private)
            .map_err(|error| in_file(cert, error))
    })
    .await
    .map_err(io::Error::other)?
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    read.map_err(|error| in_file(file, error))
}

fn in_file(file: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", file.display()))
}
