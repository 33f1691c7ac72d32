//! Containers: what is wanted, what is so, and the plan that makes the one the other.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::{
    ContainerCreated, ContainerDestroyed, ContainerStarted, ContainerStopped, Fact, StopCause,
};
use crate::host_op::{ContainerBinding, HostOp, Secret};
use crate::id::{ContainerName, JobId, LeafName, StorePath};

/// One container: the desired state, and where the leaf is with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Container {
    /// Its name; also that of its machine and of its `NAME.conf`.
    pub name: ContainerName,
    /// What is wanted.
    pub desired: Desired,
    /// Where the leaf is with it.
    pub phase: ContainerPhase,
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

/// What a plan needs to know beside the container and the look at it.
#[derive(Debug, Clone)]
pub struct PlanContext {
    /// The leaf.
    pub leaf: LeafName,
    /// Where the leaf's NATS server is, as the container reaches it.
    pub nats_url: String,
    /// The container's own NATS credentials, in the creds file format.
    pub nats_credentials: Secret,
    /// How long a start may take until the container says that it is ready, in seconds.
    pub ready_timeout_seconds: u32,
    /// How long a stop may take before it is ended by force, in seconds.
    pub stop_timeout_seconds: u32,
}

/// Returns the operations that make a container what it is wanted to be, in order; none if it is so.
///
/// `observed` is nothing where the host has no such container.
#[must_use]
pub fn plan(
    container: &Container,
    observed: Option<&ObservedContainer>,
    context: &PlanContext,
) -> Vec<HostOp> {
    let name = &container.name;
    let desired = &container.desired;
    let up = observed.is_some_and(|o| matches!(o.run, ObservedRun::Starting | ObservedRun::Running { .. }));
    let ready = observed.is_some_and(|o| matches!(o.run, ObservedRun::Running { .. }));
    let stop = || HostOp::StopContainer {
        name: name.clone(),
        grace_seconds: context.stop_timeout_seconds,
    };
    let mut ops = Vec::new();
    if desired.run == DesiredRun::Absent {
        if up {
            ops.push(stop());
        }
        // A create that did not come to its end shows nothing to a look, and leaves files and credentials all the same.
        if observed.is_some() || desired.toplevel.is_some() {
            ops.push(HostOp::DestroyContainer { name: name.clone() });
        }
        return ops;
    }
    let Some(toplevel) = &desired.toplevel else {
        return ops;
    };
    if observed.is_none_or(|o| o.toplevel.as_ref() != Some(toplevel)) {
        ops.push(HostOp::CreateContainer {
            name: name.clone(),
            toplevel: toplevel.clone(),
            network: desired.network,
            binding: ContainerBinding::new(&context.leaf, name, &context.nats_url),
            credentials: BTreeMap::from([("nats.creds".to_owned(), context.nats_credentials.clone())]),
        });
    }
    match desired.run {
        DesiredRun::Running if !ready => ops.push(HostOp::StartContainer {
            name: name.clone(),
            ready_timeout_seconds: context.ready_timeout_seconds,
        }),
        DesiredRun::Stopped if up => ops.push(stop()),
        _ => {}
    }
    ops
}

/// Returns the facts that a look at the host adds to what is known of a container: what the leaf's own steps
/// brought about, and what happened by itself. None if the look says what the state says.
#[must_use]
pub fn observe(container: &Container, observed: Option<&ObservedContainer>) -> Vec<Fact> {
    use ContainerPhase as Phase;
    let name = container.name.clone();
    let Some(observed) = observed else {
        return match container.phase {
            Phase::Destroying => vec![Fact::ContainerDestroyed(ContainerDestroyed { name })],
            // One that starts and is not there is still to be made: nothing has happened to it.
            Phase::Running | Phase::Stopping => {
                vec![Fact::ContainerStopped(ContainerStopped {
                    name,
                    cause: StopCause::HostRestarted,
                    exit: None,
                })]
            }
            _ => Vec::new(),
        };
    };
    let stopped = |cause, exit| {
        vec![Fact::ContainerStopped(ContainerStopped {
            name: name.clone(),
            cause,
            exit,
        })]
    };
    match (container.phase, &observed.run) {
        (Phase::Creating, ObservedRun::Stopped | ObservedRun::Exited(_))
            if observed.toplevel == container.desired.toplevel =>
        {
            vec![Fact::ContainerCreated(ContainerCreated { name })]
        }
        (Phase::Creating, ObservedRun::Running { ready_after_ms, .. }) => vec![
            Fact::ContainerCreated(ContainerCreated { name: name.clone() }),
            Fact::ContainerStarted(ContainerStarted {
                name,
                ready_after_ms: *ready_after_ms,
            }),
        ],
        (Phase::Starting | Phase::Stopped | Phase::Failed, ObservedRun::Running { ready_after_ms, .. })
            if container.desired.run == DesiredRun::Running =>
        {
            vec![Fact::ContainerStarted(ContainerStarted {
                name,
                ready_after_ms: *ready_after_ms,
            })]
        }
        (Phase::Stopping, ObservedRun::Stopped) => stopped(StopCause::Requested, None),
        (Phase::Stopping, ObservedRun::Exited(exit)) => stopped(StopCause::Requested, Some(*exit)),
        (Phase::Running, ObservedRun::Stopped) => stopped(StopCause::HostRestarted, None),
        (Phase::Running, ObservedRun::Exited(exit)) => stopped(StopCause::Exited, Some(*exit)),
        _ => Vec::new(),
    }
}
