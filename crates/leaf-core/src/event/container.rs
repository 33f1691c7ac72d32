//! Facts about containers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::facts;
use crate::container::{Desired, Exit, LastUpdate};
use crate::id::{Caller, ContainerName, StorePath};

facts! {
    ContainerFact of "container";

    /// The desired state of a container changed.
    Desired: ContainerDesired = "desired" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The new desired state.
        desired: Desired,
        /// The caller that changed it.
        caller: Caller,
    }

    /// The system of a container was built.
    Built: ContainerBuilt = "built" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The system's store path.
        toplevel: StorePath,
    }

    /// A container was created on the host.
    Created: ContainerCreated = "created" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
    }

    /// A container was started and is ready.
    Started: ContainerStarted = "started" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The time from start to ready, in milliseconds.
        ready_after_ms: u64,
    }

    /// A container stopped.
    Stopped: ContainerStopped = "stopped" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The cause.
        cause: StopCause,
        /// How its init ended, if that was observed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<Exit>,
    }

    /// A container has reached its desired state after an update.
    Updated: ContainerUpdated = "updated" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The generation of the reached desired state.
        generation: u64,
        /// Whether it is running.
        running: bool,
        /// The time from start to ready, in milliseconds, if the update restarted it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ready_after_ms: Option<u64>,
        /// The effect on the running container; absent if its system and settings took effect without a switch or a
        /// restart.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last_update: Option<LastUpdate>,
    }

    /// A container did not become ready with its new system, and is reverted to the previous one.
    Reverted: ContainerReverted = "reverted" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The system that it is reverted to.
        toplevel: StorePath,
        /// The reason.
        reason: String,
    }

    /// Processes of a container were killed because memory ran out.
    OutOfMemory: ContainerOutOfMemory = "out_of_memory" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The number of processes killed since it was started.
        oom_kills: u64,
    }

    /// A container was removed from the host.
    Destroyed: ContainerDestroyed = "destroyed" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
    }

    /// A step for a container failed.
    Failed: ContainerFailed = "failed" v 1 about Container(name) {
        /// The container's name.
        name: ContainerName,
        /// The step that failed.
        step: ContainerStep,
        /// The reason.
        reason: String,
    }
}

/// The cause of a container's stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopCause {
    /// It was requested.
    Requested,
    /// Its init ended by itself.
    Exited,
    /// The host was restarted.
    HostRestarted,
    /// It failed after some of its processes had been killed because memory ran out.
    OutOfMemory,
}

/// A step of a container's reconciliation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerStep {
    /// Build its system.
    Build,
    /// Create it on the host, with its network.
    Create,
    /// Start it, and wait until it is ready.
    Start,
    /// Bring a running container to its desired state.
    Update,
    /// Stop it.
    Stop,
    /// Remove it from the host.
    Destroy,
    /// Observe it: the host does not show the effect of the previous step.
    Look,
}

impl ContainerStep {
    /// Returns the step's name in messages.
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
