//! What happened to containers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::facts;
use crate::container::{Desired, Exit};
use crate::id::{Caller, ContainerName, StorePath};

facts! {
    ContainerFact of "container";

    /// The desired state of a container changed.
    Desired: ContainerDesired = "desired" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The whole desired state.
        desired: Desired,
        /// Who changed it.
        caller: Caller,
    }

    /// The system of a container was built.
    Built: ContainerBuilt = "built" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The system.
        toplevel: StorePath,
    }

    /// A container exists on the host.
    Created: ContainerCreated = "created" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
    }

    /// A container runs and has said that it is ready.
    Started: ContainerStarted = "started" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// From start to ready, in milliseconds.
        ready_after_ms: u64,
    }

    /// A container stopped.
    Stopped: ContainerStopped = "stopped" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// Why.
        cause: StopCause,
        /// How its init ended, if that was observed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<Exit>,
    }

    /// A container has reached its desired state after an update.
    Updated: ContainerUpdated = "updated" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The generation that it has reached.
        generation: u64,
        /// Whether it runs.
        running: bool,
        /// From start to ready, in milliseconds, if it was started again for that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ready_after_ms: Option<u64>,
    }

    /// A container did not become ready with its new system, and goes back to the one before.
    Reverted: ContainerReverted = "reverted" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The system that it goes back to.
        toplevel: StorePath,
        /// Why.
        reason: String,
    }

    /// Processes of a container were killed because memory ran out.
    OutOfMemory: ContainerOutOfMemory = "out_of_memory" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// How many of them were since it was started.
        oom_kills: u64,
    }

    /// A container is gone from the host.
    Destroyed: ContainerDestroyed = "destroyed" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
    }

    /// A step for a container failed.
    Failed: ContainerFailed = "failed" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The step.
        step: ContainerStep,
        /// What happened.
        reason: String,
    }
}

/// Why a container stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// It was requested.
    Requested,
    /// Its init ended by itself.
    Exited,
    /// The host was restarted.
    HostRestarted,
    /// It failed after processes of it had been killed because memory ran out.
    OutOfMemory,
}

/// A step that is taken for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerStep {
    /// Build its system.
    Build,
    /// Create it on the host, with its network.
    Create,
    /// Start it, and wait until it is ready.
    Start,
    /// Bring it to its desired state while it runs.
    Update,
    /// Stop it.
    Stop,
    /// Remove it from the host.
    Destroy,
    /// Observe it on the host: it is not what the step before should have made it.
    Look,
}

impl ContainerStep {
    /// The name, as it stands in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Create => "create",
            Self::Start => "start",
            Self::Update => "update",
            Self::Stop => "stop",
            Self::Destroy => "destroy",
            Self::Look => "look",
        }
    }
}

impl std::fmt::Display for ContainerStep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
