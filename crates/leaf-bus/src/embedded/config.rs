//! The configuration of the embedded server, written at each start, and its stored port.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

use super::processes::listener_on;
use super::{EmbeddedError, EmbeddedSettings, Hub, SYNC_INTERVAL};
use crate::identity::Identity;
use crate::identity::files::{private_dir, write_private};

/// The range that a port is chosen from. It is below the kernel's ephemeral range: a client that reconnects to an
/// ephemeral port on the same host can connect to itself and occupy the port.
const PORTS: std::ops::Range<u16> = 14_222..30_000;

/// The period of the server's pings where it is connected to a hub; its default is two minutes.
const HUB_PING: Duration = Duration::from_secs(2);

/// The server's directory and files.
pub(super) struct Home {
    pub(super) dir: PathBuf,
    pub(super) config: PathBuf,
    pub(super) log: PathBuf,
    store: PathBuf,
    port: PathBuf,
    /// The lock on the directory. Its holder may end a server that was left behind.
    _lock: fs::File,
}

impl Home {
    /// Creates the directory and locks it.
    pub(super) async fn prepare(dir: &Path) -> Result<Self, EmbeddedError> {
        let dir = std::path::absolute(dir)
            .and_then(|dir| private_dir(&dir).map(|()| dir))
            .map_err(|source| EmbeddedError::File {
                path: dir.to_owned(),
                source,
            })?;
        let lock = lock(&dir).await?;
        Ok(Self {
            _lock: lock,
            config: dir.join("nats-server.conf"),
            log: dir.join("nats-server.log"),
            store: dir.join("jetstream"),
            port: dir.join("port"),
            dir,
        })
    }

    /// Returns the address to listen on. Port 0 selects the port of the last start, or a new one that is stored.
    pub(super) fn address(&self, settings: &EmbeddedSettings) -> Result<SocketAddr, EmbeddedError> {
        let ip = settings.listen.ip();
        if ip.is_unspecified() {
            return Err(EmbeddedError::ListensToTheWorld { address: ip });
        }
        if settings.listen.port() != 0 {
            check_free(settings.listen)?;
            return Ok(settings.listen);
        }
        let stored = fs::read_to_string(&self.port)
            .ok()
            .and_then(|text| text.trim().parse::<u16>().ok())
            .filter(|port| *port != 0);
        if let Some(port) = stored {
            let address = SocketAddr::new(ip, port);
            match check_free(address) {
                Ok(()) => return Ok(address),
                Err(e @ EmbeddedError::PortTaken { .. }) => tracing::warn!("{e}; choosing another port"),
                Err(e) => return Err(e),
            }
        }
        let address = SocketAddr::new(ip, free_port(ip)?);
        write_private(&self.port, &format!("{}\n", address.port())).map_err(|source| {
            EmbeddedError::File {
                path: self.port.clone(),
                source,
            }
        })?;
        Ok(address)
    }

    /// Makes the server load the streams' account at its start, as it does with each account that has a directory which is not
    /// empty.
    ///
    /// It would else load it with the first connection that needs it, and creates and removes the account's directory then,
    /// after it has begun to answer requests: a stream that is created meanwhile fails, or loses its files.
    pub(super) fn load_account_at_start(&self, identity: &Identity) -> Result<(), EmbeddedError> {
        let failed = |source| EmbeddedError::File {
            path: self.store.clone(),
            source,
        };
        let dir = self.store.join("jetstream").join(identity.account());
        private_dir(&dir)
            .and_then(|()| write_private(&dir.join("loaded-at-start"), ""))
            .map_err(failed)
    }

    /// Writes the configuration.
    pub(super) fn write_config(
        &self,
        settings: &EmbeddedSettings,
        address: SocketAddr,
        identity: &Identity,
    ) -> Result<(), EmbeddedError> {
        let max_file = match settings.max_file_store {
            Some(bytes) => bytes,
            None => self.file_system_size()?,
        };
        // No `http`: the server serves only NATS.
        let text = format!(
            "# Written by leafd at each start; changes made here are lost.\n\
             server_name: {name}\nhost: {host}\nport: {port}\n\
             max_payload: {max_payload}\n\
             log_file: {log}\nlogfile_size_limit: 4MB\nlogfile_max_num: 2\n\
             jetstream {{\n  store_dir: {store}\n  sync_interval: \"{sync}s\"\n  max_file_store: {max_file}\n  max_memory_store: {max_memory}\n}}\n\
             {hub}{identity}",
            name = quote(identity.leaf().as_str()),
            host = quote(&address.ip().to_string()),
            port = address.port(),
            max_payload = settings.max_payload,
            sync = SYNC_INTERVAL.as_secs(),
            log = quote_path(&self.log)?,
            store = quote_path(&self.store)?,
            max_memory = settings.max_memory_store,
            hub = settings
                .hub
                .as_ref()
                .map_or(Ok(String::new()), |hub| remote(hub, &identity.link_account()))?,
            identity = identity.server_config()?,
        );
        write_private(&self.config, &text).map_err(|source| EmbeddedError::File {
            path: self.config.clone(),
            source,
        })
    }

