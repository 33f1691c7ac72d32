//! How a job ended.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{JobPhase, JobResult};

/// How a job ended, as its runner or the one that looked for it says. It is neither a message nor stored: a job's
/// events and its entry in the state are made from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobOutcome {
    /// It did its task; the result's GC roots and other files are in place.
    Succeeded(JobResult),
    /// It failed; the text says why, in at most 4 KiB.
    Failed(String),
    /// It exceeded its time limit and was ended; the text says so.
    TimedOut(String),
    /// It was ended because a caller cancelled it.
    Cancelled,
    /// Its runner died, or left files that can't be read: how far it came is unknown. The text says what is known.
    Interrupted(String),
}

impl JobOutcome {
    /// Returns the phase of a job that ended this way; one that timed out has failed.
    #[must_use]
    pub fn phase(&self) -> JobPhase {
        match self {
            Self::Succeeded(_) => JobPhase::Succeeded,
            Self::Failed(_) | Self::TimedOut(_) => JobPhase::Failed,
            Self::Cancelled => JobPhase::Cancelled,
            Self::Interrupted(_) => JobPhase::Interrupted,
        }
    }

    /// Returns why it did not succeed, if its phase does not say it all.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Failed(why) | Self::TimedOut(why) | Self::Interrupted(why) => Some(why),
            Self::Succeeded(_) | Self::Cancelled => None,
        }
    }
}

/// What kind of failure ended a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobFailureCause {
    /// What it did did not work.
    Failed,
    /// It took longer than it may.
    TimedOut,
}
