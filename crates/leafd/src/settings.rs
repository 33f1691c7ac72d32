//! The settings file `leafd.toml`, and the overrides from the command line.
//!
//! Only NATS must be set: either `nats.url` or `nats.embedded`. Unknown keys are refused, so that a misspelt one is
//! noticed. `leafd check-config` runs [`Settings::load`] and nothing else.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::address_pool::AddressPool;
use leaf_core::id::LeafName;
use leaf_core::labels::{self, Labels};
use serde::{Deserialize, Serialize};

/// All settings of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The leaf's name; the host's name if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<LeafName>,
    /// The directory of the leaf's durable data.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Labels of the leaf, which commands can't change.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The log filter, in the syntax of `tracing`: `info`, `leafd=debug`.
    #[serde(default = "default_log")]
    pub log: String,
    /// The connection to NATS.
    pub nats: Nats,
    /// The event log.
    #[serde(default)]
    pub events: Events,
    /// Hardware scans.
    #[serde(default)]
    pub hardware: Hardware,
    /// Containers.
    #[serde(default)]
    pub containers: Containers,
    /// Nix.
    #[serde(default)]
    pub nix: Nix,
}

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
    /// The hub of the leaf's fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<Hub>,
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
    fn problem(&self) -> Option<String> {
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

/// The event log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// The limit of the stream `EVENTS_<leaf>`, in bytes.
    pub max_bytes: u64,
    /// The size of the backlog at which commands are refused, in bytes.
    pub backlog_bytes: u64,
    /// The free disk space below which commands are refused, in bytes.
    pub reserve_bytes: u64,
    /// The number of events between two snapshots.
    pub snapshot_every: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            backlog_bytes: 256 << 20,
            reserve_bytes: 32 << 20,
            snapshot_every: 10_000,
        }
    }
}

/// Hardware scans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hardware {
    /// A nixos-facter report to read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facter_report: Option<PathBuf>,
    /// The program `nixos-facter`, which is run at the start if set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub facter_program: Option<PathBuf>,
    /// How long the kernel's hints must pause before a scan, in milliseconds.
    pub rescan_debounce_ms: u64,
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            facter_report: None,
            facter_program: None,
            rescan_debounce_ms: 500,
        }
    }
}

/// Containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Containers {
    /// Whether the leaf runs containers. By default it does if it can issue their NATS users (it has an embedded server, or
    /// `nats.container_signing_key`), and is root or has a helper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable: Option<bool>,
    /// The pool of their addresses: a private `/16` network.
    pub address_pool: AddressPool,
    /// The time limit for a container to become ready, in seconds.
    pub ready_timeout_seconds: u32,
    /// The time after which a container that is stopping is killed, in seconds.
    pub stop_timeout_seconds: u32,
    /// The period in which the rules of the closed network are restored, in seconds: another program may flush
    /// nftables.
    pub network_check_seconds: u32,
    /// The program `leaf-helper`, which leafd starts where it is root; by default the one beside `leafd` or on `PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub helper: Option<PathBuf>,
    /// The socket of the service `leaf-helper`. By default none where leafd is root, else `/run/cim-leaf/helper.sock`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub helper_socket: Option<PathBuf>,
    /// The directory of the templates; by default `share/cim-leaf/containers` beside `leafd`'s `bin`, or `containers` of the
    /// checkout that `leafd` was built in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub templates: Option<PathBuf>,
    /// The static program `leaf-init`; by default the one beside `leafd` or on `PATH`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf_init: Option<PathBuf>,
}

impl Default for Containers {
    fn default() -> Self {
        Self {
            enable: None,
            address_pool: AddressPool::default(),
            ready_timeout_seconds: 60,
            stop_timeout_seconds: 30,
            network_check_seconds: 300,
            helper: None,
            helper_socket: None,
            templates: None,
            leaf_init: None,
        }
    }
}

