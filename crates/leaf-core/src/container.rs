//! The desired and the observed state of containers. [`crate::plan`] leads from one to the other.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::id::{Caller, ContainerName, JobId, SecretName, StorePath};
use crate::spec::{ContainerOptions, ContainerSource, ContainerSpec, RestartWhen, SpecRun};
use crate::text::shorten_text;

/// The number of remembered revisions of a container.
pub const REMEMBERED_REVISIONS: usize = 16;

/// A container: its desired state, and how far the leaf has got with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Container {
    /// The container's name, also the name of its machine and of its `NAME.conf`.
    pub name: ContainerName,
    /// The desired state.
    pub desired: Desired,
    /// The phase.
    pub phase: ContainerPhase,
    /// The cause of the last change of the desired state.
    #[serde(default)]
    pub cause: Cause,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its phase last changed.
    pub changed_at: Timestamp,
    /// When it last became ready; only while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Timestamp>,
    /// The reason why it last failed or stopped by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The reason why it was reverted to its previous system, if that happened since the last change of the desired
    /// state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverted: Option<String>,
    /// The effect of the update to the present desired state, if it switched or restarted the running container; left
    /// out in the reply to `container.list`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_update: Option<LastUpdate>,
    /// The number of its processes killed for lack of memory since it was started.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub oom_kills: u64,
    /// Until when the NATS credentials that it sees are valid, if this instance of leafd has given them; only in the reply to
    /// `container.show`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_until: Option<Timestamp>,
    /// Its earlier desired states and the present one, oldest first, at most [`REMEMBERED_REVISIONS`]; left out in the
    /// reply to `container.list`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<Revision>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The effect of an update on a running container: it was switched to its new system in place, or restarted. A list of
/// many units is cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastUpdate {
    /// When the switch ended or the restart began.
    pub at: Timestamp,
    /// The reason why the container was restarted; absent if it was switched in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted: Option<String>,
    /// The units that the switch restarted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub restarted_units: Vec<String>,
    /// The units that it started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub started_units: Vec<String>,
    /// The units that it reloaded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reloaded_units: Vec<String>,
    /// The units that it stopped and did not start again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stopped_units: Vec<String>,
    /// The units that were failed before the switch, and failed again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_units: Vec<String>,
}

impl LastUpdate {
    /// Returns a switch in place at this time, which changed no unit.
    #[must_use]
    pub fn at(at: Timestamp) -> Self {
        Self {
            at,
            restarted: None,
            restarted_units: Vec::new(),
            started_units: Vec::new(),
            reloaded_units: Vec::new(),
            stopped_units: Vec::new(),
            failed_units: Vec::new(),
        }
    }

    /// Cuts the reason and each list to about this many bytes.
    pub fn shorten(&mut self, max_bytes: usize) {
        if let Some(reason) = &mut self.restarted {
            shorten_text(reason, max_bytes);
        }
        for units in [
            &mut self.restarted_units,
            &mut self.started_units,
            &mut self.reloaded_units,
            &mut self.stopped_units,
            &mut self.failed_units,
        ] {
            let mut bytes = 0;
            let fits = units.iter().take_while(|unit| {
                // Quotes and a comma.
                bytes += unit.len() + 3;
                bytes <= max_bytes
            });
            units.truncate(fits.count());
        }
    }

    /// Returns a restart at this time, with its reason.
    #[must_use]
    pub fn restart(at: Timestamp, reason: String) -> Self {
        Self {
            restarted: Some(reason),
            ..Self::at(at)
        }
    }
}

/// An earlier desired state of a container, which `container.rollback` can restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Revision {
    /// The generation.
    pub generation: u64,
    /// When it became the desired state.
    pub at: Timestamp,
    /// The caller that requested it.
    pub by: Caller,
    /// Where its system comes from.
    pub source: ContainerSource,
    /// Its system, once it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toplevel: Option<StorePath>,
    /// The other options.
    #[serde(default, skip_serializing_if = "ContainerOptions::is_default")]
    pub options: ContainerOptions,
}

