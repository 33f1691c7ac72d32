//! The contract on disk between `leaf-helper`, which writes it, and those that observe containers and jobs: where things are,
//! and what they hold.

use std::path::PathBuf;

use jiff::Timestamp;
use leaf_core::container::Exit;
use leaf_core::id::{ContainerName, JobId, LeafName};
use serde::{Deserialize, Serialize};

/// Where the helper keeps a leaf's containers on the host. The helper writes there, `leaf-container` reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPaths {
    /// Root file systems: `/var/lib/nixos-containers/NAME` (NixOS contract).
    pub roots: PathBuf,
    /// `NAME.conf` files: `/etc/nixos-containers` (NixOS contract).
    pub confs: PathBuf,
    /// GC roots: `/nix/var/nix/gcroots/per-container/NAME` (NixOS contract).
    pub gc_roots: PathBuf,
    /// What survives a reboot, root only: `NAME/spec.json` ([`RunSpec`](leaf_core::host_op::RunSpec)), `NAME/credentials/`,
    /// `NAME/log` (the console, and `log.1` before it).
    pub state: PathBuf,
    /// What does not: `NAME/status.json` ([`RunStatus`]), `NAME/lock`, held while a supervisor lives.
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
            // Not below leafd's own directory: who owns that could exchange what the helper trusts.
            state: PathBuf::from("/var/lib/cim-leaf-containers").join(leaf.as_str()),
            run: PathBuf::from("/run/cim-leaf/containers").join(leaf.as_str()),
        }
    }

    /// A container's `NAME.conf`.
    #[must_use]
    pub fn conf(&self, name: &ContainerName) -> PathBuf {
        self.confs.join(format!("{name}.conf"))
    }

    /// A container's console log; the one before it has `.1` appended.
    #[must_use]
    pub fn log(&self, name: &ContainerName) -> PathBuf {
        self.state.join(name.as_str()).join("log")
    }

    /// The lock that a container's supervisor holds (exclusively, by `flock`) while it lives. An observer takes
    /// it shared for a moment.
    #[must_use]
    pub fn lock(&self, name: &ContainerName) -> PathBuf {
        self.run.join(name.as_str()).join("lock")
    }

    /// A container's `status.json`.
    #[must_use]
    pub fn status(&self, name: &ContainerName) -> PathBuf {
        self.run.join(name.as_str()).join("status.json")
    }
}

/// The directory in which each Nix job that runs as a user of its own has its directory. leafd makes that, the job writes into it.
pub const JOBS_DIRECTORY: &str = "/var/lib/cim-leaf-jobs";

/// The transient unit of a Nix job, in `system.slice`.
#[must_use]
pub fn job_unit(id: JobId) -> String {
    format!("leaf-job-{id}.service")
}

/// The start of the line of a `NAME.conf` that says which leaf made it; the leaf's name follows.
pub const CONF_MADE_BY: &str = "# cim-leaf: made by leaf ";

/// Returns the line of a `NAME.conf` that says that this leaf made it. A file without the line of its own leaf is a foreign
/// container's, and never touched.
#[must_use]
pub fn conf_marker(leaf: &LeafName) -> String {
    format!("{CONF_MADE_BY}{leaf}")
}

/// The start of the line of a `NAME.conf` that holds the [digest](leaf_core::host_op::RunSpec::digest) of the spec that the helper was told last.
pub const CONF_DIGEST: &str = "# cim-leaf: spec ";

/// The state of the last run of a container: `status.json`, replaced atomically at each change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    /// The process that runs systemd-nspawn and notes its end.
    pub supervisor_pid: u32,
    /// When it was started.
    pub started_at: Timestamp,
    /// The [digest](leaf_core::host_op::RunSpec::start_digest) of what it was started with, or switched to since.
    #[serde(default)]
    pub start_digest: String,
    /// The container's first process, as the host numbers it.
    pub leader_pid: Option<u32>,
    /// When the container said that it is ready.
    pub ready_at: Option<Timestamp>,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
    /// How many of its processes were killed for want of memory, once it has ended.
    #[serde(default)]
    pub oom_kills: u64,
    /// What went wrong, if something did.
    pub error: Option<String>,
}
