//! What a leaf says that would come of a build.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::demand::Features;
use super::pressure::Pressure;

/// A leaf's offer for a build. It promises nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Offer {
    /// What would come of the build.
    pub verdict: Verdict,
    /// The reason why it would wait, or be refused, or why the leaf is strained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The number of running jobs.
    pub running: u64,
    /// The number of queued jobs.
    pub queued: u64,
    /// The maximum number of running jobs.
    pub max_jobs: u64,
    /// What no running job takes of the leaf's features.
    #[serde(default, skip_serializing_if = "Features::is_empty")]
    pub features_free: Features,
    /// The pressure of the host, if it is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// Whether it can have a part in a [work](super::work): its hub's agent says when the other leaf is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub works: bool,
}

/// What would come of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It would be queued behind a job about the same.
    WorksOnIt,
    /// It would start at once.
    Room,
    /// It would be queued.
    Waits,
    /// It would start at once, but the pressure of the host is above its limits.
    Strained,
    /// It would be refused.
    Never,
    /// A verdict of a newer leafd.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}