/// The desired state of a container. Each change makes a new generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Desired {
    /// The number of changes of the desired state, from 1. A command's `if_generation` refers to it.
    pub generation: u64,
    /// Whether it should run, be stopped, or be absent.
    pub run: DesiredRun,
    /// Whether its processes should be frozen once it is ready.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Where its system comes from.
    pub source: ContainerSource,
    /// Its system, once it is known: a NixOS toplevel or a minimal system, with an `init`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toplevel: Option<StorePath>,
    /// The job that builds the system, if it has to be built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_job: Option<JobId>,
    /// Its addresses.
    pub network: ContainerNetwork,
    /// The other options.
    #[serde(default, skip_serializing_if = "ContainerOptions::is_default")]
    pub options: ContainerOptions,
    /// The secrets of the leaf whose change restarts it, by name, each with the digest of the age file whose content it should
    /// have. They change with the secrets, without a new generation, since the spec does not change.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<SecretName, String>,
    /// The last system that it was ready with: it is reverted to that one if the new one does not become ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<StorePath>,
    /// Whether it was a foreign container that the leaf adopted, with its files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
}

impl Desired {
    /// Returns the desired state as a spec.
    #[must_use]
    pub fn spec(&self) -> ContainerSpec {
        ContainerSpec {
            source: self.source.clone(),
            run: match self.run {
                DesiredRun::Running => SpecRun::Running,
                DesiredRun::Stopped | DesiredRun::Absent => SpecRun::Stopped,
            },
            paused: self.paused,
            options: self.options.clone(),
        }
    }
}

/// Whether a container should run, be stopped, or be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DesiredRun {
    /// It should run.
    Running,
    /// It should exist, but not run.
    Stopped,
    /// It should not exist.
    Absent,
}

impl From<SpecRun> for DesiredRun {
    fn from(run: SpecRun) -> Self {
        match run {
            SpecRun::Running => Self::Running,
            SpecRun::Stopped => Self::Stopped,
        }
    }
}

/// The addresses of a container's veth to its leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerNetwork {
    /// The IPv4 address of the leaf's end of the veth.
    pub host_address: Ipv4Addr,
    /// The IPv4 address of the container's end of the veth.
    pub container_address: Ipv4Addr,
    /// The IPv6 address of the leaf's end of the veth; absent for containers created before leaves assigned any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address6: Option<Ipv6Addr>,
    /// The IPv6 address of the container's end of the veth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_address6: Option<Ipv6Addr>,
}

/// The phase of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPhase {
    /// A job is building its system.
    Building,
    /// It is being created on the host.
    Creating,
    /// It exists and is not running.
    Stopped,
    /// It was started, and is not ready yet.
    Starting,
    /// It is running and ready.
    Running,
    /// It is being brought to its desired state: by a switch in place, by a restart, or without either.
    Updating,
    /// It ended by itself, and systemd will start it again, as its restart policy says.
    Restarting,
    /// It is being stopped.
    Stopping,
    /// It is being removed.
    Destroying,
    /// The last step failed; `error` gives the reason. Nothing more is done until the next command, or the next boot of the host.
    Failed,
}

impl ContainerPhase {
    /// Returns whether the leaf has work to do on the container.
    #[must_use]
    pub fn is_moving(self) -> bool {
        matches!(
            self,
            Self::Creating | Self::Starting | Self::Updating | Self::Stopping | Self::Destroying
        )
    }
}

/// An observation of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedContainer {
    /// Its name.
    pub name: ContainerName,
    /// The system named in its `NAME.conf`.
    pub toplevel: Option<StorePath>,
    /// The [digest](crate::host_op::RunSpec::digest) of the last spec given to the helper, from `NAME.conf`.
    pub digest: Option<String>,
    /// Its observed run state.
    pub run: ObservedRun,
    /// The number of its processes killed for lack of memory since it was started.
    pub oom_kills: u64,
    /// Whether its processes are frozen.
    pub frozen: bool,
}

