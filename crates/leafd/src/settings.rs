//! The settings file `leafd.toml`, and the overrides from the command line.
//!
//! Only NATS must be set: either `nats.url` or `nats.embedded`. Unknown keys are refused, so that a misspelt one is
//! noticed. `leafd check-config` runs [`Settings::load`], and with `--files` [`Settings::problems_of_files`].

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::address_pool::AddressPool;
use leaf_core::id::LeafName;
use leaf_core::job::NixPolicy;
use leaf_core::labels::{self, Labels};
use leaf_core::placement::demand::{Features, check_features};
use leaf_core::placement::pressure::PressureLimits;
use leaf_host::settings_file::{self, SettingsError, ShapeError};
use serde::{Deserialize, Serialize};

mod nats;
mod trust;

pub use nats::{Embedded, Hub, Nats};
pub use trust::{ClockTrust, TrustSettings};

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
    /// Signed commands.
    #[serde(default)]
    pub trust: TrustSettings,
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
    /// The SSH host key (ssh-ed25519) that secrets are encrypted to, where leafd is root and uses no service `leaf-helper`, whose own
    /// settings name it; by default `/etc/ssh/ssh_host_ed25519_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_key: Option<PathBuf>,
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
            host_key: None,
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
    /// The bound of an evaluation's address space, in MiB.
    pub eval_memory_mib: u64,
    /// What the leaf has of each feature that a job may take, such as `{ kvm = 2 }`.
    #[serde(skip_serializing_if = "Features::is_empty")]
    pub features: Features,
    /// The pressure of the host above which it takes no job that goes where there is room.
    pub room: PressureLimits,
    /// Nix settings for every job, passed as `--option NAME VALUE`.
    pub options: BTreeMap<String, String>,
    /// The space of the store's disk that is kept free, in bytes: with less, builds are refused.
    pub min_free_bytes: u64,
    /// The most bytes of store paths that a caller sends at once.
    pub max_upload_bytes: u64,
    /// What callers may build and evaluate.
    pub policy: NixPolicy,
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
            eval_memory_mib: 4096,
            features: Features::new(),
            room: PressureLimits::default(),
            options: BTreeMap::new(),
            min_free_bytes: 256 << 20,
            max_upload_bytes: 4 << 30,
            policy: NixPolicy::default(),
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
            Some(path) => settings_file::read(path)?,
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
                    return Err(SettingsError::value(
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

    /// Looks at the files of `[nats]`, and returns the setting and the error of each that can't be used.
    #[must_use]
    pub fn problems_of_files(&self) -> Vec<String> {
        self.nats.problems_of_files()
    }

    /// Parses settings from TOML without validating them.
    ///
    /// # Errors
    /// The parser's error, with the place.
    pub fn parse(text: &str) -> Result<Self, ShapeError> {
        settings_file::parse(text)
    }

    fn check(&self) -> Result<(), SettingsError> {
        let nats = &self.nats;
        nats.check()?;
        if nats.url.is_some() && self.containers.enable == Some(true) && nats.container_signing_key.is_none()
        {
            return Err(SettingsError::value(
                "containers.enable",
                format!("must not be true: {NO_SIGNING_KEY}"),
            ));
        }
        if let Some(limit) = nats.embedded.as_ref().map(|embedded| embedded.max_storage_bytes)
            && limit > 0
            && limit < self.events.max_bytes
        {
            return Err(SettingsError::value(
                "nats.embedded.max_storage_bytes",
                format!(
                    "is {limit}, but the stream of events alone needs {} bytes (events.max_bytes): raise it, or lower \
                    events.max_bytes",
                    self.events.max_bytes
                ),
            ));
        }
        let own = self.containers.address_pool.leaf_address();
        if let Some(address) = nats.embedded.as_ref().and_then(|embedded| embedded.address)
            && self.containers.enable == Some(true)
            && address != own
        {
            return Err(SettingsError::value(
                "nats.embedded.address",
                off_pool(address, own),
            ));
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log) {
            return Err(SettingsError::value(
                "log",
                format!("is not a filter such as info or leafd=debug: {error}"),
            ));
        }
        if let Err(error) = labels::check(&self.labels) {
            return Err(SettingsError::value("labels", error.to_string()));
        }
        if !self.state_dir.is_absolute() {
            return Err(SettingsError::value("state_dir", "is not an absolute path"));
        }
        let events = &self.events;
        if events.max_bytes < 1 << 20 {
            return Err(SettingsError::value(
                "events.max_bytes",
                "must be at least 1048576 (1 MiB), to keep two snapshots",
            ));
        }
        if events.snapshot_every < 100 {
            return Err(SettingsError::value(
                "events.snapshot_every",
                "must be at least 100",
            ));
        }
        if self.nix.max_jobs == 0 {
            return Err(SettingsError::value("nix.max_jobs", "must be at least 1"));
        }
        if self.nix.timeout_seconds == 0 {
            return Err(SettingsError::value("nix.timeout_seconds", "must be at least 1"));
        }
        if !(256..=1 << 20).contains(&self.nix.eval_memory_mib) {
            return Err(SettingsError::value(
                "nix.eval_memory_mib",
                "must be from 256 to 1048576",
            ));
        }
        if let Err((setting, why)) = self.nix.policy.check_settings() {
            return Err(SettingsError::value(setting.place(), why));
        }
        check_features(&self.nix.features).map_err(|why| SettingsError::value("nix.features", why))?;
        let room = &self.nix.room;
        for (place, percent) in [
            ("nix.room.cpu_percent", room.cpu_percent),
            ("nix.room.memory_percent", room.memory_percent),
            ("nix.room.io_percent", room.io_percent),
        ] {
            if !(1..=100).contains(&percent) {
                return Err(SettingsError::value(place, "must be from 1 to 100"));
            }
        }
        if let Some((name, _)) = self
            .nix
            .options
            .iter()
            .find(|(name, _)| name.is_empty() || name.starts_with('-'))
        {
            return Err(SettingsError::value(
                "nix.options",
                format!("{name:?} is not the name of a Nix setting"),
            ));
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
        self.trust.check()?;
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
        LeafName::new(short).map_err(|e| {
            SettingsError::value(
                "name",
                format!("is not set, and the host name can't be used: {e}"),
            )
        })
    }

    /// Returns how long the kernel's hints must pause before a scan.
    #[must_use]
    pub fn rescan_debounce(&self) -> Duration {
        Duration::from_millis(self.hardware.rescan_debounce_ms)
    }
}

#[cfg(test)]
mod tests;
