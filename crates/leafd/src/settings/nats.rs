//! The settings of the connection to NATS.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use leaf_bus::connect::is_websocket;
use leaf_bus::files;
use leaf_bus::identity::{ADMIN_VALID, ContainerSigner};
use leaf_core::error::chain;
use leaf_core::renewal::CONTAINER_VALID;
use leaf_host::settings_file::SettingsError;
use serde::{Deserialize, Serialize};

/// The connection to NATS: an external server (`url`), or an embedded one (`embedded`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nats {
    /// The URLs of one or more servers, separated by commas: `tls://hub.example:4222`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The credentials file of the user `leafd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
    /// The credentials file of the user that owns the streams, if it is of another account than the callers': then no
    /// caller can make the server write into the streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_credentials: Option<PathBuf>,
    /// The file with the seed of a scoped signing key of the callers' account, which issues the users of containers.
    /// Without it the leaf runs no containers beside `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_signing_key: Option<PathBuf>,
    /// The port on the leaf address at which leafd passes the containers' connections on to the servers of `url`; by default
    /// 4222. Not used where one of these listens on the leaf address itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containers_port: Option<u16>,
    /// How long the credentials of containers are valid, in hours; by default 24. leafd renews them while it runs, beside `url` and
    /// beside an embedded server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_hours: Option<u32>,
    /// In place of `container_hours`, for tests: a settings file can't name it.
    #[serde(skip)]
    pub container_life: Option<Duration>,
    /// The trusted CA certificates, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// The leaf's client certificate, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert: Option<PathBuf>,
    /// The key of that certificate, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// The JetStream domain of the leaf's server, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jetstream_domain: Option<String>,
    /// An embedded server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded: Option<Embedded>,
}

impl Nats {
    /// Returns how long the credentials of containers are valid.
    #[must_use]
    pub fn container_valid(&self) -> Duration {
        let by_hours = self.container_hours.map_or(CONTAINER_VALID, hours);
        self.container_life.unwrap_or(by_hours)
    }

    /// Looks at the files, and returns the setting and the error of each that can't be used.
    pub(super) fn problems_of_files(&self) -> Vec<String> {
        let hub = self.embedded.as_ref().and_then(|embedded| embedded.hub.as_ref());
        let mut problems = files::problems([
            (
                "nats.credentials",
                self.credentials.as_deref(),
                files::check_credentials as files::Check,
            ),
            (
                "nats.stream_credentials",
                self.stream_credentials.as_deref(),
                files::check_credentials,
            ),
            ("nats.ca", self.ca.as_deref(), files::check_authorities),
            ("nats.cert", self.cert.as_deref(), files::check_certificate),
            ("nats.key", self.key.as_deref(), files::check_key),
            (
                "nats.embedded.hub.credentials",
                hub.map(|hub| &*hub.credentials),
                files::check_credentials,
            ),
            (
                "nats.embedded.hub.ca",
                hub.and_then(|hub| hub.ca.as_deref()),
                files::check_authorities,
            ),
        ]);
        // The key belongs to the account of the credentials, so it can't be judged without them.
        if let (Some(key), Some(credentials)) = (&self.container_signing_key, &self.credentials)
            && files::check_credentials(credentials).is_ok()
            && let Err(error) = ContainerSigner::open(key, credentials)
        {
            problems.push(format!("nats.container_signing_key: {}", chain(&error)));
        }
        problems
    }

