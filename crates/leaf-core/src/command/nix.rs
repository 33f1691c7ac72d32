//! Commands for Nix: each begins a job.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::id::JobId;
use crate::job::{Installable, JobPhase};

commands! {
    "nix";

    /// Builds with Nix.
    Build: Build = "build" {
        kind: Job, about: Leaf, needs: Nix, disk: Takes,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// What to build.
        installable: Installable,
        /// The time it may take, in seconds; the leaf's setting if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout_seconds: Option<u32>,
    } -> JobAccepted
}

/// A job that is stored and will run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobAccepted {
    /// The job's id.
    pub job: JobId,
    /// Its phase.
    pub phase: JobPhase,
}