/// Nix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nix {
    /// The program; looked up on `PATH` if it has no slash.
    pub program: PathBuf,
    /// The maximum number of running jobs.
    pub max_jobs: usize,
    /// The maximum number of queued jobs.
    pub max_queued_jobs: usize,
    /// The time limit of a job whose command sets none, in seconds.
    pub timeout_seconds: u32,
    /// Nix settings for every job, passed as `--option NAME VALUE`.
    pub options: BTreeMap<String, String>,
    /// Whether the service `leaf-helper` runs the jobs, each as the user `leaf-job` in a unit of its own. By default it
    /// does if leafd is not root and the service and systemd are available.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by_helper: Option<bool>,
}

impl Default for Nix {
    fn default() -> Self {
        Self {
            program: "nix".into(),
            max_jobs: 2,
            max_queued_jobs: 100,
            timeout_seconds: 7200,
            options: BTreeMap::new(),
            by_helper: None,
        }
    }
}

/// Why a leaf that connects to an external NATS server without a signing key runs no containers.
pub const NO_SIGNING_KEY: &str = "a leaf that connects to an external NATS server (nats.url) runs containers only with \
    nats.container_signing_key, which is not set: the file with the seed of a scoped signing key of the callers' account, \
    which issues the NATS user of each container (docs/nats.md)";

/// The default socket of the service `leaf-helper`.
pub const HELPER_SOCKET: &str = "/run/cim-leaf/helper.sock";

fn default_state_dir() -> PathBuf {
    "/var/lib/cim-leaf".into()
}

fn default_log() -> String {
    "info".to_owned()
}

/// The settings given on the command line of `leafd run`.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--name`.
    pub name: Option<LeafName>,
    /// `--state-dir`.
    pub state_dir: Option<PathBuf>,
    /// `--embedded-nats`.
    pub embedded_nats: bool,
    /// `--nats-port`.
    pub nats_port: Option<u16>,
}

/// An error in the settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file can't be read.
    #[error("can't read the settings file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is not valid TOML, or has an unknown key or a value of the wrong type.
    #[error("invalid settings file {}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The place and the error.
        source: ShapeError,
    },
    /// A value is invalid, or conflicts with another.
    #[error("{place}: {why}")]
    Value {
        /// The setting.
        place: &'static str,
        /// The reason, and which values are valid.
        why: String,
    },
}

/// Where a settings file is not valid TOML, or has an unknown key or a value of the wrong type, and how. It quotes neither
/// lines nor values of the file, which may hold a password or token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}{}: {problem}", key.as_ref().map_or(String::new(), |key| format!(" ({key})")))]
pub struct ShapeError {
    line: usize,
    column: usize,
    /// The key of the line, if it begins with one.
    key: Option<String>,
    problem: String,
}

impl ShapeError {
    fn new(error: &toml::de::Error, text: &str) -> Self {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            key: key_of(text.get(line_start..).unwrap_or_default()),
            problem: without_values(error.message()),
        }
    }
}

/// Returns the bare key with which a line begins: `port` of `port = 4222`.
fn key_of(text: &str) -> Option<String> {
    let (key, _) = text.lines().next()?.split_once('=')?;
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let key = key.trim();
    (!key.is_empty() && key.chars().all(is_bare)).then(|| key.to_owned())
}