    /// Checks what concerns the connection alone.
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        match (&self.url, &self.embedded) {
            (None, None) => {
                return Err(SettingsError::value(
                    "nats",
                    "no NATS server is set: set nats.url, or nats.embedded (on the command line --embedded-nats)",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(SettingsError::value(
                    "nats",
                    "nats.url and nats.embedded exclude each other: keep one of them",
                ));
            }
            _ => {}
        }
        if self.url.as_deref().is_some_and(|url| url.trim().is_empty()) {
            return Err(SettingsError::value(
                "nats.url",
                "is empty; the form is tls://host:4222",
            ));
        }
        if self
            .url
            .as_deref()
            .is_some_and(|urls| urls.split(',').any(is_websocket))
        {
            return Err(SettingsError::value(
                "nats.url",
                "has a websocket, which leafd can't connect to: write tls://host:4222, the server's port for clients",
            ));
        }
        let files = [
            &self.credentials,
            &self.stream_credentials,
            &self.container_signing_key,
            &self.ca,
            &self.cert,
            &self.key,
        ];
        if self.embedded.is_some() && files.iter().any(|file| file.is_some()) {
            return Err(SettingsError::value(
                "nats",
                "credentials, stream_credentials, container_signing_key, ca, cert and key belong to nats.url; an embedded \
                server has its own",
            ));
        }
        if self.embedded.is_some() && self.containers_port.is_some() {
            return Err(SettingsError::value(
                "nats.containers_port",
                "belongs to nats.url; containers reach an embedded server at its own port, nats.embedded.port",
            ));
        }
        if self.containers_port == Some(0) {
            return Err(SettingsError::value(
                "nats.containers_port",
                "must be a port from 1 to 65535",
            ));
        }
        if self.container_signing_key.is_some()
            && (self.credentials.is_none() || self.stream_credentials.is_none())
        {
            return Err(SettingsError::value(
                "nats.container_signing_key",
                "needs nats.credentials, whose account the key belongs to, and nats.stream_credentials, so that containers \
                are not in the account of the streams: set both",
            ));
        }
        if let Some(why) = self
            .embedded
            .as_ref()
            .and_then(|embedded| embedded.hub.as_ref()?.problem())
        {
            return Err(SettingsError::value("nats.embedded.hub.url", why));
        }
        let admin_hours = self.embedded.as_ref().and_then(|embedded| embedded.admin_hours);
        for (setting, hours) in [
            ("nats.embedded.admin_hours", admin_hours),
            ("nats.container_hours", self.container_hours),
        ] {
            if let Some(hours) = hours.filter(|hours| !(1..=8760).contains(hours)) {
                return Err(SettingsError::value(
                    setting,
                    format!("must be from 1 to 8760 (a year), not {hours}"),
                ));
            }
        }
        if self.stream_credentials.is_some() && self.credentials.is_none() {
            return Err(SettingsError::value(
                "nats.stream_credentials",
                "needs nats.credentials as well, for the connection that serves commands: set both",
            ));
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err(SettingsError::value("nats", "cert and key go together: set both"));
        }
        Ok(())
    }
}

/// A `nats-server` that the leaf starts and supervises.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedded {
    /// The program; looked up on `PATH` if it has no slash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// The address to listen on; by default the leaf address of the pool if containers are enabled, else `127.0.0.1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// The port; by default 4222. 0 chooses a free one, which is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The limit of JetStream's storage, in bytes; 0: no limit.
    #[serde(default)]
    pub max_storage_bytes: u64,
    /// How long the credentials of the leaf's own people (`admin`) are valid, in hours; by default 24. leafd renews them in their
    /// files while it runs; a copy ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_hours: Option<u32>,
    /// The hub of the leaf's fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<Hub>,
}

impl Embedded {
    /// Returns how long the credentials of the leaf's own people are valid.
    #[must_use]
    pub fn admin_valid(&self) -> Duration {
        self.admin_hours.map_or(ADMIN_VALID, hours)
    }
}

fn hours(hours: u32) -> Duration {
    Duration::from_secs(u64::from(hours) * 3600)
}

/// The hub that the embedded server connects to as a leaf node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    /// The URLs of one or more of its servers, separated by commas: `tls://hub.example:7422`.
    pub url: String,
    /// The file with the leaf's credentials there, or with the seed of its NKEY.
    pub credentials: PathBuf,
    /// The trusted CA certificates, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

impl Hub {
    /// Returns the URLs of its servers.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        let urls = self.url.split(',').map(str::trim).filter(|url| !url.is_empty());
        urls.map(str::to_owned).collect()
    }

    /// Returns why a URL of the hub is not accepted: a connection that leaves this host is encrypted, and the leaf's
    /// credentials stand in a file of their own.
    pub(crate) fn problem(&self) -> Option<String> {
        let urls = self.urls();
        if urls.is_empty() {
            return Some("is empty; the form is tls://host:7422".to_owned());
        }
        urls.iter()
            .find_map(|url| {
                let (scheme, rest) = url.split_once("://")?;
                let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                let name = host.strip_prefix('[').map_or_else(
                    || host.split(['/', ':']).next().unwrap_or_default(),
                    |v6| v6.split(']').next().unwrap_or_default(),
                );
                let is_local =
                    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
                if rest.contains('@') {
                    Some("has a user or password: give nats.embedded.hub.credentials instead".to_owned())
                } else if matches!(scheme, "tls" | "wss")
                    || (is_local && matches!(scheme, "nats" | "nats-leaf" | "ws"))
                {
                    None
                } else {
                    Some(format!(
                        "is not encrypted: {scheme}://{name}; the form is tls://host:7422"
                    ))
                }
            })
            .or_else(|| {
                let without_scheme = urls.iter().find(|url| !url.contains("://"));
                without_scheme.map(|_| "has no scheme; the form is tls://host:7422".to_owned())
            })
    }
}