    /// Returns the size of the file system, as the limit of JetStream's storage. The server's default is three quarters
    /// of the space that is *free* at its start: after a full disk that is less than it has stored. The streams'
    /// `max_bytes` limit them.
    fn file_system_size(&self) -> Result<u64, EmbeddedError> {
        let stat = rustix::fs::statvfs(&self.dir).map_err(|e| EmbeddedError::File {
            path: self.dir.clone(),
            source: e.into(),
        })?;
        // Some file systems (overlays, network file systems) report no size.
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize).max(1 << 30))
    }
}

async fn lock(dir: &Path) -> Result<fs::File, EmbeddedError> {
    let path = dir.join("lock");
    let failed = |source| EmbeddedError::File {
        path: path.clone(),
        source,
    };
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(failed)?;
    // A child of a leafd that was just killed may hold the lock between fork and exec.
    for _ in 0..100 {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => sleep(Duration::from_millis(10)).await,
            Err(fs::TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    Err(EmbeddedError::InUse { dir: dir.to_owned() })
}

/// Checks that the address can be listened on, by listening on it.
pub(super) fn check_free(address: SocketAddr) -> Result<(), EmbeddedError> {
    use std::io::ErrorKind as Kind;
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == Kind::AddrInUse => Err(EmbeddedError::PortTaken {
            address,
            holder: listener_on(address.port()).unwrap_or_else(|| "another process".to_owned()),
        }),
        Err(e) if e.kind() == Kind::AddrNotAvailable => Err(EmbeddedError::NoSuchAddress {
            address: address.ip(),
        }),
        Err(source) => Err(EmbeddedError::Listen { address, source }),
    }
}

fn free_port(ip: IpAddr) -> Result<u16, EmbeddedError> {
    let width = u128::from(PORTS.end - PORTS.start);
    let mut last = None;
    for _ in 0..200 {
        let offset = uuid::Uuid::now_v7().as_u128() % width;
        let port = PORTS.start + u16::try_from(offset).expect("less than the width of a range of u16");
        match check_free(SocketAddr::new(ip, port)) {
            Ok(()) => return Ok(port),
            Err(e @ EmbeddedError::PortTaken { .. }) => last = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(last.expect("200 ports were tried"))
}

/// Returns the part of the configuration that connects to a hub, in an account that holds nothing but this connection.
fn remote(hub: &Hub, account: &str) -> Result<String, EmbeddedError> {
    let text = fs::read_to_string(&hub.credentials).map_err(|source| EmbeddedError::HubCredentials {
        path: hub.credentials.clone(),
        source,
    })?;
    // A user's seed begins with `SU`, and nats-server takes no file for it; a credentials file begins with dashes.
    let user = if text.trim_start().starts_with("SU") {
        format!("nkey: {}", quote(text.trim()))
    } else {
        format!("credentials: {}", quote_path(&hub.credentials)?)
    };
    let urls: Vec<String> = hub.urls.iter().map(|url| quote(url)).collect();
    let tls = match &hub.ca {
        Some(ca) => format!("\n      tls {{ ca_file: {} }}", quote_path(ca)?),
        None => String::new(),
    };
    // A connection that is cut is noticed after two unanswered pings.
    Ok(format!(
        "ping_interval: \"{ping}s\"\nleafnodes {{\n  reconnect: \"1s\"\n  remotes [\n    {{\n      urls: [{urls}]\n      account: {account}\n      \
         {user}{tls}\n    }}\n  ]\n}}\n",
        ping = HUB_PING.as_secs(),
        urls = urls.join(", "),
    ))
}

fn quote_path(path: &Path) -> Result<String, EmbeddedError> {
    match path.to_str() {
        Some(text) if !text.chars().any(char::is_control) => Ok(quote(text)),
        _ => Err(EmbeddedError::PathNotText {
            path: path.to_owned(),
        }),
    }
}

/// Returns a string of nats-server's configuration, in double quotes.
fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
