//! What happened to containers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::facts;
use crate::container::{Desired, Exit};
use crate::id::{Caller, ContainerName, StorePath};

facts! {
    ContainerFact of "container";

    /// Somebody wants something of a container: it is to be, to run, to stand still, to go.
    Desired: ContainerDesired = "desired" v 1 about Container(name) {
        /// Which one.
        name: ContainerName,
        /// All that is wanted of it now.
        desired: Desired,
        /// Who wants it.
        caller: Caller,
    }

    /// The system of a container was built.
    Built: ContainerBuilt = "built" v 1 about Container(name) {
        /// Which one.
        name: ContainerName,
        /// The system.
        toplevel: StorePath,
    }

    /// A container exists on the host.
    Created: ContainerCreated = "created" v 1 about Container(name) {
        /// Which one.
        name: ContainerName,
    }

    /// A container runs and has said that it is ready.
    Started: ContainerStarted = "started" v 1 about Container(name) {
        /// Which one.
        name: ContainerName,
        /// From start to ready, in milliseconds.
        ready_after_ms: u64,
    }

    /// A container does not run any more.
    Stopped: ContainerStopped = "stopped" v 1 about Container(name) {
        /// Which one.
        name: ContainerName,
        /// Why.
        cause: StopCause,
        /// How its init ended, if anybody saw it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        exit: Option<Exit>,
    }

    /// A container is what was wanted of it last.
    Updated: ContainerUpdated = "updated" v 1 about Container(name) {
        /// Which one.
        name: ContainerName,
        /// The generation that it is at now.
        generation: u64,
        /// Whether it runs.
        running: bool,
        /// From start to ready, in milliseconds, if it was started again for that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ready_after_ms: Option<u64>,
    }

    /// A container did not become ready with its new system, and goes back to the one before.
    Reverted: ContainerReverted = "reverted" v 1 about Container(name) {
        /// Which one.
        name: ContainerName,
        /// The system that it goes back to.
        toplevel: StorePath,
        /// Why.
        reason: String,
    }

    /// Processes of a container were killed for want of memory.
    OutOfMemory: ContainerOutOfMemory = "out_of_memory" v 1 about Container(name) {
        /// Which one.
        name: ContainerName,
        /// How many of them were since it was started.
        oom_kills: u64,
    }

    /// A container is gone from the host.
    Destroyed: ContainerDestroyed = "destroyed" v 1 about Container(name) {
        /// Which one.
        name: ContainerName,
    }

    /// A step for a container did not work.
    Failed: ContainerFailed = "failed" v 1 about Container(name) {
        /// Which one.
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
    /// Somebody asked for it.
    Requested,
    /// Its init ended by itself.
    Exited,
    /// It was gone after a restart of the host.
    HostRestarted,
    /// It ended without success after processes of it had been killed for want of memory.
    OutOfMemory,
}

/// What was to be done for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerStep {
    /// Build its system.
    Build,
    /// Make it on the host, its network included.
    Create,
    /// Start it, and wait until it is ready.
    Start,
    /// Bring it to what is wanted of it now, while it runs.
    Update,
    /// Stop it.
    Stop,
    /// Remove it from the host.
    Destroy,
    /// Look at it on the host: it is not what the step before should have made it.
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
