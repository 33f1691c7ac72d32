//! Plain types of a connection: its settings, its status, its errors.

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use leaf_core::host_op::Secret;
use leaf_core::id::Caller;
use leaf_core::subject;

use crate::stream_error::StreamError;

/// An error of an underlying library.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// The servers' addresses and the user's credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectSettings {
    /// The servers of one cluster, each as `nats://host:4222` or `tls://host:4222`.
    pub servers: Vec<String>,
    /// The user's credentials.
    pub credentials: Credentials,
    /// The prefix of the user's inboxes, without the last dot: `_INBOX.<caller>`.
    pub inbox_prefix: String,
    /// The encryption of the connection.
    pub tls: Tls,
    /// The connection's name in the server's lists.
    pub name: String,
    /// The JetStream domain of the streams, if it is not the server's own.
    pub jetstream_domain: Option<String>,
}

impl ConnectSettings {
    /// Returns settings for these servers (one, or several separated by commas), without credentials.
    #[must_use]
    pub fn new(servers: &str) -> Self {
        Self {
            servers: split_servers(servers),
            credentials: Credentials::None,
            inbox_prefix: subject::INBOX.to_owned(),
            tls: Tls::default(),
            name: "cim-leaf".to_owned(),
            jetstream_domain: None,
        }
    }

    /// The caller of the inbox prefix, if it has one.
    #[must_use]
    pub fn caller(&self) -> Option<Caller> {
        subject::caller_of_inbox_prefix(&self.inbox_prefix)
    }

    /// Returns the servers, separated by commas, for logs and errors: without the user, password or token that an
    /// address may have.
    #[must_use]
    pub fn servers_text(&self) -> String {
        self.servers
            .iter()
            .map(|url| without_user(url))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Splits a list of servers at its commas.
pub(crate) fn split_servers(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Returns the address without its user, which ends with the last `@`: a password may have others.
pub(crate) fn without_user(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (None, Some((_, host))) => host.to_owned(),
        (_, None) => url.to_owned(),
    }
}

/// The credentials that a server asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// No credentials.
    #[default]
    None,
    /// A file with a user's JWT and seed. It is read at each attempt, so it may be replaced.
    File(PathBuf),
    /// The content of such a file.
    Text(Secret),
    /// A file with the seed of a user's NKEY.
    NkeyFile(PathBuf),
    /// A user's name and password.
    Password {
        /// The user's name.
        user: String,
        /// The user's password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
}

impl Credentials {
    /// Returns the credentials in a file: a user's JWT and seed, or where it has but the seed of a user's NKEY, that.
    #[must_use]
    pub fn in_file(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.trim_start().starts_with("SU") {
            Self::NkeyFile(path.to_owned())
        } else {
            Self::File(path.to_owned())
        }
    }
}

/// The life of credentials with a JWT, as that says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialsLife {
    /// The id of the JWT.
    pub id: String,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it ends, and with it a connection; `None` if it does not.
    pub expires_at: Option<Timestamp>,
}

/// The encryption of a connection. A connection is encrypted if the server requires it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The CA certificates that are trusted (PEM); the system's if `None`.
    pub ca: Option<PathBuf>,
    /// The client's certificate (PEM), if the server requires one.
    pub cert: Option<PathBuf>,
    /// The certificate's key (PEM).
    pub key: Option<PathBuf>,
    /// Whether an unencrypted connection is refused.
    pub required: bool,
}

/// Returns whether a URL is that of a websocket, which the NATS client here is built without.
#[must_use]
pub fn is_websocket(url: &str) -> bool {
    let scheme = url.trim().split_once("://").map_or("", |(scheme, _)| scheme);
    scheme.eq_ignore_ascii_case("ws") || scheme.eq_ignore_ascii_case("wss")
}

