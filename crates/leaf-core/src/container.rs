//! Containers: what is wanted of them, and what is so. [`crate::plan`] makes the one the other.

use std::net::Ipv4Addr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::id::{ContainerName, JobId, StorePath};

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
}

/// What is wanted of a container. Each change makes a new generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Desired {
    /// Counts the changes of what is wanted, from 1. `if_generation` of a command refers to it.
    pub generation: u64,
    /// Whether it is to run, to stand still, or to go.
    pub run: DesiredRun,
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

/// Where a container's system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type", deny_unknown_fields)]
pub enum ContainerSource {
    /// A system that is in the leaf's store.
    Toplevel {
        /// Its store path.
        path: StorePath,
    },
    /// A flake reference, built first.
    Flake {
        /// The reference with its fragment, such as `github:owner/repo#web`.
        reference: String,
    },
    /// A template of this leaf, built first.
    Template {
        /// The template's folder name, such as `minimal`.
        name: String,
    },
}

/// The addresses of a container's one link to its leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ContainerNetwork {
    /// The leaf's end of the veth.
    pub host_address: Ipv4Addr,
    /// The container's end of the veth.
    pub container_address: Ipv4Addr,
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
            Self::Creating | Self::Starting | Self::Stopping | Self::Destroying
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
    /// Whether it runs.
    pub run: ObservedRun,
}

/// Whether a container runs, by one look at the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObservedRun {
    /// It exists and was not started since the host was.
    Stopped,
    /// It was started, and ended.
    Exited(Exit),
    /// Its first process was started; it has not said that it is ready.
    Starting,
    /// It runs and is ready.
    Running {
        /// The process id, on the host, of its first process.
        leader_pid: u32,
        /// From start to ready, in milliseconds.
        ready_after_ms: u64,
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