/// Returns a parser's message without the values of the file that it quotes: those of a wrong type, as serde's
/// `Unexpected` prints them (`invalid type: string "…", expected a map`), and users in addresses.
fn without_values(message: &str) -> String {
    let mut message = message.to_owned();
    for kind in ["invalid type: ", "invalid value: "] {
        if let Some(value) = message.find(kind).map(|at| at + kind.len())
            && let Some(expected) = message.rfind(", expected ").filter(|end| *end > value)
            && let Some(quote) = message[value..expected].find(['"', '`'])
        {
            let kept = message[..value + quote].trim_end().to_owned();
            message = kept + &message[expected..];
        }
    }
    let is_address = |word: &str| word.contains("://") && word.contains('@');
    let words = message.split(' ').map(|word| {
        if is_address(word) {
            "<an address with a user>"
        } else {
            word
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// Returns why a server on an address other than the leaf's own serves no containers.
#[must_use]
pub fn off_pool(address: Ipv4Addr, own: Ipv4Addr) -> String {
    format!(
        "is {address}, but containers reach the leaf's server at {own} only, the leaf's address in containers.address_pool: \
        remove it, or make the two agree"
    )
}

impl Settings {
    /// Reads the file (or takes the defaults), applies the overrides, and validates the result.
    ///
    /// # Errors
    /// [`SettingsError`], which names the place and the valid values.
    pub fn load(file: Option<&Path>, overrides: &Overrides) -> Result<Self, SettingsError> {
        let mut settings = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
                    path: path.to_owned(),
                    source,
                })?;
                Self::parse(&text).map_err(|source| SettingsError::Shape {
                    path: path.to_owned(),
                    source,
                })?
            }
            None => Self::parse("[nats]").expect("the minimal settings are valid"),
        };
        if let Some(name) = &overrides.name {
            settings.name = Some(name.clone());
        }
        if let Some(dir) = &overrides.state_dir {
            settings.state_dir.clone_from(dir);
        }
        if overrides.embedded_nats {
            settings.nats.embedded.get_or_insert_default();
        }
        if let Some(port) = overrides.nats_port {
            match &mut settings.nats.embedded {
                Some(embedded) => embedded.port = Some(port),
                None => {
                    return Err(value(
                        "--nats-port",
                        "needs an embedded server: add --embedded-nats",
                    ));
                }
            }
        }
        settings.check()?;
        Ok(settings)
    }

    /// Returns what a valid settings file leaves out that its author may expect: one sentence each.
    #[must_use]
    pub fn notes(&self) -> Vec<&'static str> {
        let without_key = self.nats.url.is_some() && self.nats.container_signing_key.is_none();
        let is_open = without_key && self.containers.enable.is_none();
        is_open.then_some(NO_SIGNING_KEY).into_iter().collect()
    }

    /// Parses settings from TOML without validating them.
    ///
    /// # Errors
    /// The parser's error, with the place.
    pub fn parse(text: &str) -> Result<Self, ShapeError> {
        toml::from_str(text).map_err(|error| ShapeError::new(&error, text))
    }

    fn check(&self) -> Result<(), SettingsError> {
        let nats = &self.nats;
        match (&nats.url, &nats.embedded) {
            (None, None) => {
                return Err(value(
                    "nats",
                    "no NATS server is set: set nats.url, or nats.embedded (on the command line --embedded-nats)",
                ));
            }
            (Some(_), Some(_)) => {
                return Err(value(
                    "nats",
                    "nats.url and nats.embedded exclude each other: keep one of them",
                ));
            }
            _ => {}
        }
        if nats.url.is_some() && self.containers.enable == Some(true) && nats.container_signing_key.is_none()
        {
            return Err(SettingsError::Value {
                place: "containers.enable",
                why: format!("must not be true: {NO_SIGNING_KEY}"),
            });
        }
        if nats.url.as_deref().is_some_and(|url| url.trim().is_empty()) {
            return Err(value("nats.url", "is empty; the form is tls://host:4222"));
        }
        let files = [
            &nats.credentials,
            &nats.stream_credentials,
            &nats.container_signing_key,
            &nats.ca,
            &nats.cert,
            &nats.key,
        ];
        if nats.embedded.is_some() && files.iter().any(|file| file.is_some()) {
            return Err(value(
                "nats",
                "credentials, stream_credentials, container_signing_key, ca, cert and key belong to nats.url; an embedded \
                server has its own",
            ));
        }
        if nats.embedded.is_some() && nats.containers_port.is_some() {
            return Err(value(
                "nats.containers_port",
                "belongs to nats.url; containers reach an embedded server at its own port, nats.embedded.port",
            ));
        }
        if nats.containers_port == Some(0) {
            return Err(value("nats.containers_port", "must be a port from 1 to 65535"));
        }
        if nats.container_signing_key.is_some()
            && (nats.credentials.is_none() || nats.stream_credentials.is_none())
        {
            return Err(value(
                "nats.container_signing_key",
                "needs nats.credentials, whose account the key belongs to, and nats.stream_credentials, so that containers \
                are not in the account of the streams: set both",
            ));
        }
        if let Some(limit) = nats.embedded.as_ref().map(|embedded| embedded.max_storage_bytes)
            && limit > 0
            && limit < self.events.max_bytes
        {
            return Err(SettingsError::Value {
                place: "nats.embedded.max_storage_bytes",
                why: format!(
                    "is {limit}, but the stream of events alone needs {} bytes (events.max_bytes): raise it, or lower \
                    events.max_bytes",
                    self.events.max_bytes
                ),
            });
        }
        if let Some(why) = nats
            .embedded
            .as_ref()
            .and_then(|embedded| embedded.hub.as_ref()?.problem())
        {
            return Err(SettingsError::Value {
                place: "nats.embedded.hub.url",
                why,
            });
        }
        let own = self.containers.address_pool.leaf_address();
        if let Some(address) = nats.embedded.as_ref().and_then(|embedded| embedded.address)
            && self.containers.enable == Some(true)
            && address != own
        {
            return Err(SettingsError::Value {
                place: "nats.embedded.address",
                why: off_pool(address, own),
            });
        }
        if nats.stream_credentials.is_some() && nats.credentials.is_none() {
            return Err(value(
                "nats.stream_credentials",
                "needs nats.credentials as well, for the connection that serves commands: set both",
            ));
        }
        if nats.cert.is_some() != nats.key.is_some() {
            return Err(value("nats", "cert and key go together: set both"));
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log) {
            return Err(SettingsError::Value {
                place: "log",
                why: format!("is not a filter such as info or leafd=debug: {error}"),
            });
        }
        if let Err(error) = labels::check(&self.labels) {
            return Err(SettingsError::Value {
                place: "labels",
                why: error.to_string(),
            });
        }
        if !self.state_dir.is_absolute() {
            return Err(value("state_dir", "is not an absolute path"));
        }
        let events = &self.events;
        if events.max_bytes < 1 << 20 {
            return Err(value(
                "events.max_bytes",
                "must be at least 1048576 (1 MiB), to keep two snapshots",
            ));
        }
        if events.snapshot_every < 100 {
            return Err(value("events.snapshot_every", "must be at least 100"));
        }
        if self.nix.max_jobs == 0 {
            return Err(value("nix.max_jobs", "must be at least 1"));
        }
        if self.nix.timeout_seconds == 0 {
            return Err(value("nix.timeout_seconds", "must be at least 1"));
        }
        if let Some((name, _)) = self
            .nix
            .options
            .iter()
            .find(|(name, _)| name.is_empty() || name.starts_with('-'))
        {
            return Err(SettingsError::Value {
                place: "nix.options",
                why: format!("{name:?} is not the name of a Nix setting"),
            });
        }
        for (place, seconds) in [
            (
                "containers.ready_timeout_seconds",
                self.containers.ready_timeout_seconds,
            ),
            (
                "containers.stop_timeout_seconds",
                self.containers.stop_timeout_seconds,
            ),
            (
                "containers.network_check_seconds",
                self.containers.network_check_seconds,
            ),
        ] {
            if !(1..=3600).contains(&seconds) {
                return Err(SettingsError::Value {
                    place,
                    why: format!("must be from 1 to 3600 seconds, not {seconds}"),
                });
            }
        }
        self.leaf_name().map(drop)
    }

    /// Returns the leaf's name: the setting, or the host name in lower case.
    ///
    /// # Errors
    /// [`SettingsError::Value`] when the host name is not a valid leaf name.
    pub fn leaf_name(&self) -> Result<LeafName, SettingsError> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .to_lowercase();
        let short = host.split('.').next().unwrap_or_default();
        LeafName::new(short).map_err(|e| SettingsError::Value {
            place: "name",
            why: format!("is not set, and the host name can't be used: {e}"),
        })
    }

    /// Returns how long the kernel's hints must pause before a scan.
    #[must_use]
    pub fn rescan_debounce(&self) -> Duration {
        Duration::from_millis(self.hardware.rescan_debounce_ms)
    }
}

fn value(place: &'static str, why: &str) -> SettingsError {
    SettingsError::Value {
        place,
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests;