/// Why a connection failed, or can't be used. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No server answers at the address.
    #[error("no NATS server answers at {servers}: start it, or give the address of another")]
    NoServer {
        /// The servers.
        servers: String,
        /// The operating system's error.
        source: Cause,
    },
    /// The address can't be parsed.
    #[error("{server:?} is not the address of a NATS server: write it like nats://host:4222")]
    BadAddress {
        /// The given address.
        server: String,
    },
    /// The address is that of a websocket.
    #[error(
        "{server:?} is a websocket, which this program can't connect to: write tls://host:4222, the server's port for clients"
    )]
    Websocket {
        /// The given address.
        server: String,
    },
    /// The server rejects the credentials.
    #[error("{servers} refuses the credentials: give those of a user of this server that is valid now")]
    CredentialsRefused {
        /// The servers.
        servers: String,
    },
    /// The credentials can't be read.
    #[error(
        "the credentials {what} can't be used: give a file with a user's JWT and seed that can be read here"
    )]
    CredentialsUnreadable {
        /// The credentials' description.
        what: String,
        /// The reason.
        source: Cause,
    },
    /// The server's certificate is not trusted.
    #[error(
        "the certificate of {servers} is not signed by a CA that is trusted here: give the server's own CA as `ca`"
    )]
    WrongCa {
        /// The servers.
        servers: String,
        /// The error of the verification.
        source: Cause,
    },
    /// The TLS handshake failed.
    #[error("no TLS connection to {servers}: check ca, cert and key, and whether the server speaks TLS")]
    Tls {
        /// The servers.
        servers: String,
        /// The error of the handshake.
        source: Cause,
    },
    /// The server closes the connection.
    #[error("{servers} refuses the connection: {reason}")]
    Refused {
        /// The servers.
        servers: String,
        /// The server's error.
        reason: String,
    },
    /// JetStream is off for the server or the account.
    #[error(
        "JetStream is off at {servers}, or for this account: switch it on (`jetstream {{}}` in the server's configuration)"
    )]
    JetStreamOff {
        /// The servers.
        servers: String,
    },
    /// JetStream is not reachable.
    #[error("JetStream can't be used at {servers}")]
    NoJetStream {
        /// The servers.
        servers: String,
        /// The reason.
        source: StreamError,
    },
    /// The user lacks a permission.
    #[error(
        "the NATS user lacks a permission: {what}: give the user the permission, or use other credentials"
    )]
    NoPermission {
        /// The server's error.
        what: String,
    },
    /// The server does not answer in time.
    #[error("{servers} does not answer within {seconds} s: check the network, or allow more time")]
    TimedOut {
        /// The servers.
        servers: String,
        /// The time limit, in seconds.
        seconds: f64,
    },
}

/// The status of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// The connection is established.
    Connected {
        /// The configured servers.
        server: String,
        /// When that began.
        since: Timestamp,
    },
    /// There is no connection; it is retried.
    Disconnected {
        /// The error of the last attempt.
        problem: String,
        /// When that began.
        since: Timestamp,
    },
}

impl Status {
    /// Whether the connection is established.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connected { server, since } => write!(f, "connected to {server} since {since}"),
            Self::Disconnected { problem, since } => write!(f, "not connected since {since}: {problem}"),
        }
    }
}

/// Information about the connected server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    /// The server's id, new at each start.
    pub id: String,
    /// The server's name.
    pub name: String,
    /// The server's version.
    pub version: String,
    /// The largest message that it accepts, in bytes.
    pub max_payload_bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let settings =
            ConnectSettings::new("nats://me:secret@a:4222, b:4222, tls://token@c, me:sec@ret@d:4222");
        assert_eq!(settings.servers_text(), "nats://a:4222, b:4222, tls://c, d:4222");
    }

    #[test]
    fn the_caller_is_the_last_part_of_the_inbox_prefix() {
        let mut settings = ConnectSettings::new("localhost");
        assert_eq!(settings.caller(), None);
        settings.inbox_prefix = "_INBOX.admin".to_owned();
        assert_eq!(settings.caller().map(String::from), Some("admin".to_owned()));
        settings.inbox_prefix = "_INBOX.a.b".to_owned();
        assert_eq!(settings.caller(), None);
    }
}
