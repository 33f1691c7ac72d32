//! The outcome of a job.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BuiltDerivation, Explanation, JobPhase, JobResult};

/// The outcome of a job, as reported by its runner or by a search for it. It is neither a message nor stored: the job's
/// events and its entry in the state are made from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobOutcome {
    /// It completed its task; the result's GC roots and other files are in place.
    Succeeded(JobResult),
    /// It failed.
    Failed(Failure),
    /// It exceeded its time limit and was killed; the error says so.
    TimedOut(Failure),
    /// A caller cancelled it.
    Cancelled,
    /// Its runner died, or left unreadable files: its progress is unknown. The text says what is known.
    Interrupted(String),
}

impl JobOutcome {
    /// Returns the phase of a job with this outcome; one that timed out has failed.
    #[must_use]
    pub fn phase(&self) -> JobPhase {
        match self {
            Self::Succeeded(_) => JobPhase::Succeeded,
            Self::Failed(_) | Self::TimedOut(_) => JobPhase::Failed,
            Self::Cancelled => JobPhase::Cancelled,
            Self::Interrupted(_) => JobPhase::Interrupted,
        }
    }

    /// Returns the reason why it did not succeed, if the phase alone doesn't say it.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Failed(failure) | Self::TimedOut(failure) => Some(&failure.error),
            Self::Interrupted(why) => Some(why),
            Self::Succeeded(_) | Self::Cancelled => None,
        }
    }
}

/// A job's failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The error, in at most 4 KiB.
    pub error: String,
    /// The derivations that a build with `keep_going` built although the job failed.
    pub partial: Vec<BuiltDerivation>,
    /// Why it failed, as far as that is known.
    pub explanation: Option<Box<Explanation>>,
}

impl From<String> for Failure {
    fn from(error: String) -> Self {
        Self {
            error,
            partial: Vec::new(),
            explanation: None,
        }
    }
}

/// The kind of a job's failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobFailureCause {
    /// Its task failed.
    Failed,
    /// It exceeded its time limit.
    TimedOut,
}
