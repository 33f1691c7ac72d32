//! Commands about Nix: each begins a job.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::id::JobId;
use crate::job::{Installable, JobPhase};

commands! {
    "nix";

    /// Runs a Nix build.
    Build: Build = "build" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes, power: Builds,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The installable to build.
        installable: Installable,
        /// The time limit of the job, in seconds; by default the leaf's setting.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    } -> JobAccepted
}

/// A job that was accepted and will run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobAccepted {
    /// The job's id.
    pub job: JobId,
    /// Its phase.
    pub phase: JobPhase,
}