/// The observed run state of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObservedRun {
    /// It exists, and was not started since the host booted.
    Stopped,
    /// It was started, and has ended.
    Exited(Exit),
    /// It ended by itself, and its supervisor will start it again.
    Restarting(Exit),
    /// Its leader was started, and it is not ready yet.
    Starting,
    /// It is running and ready.
    Running {
        /// The process id of its leader on the host.
        leader_pid: u32,
        /// When it was started.
        started_at: Timestamp,
        /// The time from start to ready, in milliseconds.
        ready_after_ms: u64,
        /// The [digest](crate::host_op::RunSpec::start_digest) of the spec that it was started with; `None` if this
        /// leaf's helper did not start it.
        start_digest: Option<String>,
        /// The last update of this run: a switch in place, or the restart that it began with.
        #[serde(default)]
        last_update: Option<Box<LastUpdate>>,
    },
}

/// The end of a container, as its supervisor observed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Exit {
    /// Its init exited.
    Code {
        /// The exit code: 0 is success, 133 requests a reboot.
        code: i32,
    },
    /// A signal terminated it.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// The end was not observed: the supervisor was killed.
    Lost,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code { code } => write!(f, "exit code {code}"),
            Self::Signal { signal } => write!(f, "signal {signal}"),
            Self::Lost => f.write_str("an unknown status, since its supervisor was killed"),
        }
    }
}

impl RestartWhen {
    /// Returns whether a container that ended this way is started again.
    #[must_use]
    pub fn covers(self, exit: Option<Exit>) -> bool {
        match (self, exit) {
            // It requested a reboot (systemd-nspawn(1), "Exit status").
            (_, Some(Exit::Code { code: 133 })) | (Self::Always, _) => true,
            (Self::OnFailure, exit) => exit != Some(Exit::Code { code: 0 }),
            (Self::Never, _) => false,
        }
    }
}

/// A foreign container of the host, which this leaf did not create: it is shown, and never changed unless it is
/// adopted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForeignContainer {
    /// Its name.
    pub name: ContainerName,
    /// Whether it is declared in the host's NixOS configuration; such a container can't be adopted.
    pub declarative: bool,
    /// Whether it runs.
    pub running: bool,
    /// Its system, if it can be determined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toplevel: Option<StorePath>,
    /// Its IPv4 address, if its `NAME.conf` has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Whether its users have the same ids as on the host (no user namespace).
    pub host_users: bool,
}

/// An entry of the host's directories of containers that can't be used. The other entries are listed all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EntryProblem {
    /// The path of the file or directory.
    pub entry: String,
    /// The reason why it can't be used.
    pub problem: String,
}

/// A container's resource usage. Counters begin at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerStats {
    /// The container's name.
    pub name: ContainerName,
    /// When the usage was read.
    pub at: Timestamp,
    /// Whether it is paused: its processes are frozen (`cgroup.events`, `frozen`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// CPU time used, in microseconds (`cpu.stat`, `usage_usec`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_microseconds: Option<u64>,
    /// The time for which its CPU limit throttled it, in microseconds (`cpu.stat`, `throttled_usec`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_throttled_microseconds: Option<u64>,
    /// Memory used, in bytes (`memory.current`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The peak of memory used, in bytes (`memory.peak`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Its memory limit, in bytes (`memory.max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// The number of processes killed for lack of memory (`memory.events`, `oom_kill`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// The number of processes and threads (`pids.current`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
    /// Bytes read from disks (`io.stat`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_read_bytes: Option<u64>,
    /// Bytes written to disks (`io.stat`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_written_bytes: Option<u64>,
    /// Bytes received over its veth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_received_bytes: Option<u64>,
    /// Bytes sent over its veth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_sent_bytes: Option<u64>,
    /// The share of the last ten seconds in which some of its tasks waited for CPU, in hundredths of a percent
    /// (`cpu.pressure`, `some avg10`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_pressure_basis_points: Option<u32>,
    /// As `cpu_pressure_basis_points`, for memory (`memory.pressure`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_pressure_basis_points: Option<u32>,
    /// As `cpu_pressure_basis_points`, for I/O (`io.pressure`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_pressure_basis_points: Option<u32>,
}
