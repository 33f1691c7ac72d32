//! Containers: what is wanted of them, and what is so. [`crate::plan`] makes the one the other.

use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::id::{Caller, ContainerName, JobId, StorePath};
use crate::spec::{ContainerOptions, ContainerSource, ContainerSpec, RestartWhen, SpecRun};

/// How many revisions of a container are remembered.
pub const REMEMBERED_REVISIONS: usize = 16;

/// One container: the desired state, and where the leaf is with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Container {
    /// Its name; also that of its machine and of its `NAME.conf`.
    pub name: ContainerName,
    /// What is wanted.
    pub desired: Desired,
    /// Where the leaf is with it.
    pub phase: ContainerPhase,
    /// Where the last change of what is wanted came from.
    #[serde(default)]
    pub cause: Cause,
    /// When it was first asked for.
    pub created_at: Timestamp,
    /// When its phase last changed.
    pub changed_at: Timestamp,
    /// When it last became ready, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Timestamp>,
    /// Why it last failed or stopped by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why it went back to the system that it had before, if it did since somebody last wanted something of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverted: Option<String>,
    /// How many of its processes were killed for want of memory since it was started.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub oom_kills: u64,
    /// What was wanted of it before and is wanted now, the oldest first, at most [`REMEMBERED_REVISIONS`]; an answer to
    /// `container.list` leaves them out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<Revision>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One thing that was wanted of a container: what `container.rollback` can go back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Revision {
    /// The generation that it came with.
    pub generation: u64,
    /// When it was wanted first.
    pub at: Timestamp,
    /// Who wanted it.
    pub by: Caller,
    /// Where its system comes from.
    pub source: ContainerSource,
    /// Its system, once it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toplevel: Option<StorePath>,
    /// All else.
    #[serde(default, skip_serializing_if = "ContainerOptions::is_default")]
    pub options: ContainerOptions,
}

/// What is wanted of a container. Each change makes a new generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Desired {
    /// Counts the changes of what is wanted, from 1. `if_generation` of a command refers to it.
    pub generation: u64,
    /// Whether it is to run, to stand still, or to go.
    pub run: DesiredRun,
    /// Whether its processes are to be frozen once it is ready.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Where its system comes from.
    pub source: ContainerSource,
    /// Its system, once it is known: a NixOS toplevel or a minimal system, with an `init` in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toplevel: Option<StorePath>,
    /// The job that builds the system, if it must be built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_job: Option<JobId>,
    /// Its addresses.
    pub network: ContainerNetwork,
    /// What else is wanted of it.
    #[serde(default, skip_serializing_if = "ContainerOptions::is_default")]
    pub options: ContainerOptions,
    /// The system that it had before and was ready with: it goes back to that one if the new one does not become ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<StorePath>,
    /// Whether it was somebody else's, and is taken over with its files.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
}

impl Desired {
    /// What is wanted, as a person writes it.
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

/// Whether a container is to run, to stand still, or to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DesiredRun {
    /// It is to run.
    Running,
    /// It is to exist, and not to run.
    Stopped,
    /// It is to be gone.
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

/// The addresses of a container's one link to its leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerNetwork {
    /// The leaf's end of the veth.
    pub host_address: Ipv4Addr,
    /// The container's end of the veth.
    pub container_address: Ipv4Addr,
    /// The leaf's end of the veth, by IPv6; nothing for containers of before it was given any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_address6: Option<Ipv6Addr>,
    /// The container's end of the veth, by IPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_address6: Option<Ipv6Addr>,
}

/// Where the leaf is with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerPhase {
    /// A job builds its system.
    Building,
    /// It is being made on the host.
    Creating,
    /// It exists and does not run.
    Stopped,
    /// It was started and is not ready yet.
    Starting,
    /// It runs and has said that it is ready.
    Running,
    /// It is being brought to what is wanted of it now: by a switch inside, by a restart, or as it stands.
    Updating,
    /// It ended by itself, and systemd starts it again after a while, as its restart policy says.
    Restarting,
    /// It is being stopped.
    Stopping,
    /// It is being removed.
    Destroying,
    /// The last step did not work; `error` says why. Another command may.
    Failed,
}

impl ContainerPhase {
    /// Whether the leaf has work to do on the container.
    #[must_use]
    pub fn is_moving(self) -> bool {
        matches!(
            self,
            Self::Creating | Self::Starting | Self::Updating | Self::Stopping | Self::Destroying
        )
    }
}

