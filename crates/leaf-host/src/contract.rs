//! The contract on disk between `leaf-helper`, which writes, and the observers of containers and jobs: paths and
//! contents.

use std::path::PathBuf;

use jiff::Timestamp;
use leaf_core::container::{Exit, LastUpdate};
use leaf_core::id::{ContainerName, JobId, LeafName};
use serde::{Deserialize, Serialize};

/// The directories of a leaf's containers on the host. The helper writes there, and `leaf-container` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPaths {
    /// Root file systems: `/var/lib/nixos-containers/NAME` (NixOS contract).
    pub roots: PathBuf,
    /// `NAME.conf` files: `/etc/nixos-containers` (NixOS contract).
    pub confs: PathBuf,
    /// GC roots: `/nix/var/nix/gcroots/per-container/NAME` (NixOS contract).
    pub gc_roots: PathBuf,
    /// State that survives a reboot, for root only: `NAME/spec.json` ([`RunSpec`](leaf_core::host_op::RunSpec)),
    /// `NAME/credentials/`, `NAME/log` (the console; earlier output is in `log.1`).
    pub state: PathBuf,
    /// The age files of the leaf's secrets, for root only: `NAME.age`.
    pub secrets: PathBuf,
    /// State that does not: `NAME/status.json` ([`RunStatus`]), `NAME/lock`, held while a supervisor runs, and for root only
    /// `NAME/credentials/`, which the container sees.
    pub run: PathBuf,
}

impl HostPaths {
    /// Returns the paths for a leaf.
    #[must_use]
    pub fn new(leaf: &LeafName) -> Self {
        Self {
            roots: "/var/lib/nixos-containers".into(),
            confs: "/etc/nixos-containers".into(),
            gc_roots: "/nix/var/nix/gcroots/per-container".into(),
            // Not below leafd's own directory, whose owner could replace what the helper trusts.
            state: PathBuf::from("/var/lib/cim-leaf-containers").join(leaf.as_str()),
            secrets: PathBuf::from(SECRETS_DIRECTORY).join(leaf.as_str()),
            run: PathBuf::from("/run/cim-leaf/containers").join(leaf.as_str()),
        }
    }

    /// Returns the path of a container's `NAME.conf`.
    #[must_use]
    pub fn conf(&self, name: &ContainerName) -> PathBuf {
        self.confs.join(format!("{name}.conf"))
    }

    /// Returns the path of a container's console log; the previous file has `.1` appended.
    #[must_use]
    pub fn log(&self, name: &ContainerName) -> PathBuf {
        self.state.join(name.as_str()).join("log")
    }

    /// Returns the path of the lock that a container's supervisor holds (exclusively, by `flock`) while it runs. An
    /// observer takes it shared for a moment.
    #[must_use]
    pub fn lock(&self, name: &ContainerName) -> PathBuf {
        self.run.join(name.as_str()).join("lock")
    }

    /// Returns the path of a container's `status.json`.
    #[must_use]
    pub fn status(&self, name: &ContainerName) -> PathBuf {
        self.run.join(name.as_str()).join("status.json")
    }
}

/// The directory of the directories of leaves' secrets.
pub const SECRETS_DIRECTORY: &str = "/var/lib/cim-leaf-secrets";

/// The state directory of changes that can cut a leaf off: root's, readable for the group of leafd. The other names are in it.
pub const CHANGE_DIRECTORY: &str = "/var/lib/cim-leaf-change";
/// The file of the open change ([`Armed`](leaf_core::change::Armed)).
pub const ARMED: &str = "armed.json";
/// The file of a change whose way back is being carried out ([`Armed`](leaf_core::change::Armed)).
pub const GOING_BACK: &str = "going-back.json";
/// The file of a change of the system that is confirmed, until the system is the profile's and the boot loader's
/// ([`Decided`](leaf_core::change::Decided)).
pub const BLESSED: &str = "blessed.json";
/// The file of the last step of the open change: its `id` and `step`.
pub const PROGRESS: &str = "progress.json";
/// The file of the question to the witness before a change is armed ([`Asking`](leaf_core::change::Asking)).
pub const ASKING: &str = "asking.json";
/// The directory of decided changes, `ID.json` each ([`Decided`](leaf_core::change::Decided)).
pub const DECIDED: &str = "decided";
/// The file of the hub that is used in the place of that of leafd's settings ([`HubOverride`](leaf_core::change::HubOverride)).
pub const HUB_OVERRIDE: &str = "hub.json";
/// The unit that takes the way back.
pub const GUARD_UNIT: &str = "leaf-change.service";
/// The transient unit that activates another system, and the one before again.
pub const SWITCH_UNIT: &str = "leaf-switch.service";
/// The unit that asks the witness.
pub const WITNESS_UNIT: &str = "leaf-change-witness.service";

/// The socket at which systemd asks for the secrets of the host's units (`LoadCredential=NAME:/run/cim-leaf/secrets.sock`).
pub const SECRETS_SOCKET: &str = "/run/cim-leaf/secrets.sock";

/// The directory of the directories of jobs that run as the user `leaf-job`. leafd creates those, and the jobs write
/// into them.
pub const JOBS_DIRECTORY: &str = "/var/lib/cim-leaf-jobs";

/// The directories of the host whose files a job's unit hides (`PrivateTmp=`, `ProtectHome=`; systemd.exec(5)).
pub const HIDDEN_FROM_JOBS: [&str; 5] = ["/tmp", "/var/tmp", "/home", "/root", "/run/user"];

/// Returns the name of a job's transient unit, in `system.slice`.
#[must_use]
pub fn job_unit(id: JobId) -> String {
    format!("leaf-job-{id}.service")
}

/// The start of the line of a `NAME.conf` that names the leaf that made it; the leaf's name follows.
pub const CONF_MADE_BY: &str = "# cim-leaf: made by leaf ";

/// Returns the line of a `NAME.conf` that marks it as made by a leaf. A file without the line of the observing leaf
/// belongs to a foreign container.
#[must_use]
pub fn conf_marker(leaf: &LeafName) -> String {
    format!("{CONF_MADE_BY}{leaf}")
}

/// The start of the line of a `NAME.conf` with the [digest](leaf_core::host_op::RunSpec::digest) of the last spec given
/// to the helper.
pub const CONF_DIGEST: &str = "# cim-leaf: spec ";

/// The status of the last run of a container: `status.json`, replaced atomically at each change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    /// The id of the process that runs systemd-nspawn and records its end.
    pub supervisor_pid: u32,
    /// When it was started.
    pub started_at: Timestamp,
    /// The [digest](leaf_core::host_op::RunSpec::start_digest) of the spec that it was started with or switched to.
    #[serde(default)]
    pub start_digest: String,
    /// The last update of this run: a switch in place, or the restart that it began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update: Option<LastUpdate>,
    /// The id of the container's leader on the host.
    pub leader_pid: Option<u32>,
    /// When the container became ready.
    pub ready_at: Option<Timestamp>,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
    /// The number of its processes killed for lack of memory, once it has ended.
    #[serde(default)]
    pub oom_kills: u64,
    /// The error, if it failed.
    pub error: Option<String>,
}
