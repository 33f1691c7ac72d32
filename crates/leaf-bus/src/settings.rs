//! Where the server is, who we are, how the connection does, and what is wrong when there is none: plain types.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use leaf_core::host_op::Secret;
use leaf_core::id::Caller;
use leaf_core::subject;

/// What an underlying library says.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Where the server is and who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectSettings {
    /// The servers, each as `nats://host:4222` or `tls://host:4222`. They are one cluster.
    pub servers: Vec<String>,
    /// Who we are.
    pub credentials: Credentials,
    /// The prefix of our inboxes, without the last dot: `_INBOX.<caller>`.
    pub inbox_prefix: String,
    /// How the connection is encrypted.
    pub tls: Tls,
    /// What the server's lists of connections call us.
    pub name: String,
    /// The JetStream domain that the streams are in, where it is not the server's own.
    pub jetstream_domain: Option<String>,
}

impl ConnectSettings {
    /// Returns the settings for these servers (one, or several with commas between), without credentials.
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

    /// Who we are as a caller, if the inbox prefix is that of one.
    #[must_use]
    pub fn caller(&self) -> Option<Caller> {
        subject::caller_of_inbox_prefix(&self.inbox_prefix)
    }

    pub(crate) fn servers_text(&self) -> String {
        self.servers
            .iter()
            .map(|url| without_user(url))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// Returns the servers of a list with commas between.
pub(crate) fn split_servers(text: &str) -> Vec<String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

fn without_user(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    }
}

/// Who we are, as the server asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    None,
    /// A file with a user's JWT and seed. It is read again at each attempt, so it may be replaced.
    File(PathBuf),
    /// The text of such a file.
    Text(Secret),
    /// A file with the seed of a user's NKEY.
    NkeyFile(PathBuf),
    /// A name and a password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A token.
    Token(Secret),
}

/// How the connection is encrypted. It is wherever the server asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The certificates of the authorities that we trust (PEM); the system's own without it.
    pub ca: Option<PathBuf>,
    /// Our certificate (PEM), where the server wants one.
    pub cert: Option<PathBuf>,
    /// Its key (PEM).
    pub key: Option<PathBuf>,
    /// Whether an unencrypted connection is refused.
    pub required: bool,
}

/// Why there is no connection, or not the one that is needed. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers there.
    #[error("no NATS server answers at {servers}: start it, or give the address of another")]
    NoServer {
        /// Where.
        servers: String,
        /// What the system says.
        source: Cause,
    },
    /// Not an address.
    #[error("{server:?} is not the address of a NATS server: write it like nats://host:4222")]
    BadAddress {
        /// What was given.
        server: String,
    },
    /// The server does not know who we are, or no longer.
    #[error("{servers} refuses the credentials: give those of a user of this server that is valid now")]
    CredentialsRefused {
        /// Where.
        servers: String,
    },
    /// The credentials are not there, or are none.
    #[error(
        "the credentials {what} can't be used: give a file with a user's JWT and seed that can be read here"
    )]
    CredentialsUnreadable {
        /// Which.
        what: String,
        /// Why.
        source: Cause,
    },
    /// The server's certificate is not of an authority that we trust.
    #[error(
        "the certificate of {servers} is not signed by a CA that is trusted here: give the server's own CA as `ca`"
    )]
    WrongCa {
        /// Where.
        servers: String,
        /// What is wrong with it.
        source: Cause,
    },
    /// No encrypted connection.
    #[error("no TLS connection to {servers}: check ca, cert and key, and whether the server speaks TLS")]
    Tls {
        /// Where.
        servers: String,
        /// What is wrong.
        source: Cause,
    },
    /// The server hangs up.
    #[error("{servers} refuses the connection: {reason}")]
    Refused {
        /// Where.
        servers: String,
        /// What it says.
        reason: String,
    },
    /// The server keeps no streams for us.
    #[error(
        "JetStream is off at {servers}, or for this account: switch it on (`jetstream {{}}` in the server's configuration)"
    )]
    JetStreamOff {
        /// Where.
        servers: String,
    },
    /// We may not do that.
    #[error("the user may not do this: {what}: give it the permission, or use other credentials")]
    NoPermission {
        /// What the server says.
        what: String,
    },
    /// No answer.
    #[error("{servers} does not answer within {seconds} s: check the network, or give it more time")]
    TimedOut {
        /// Where.
        servers: String,
        /// How long we waited.
        seconds: f64,
    },
}

/// How the connection does: a level to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// It stands.
    Connected {
        /// The configured servers.
        server: String,
        /// Since when.
        since: Timestamp,
    },
    /// It does not; the next attempt comes by itself.
    Disconnected {
        /// What was wrong with the last attempt.
        problem: String,
        /// Since when.
        since: Timestamp,
    },
}

impl Status {
    /// Whether the connection stands.
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

/// What the server that we are connected to says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerIdentity {
    /// Its id, new at each of its starts.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The largest message that it takes, in bytes.
    pub max_payload_bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        let settings = ConnectSettings::new("nats://me:secret@a:4222, b:4222");
        assert_eq!(settings.servers_text(), "nats://a:4222, b:4222");
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