/// What one look at the host says of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedContainer {
    /// Its name.
    pub name: ContainerName,
    /// The system that its `NAME.conf` names.
    pub toplevel: Option<StorePath>,
    /// The [digest](crate::host_op::RunSpec::digest) of what the helper was last told of it, as `NAME.conf` has it.
    pub digest: Option<String>,
    /// Whether it runs.
    pub run: ObservedRun,
    /// How many of its processes were killed for want of memory since it was started.
    pub oom_kills: u64,
    /// Whether its processes are frozen.
    pub frozen: bool,
}

/// Whether a container runs, by one look at the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObservedRun {
    /// It exists and was not started since the host was.
    Stopped,
    /// It was started, and ended.
    Exited(Exit),
    /// It ended by itself, and is started again after a while by what supervises it.
    Restarting(Exit),
    /// Its first process was started; it has not said that it is ready.
    Starting,
    /// It runs and is ready.
    Running {
        /// The process id, on the host, of its first process.
        leader_pid: u32,
        /// When this run of it began.
        started_at: Timestamp,
        /// From start to ready, in milliseconds.
        ready_after_ms: u64,
        /// The [digest](crate::host_op::RunSpec::start_digest) of what it was started with; nothing for one that this
        /// leaf's helper did not start.
        start_digest: Option<String>,
    },
}

/// How a container's supervisor saw it end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "by")]
pub enum Exit {
    /// The init ended with this code.
    Code {
        /// 0 is success; 133 asks for a restart.
        code: i32,
    },
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// Nobody saw it end: its supervisor was killed.
    Lost,
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code { code } => write!(f, "exit code {code}"),
            Self::Signal { signal } => write!(f, "signal {signal}"),
            Self::Lost => f.write_str("an unseen end: its supervisor was killed"),
        }
    }
}

impl RestartWhen {
    /// Whether a container that ended like this is started again.
    #[must_use]
    pub fn covers(self, exit: Option<Exit>) -> bool {
        match (self, exit) {
            // It asked for a reboot (systemd-nspawn(1), "Exit status").
            (_, Some(Exit::Code { code: 133 })) | (Self::Always, _) => true,
            (Self::OnFailure, exit) => exit != Some(Exit::Code { code: 0 }),
            (Self::Never, _) => false,
        }
    }
}

/// A container on the host that this leaf did not make: it is shown, and never changed unless it is adopted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ForeignContainer {
    /// Its name.
    pub name: ContainerName,
    /// Whether the system's own configuration declares it: such a one can't be adopted.
    pub declarative: bool,
    /// Whether it runs.
    pub running: bool,
    /// Its system, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toplevel: Option<StorePath>,
    /// The container's address, if its `NAME.conf` names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// Whether its users are numbered as those of the host.
    pub host_users: bool,
}

/// What a container uses now. Counters begin with its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerStats {
    /// The container's name.
    pub name: ContainerName,
    /// When it was looked at.
    pub at: Timestamp,
    /// Whether it is paused: its processes are frozen (`cgroup.events`, `frozen`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Processor time used, in microseconds (`cpu.stat`, `usage_usec`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_microseconds: Option<u64>,
    /// How long it was held back by its limit, in microseconds (`cpu.stat`, `throttled_usec`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_throttled_microseconds: Option<u64>,
    /// Memory, in bytes (`memory.current`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The most memory that it had, in bytes (`memory.peak`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Its limit of memory, in bytes (`memory.max`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Processes killed for want of memory (`memory.events`, `oom_kill`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Processes and threads (`pids.current`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
    /// Read from disks, in bytes (`io.stat`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_read_bytes: Option<u64>,
    /// Written to disks, in bytes (`io.stat`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_written_bytes: Option<u64>,
    /// Received over its link, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_received_bytes: Option<u64>,
    /// Sent over its link, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_sent_bytes: Option<u64>,
    /// The share of the last ten seconds in which some of its tasks waited for a processor, in hundredths of a percent
    /// (`cpu.pressure`, `some avg10`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_pressure_basis_points: Option<u32>,
    /// The same for memory (`memory.pressure`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_pressure_basis_points: Option<u32>,
    /// The same for I/O (`io.pressure`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_pressure_basis_points: Option<u32>,
}
