//! The outcome of a job in the format of `outcome.json`.

use leaf_core::job::{BuildResult, JobOutcome, JobResult};
use serde::{Deserialize, Serialize};

/// The content of `outcome.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) outcome: StoredOutcome,
    /// A notice that the end of the log could not be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log_missing: Option<String>,
}

/// A [`JobOutcome`] in its format on disk, which every version of leafd reads and writes.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase", content = "about")]
pub(crate) enum StoredOutcome {
    Succeeded(StoredResult),
    Failed(String),
    TimedOut(String),
    Cancelled,
    Interrupted(String),
}

/// A [`JobResult`] in its format on disk: the result of a build has no tag.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum StoredResult {
    Build(BuildResult),
}

impl From<JobOutcome> for StoredOutcome {
    fn from(outcome: JobOutcome) -> Self {
        match outcome {
            JobOutcome::Succeeded(JobResult::Build(result)) => Self::Succeeded(StoredResult::Build(result)),
            JobOutcome::Failed(why) => Self::Failed(why),
            JobOutcome::TimedOut(why) => Self::TimedOut(why),
            JobOutcome::Cancelled => Self::Cancelled,
            JobOutcome::Interrupted(why) => Self::Interrupted(why),
        }
    }
}

impl From<StoredOutcome> for JobOutcome {
    fn from(stored: StoredOutcome) -> Self {
        match stored {
            StoredOutcome::Succeeded(StoredResult::Build(result)) => {
                Self::Succeeded(JobResult::Build(result))
            }
            StoredOutcome::Failed(why) => Self::Failed(why),
            StoredOutcome::TimedOut(why) => Self::TimedOut(why),
            StoredOutcome::Cancelled => Self::Cancelled,
            StoredOutcome::Interrupted(why) => Self::Interrupted(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each line was written by leafd 0.1.0, before the outcome became a type of leaf-core.
    #[test]
    fn the_format_of_outcomes_on_disk_stays_byte_for_byte() {
        for line in [
            r#"{"outcome":{"phase":"succeeded","about":{"store_path":"/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a","outputs":{"out":"/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a"},"derivation":"/nix/store/11bgd045z0d4icpbc2yyz4gx48ak44la-a.drv","build_time_ms":45,"closure_size_bytes":7,"references":[],"built":1}}}"#,
            r#"{"outcome":{"phase":"failed","about":"it is broken"},"log_missing":"[… 5 bytes could not be written: No space left on device …]\n"}"#,
            r#"{"outcome":{"phase":"timed_out","about":"it took longer than 2 s, and was ended"}}"#,
            r#"{"outcome":{"phase":"cancelled"}}"#,
            r#"{"outcome":{"phase":"interrupted","about":"killed"}}"#,
        ] {
            let ended: Ended = serde_json::from_str(line).expect("readable");
            let ended = Ended {
                outcome: JobOutcome::from(ended.outcome).into(),
                log_missing: ended.log_missing,
            };
            assert_eq!(serde_json::to_string(&ended).expect("JSON"), line);
        }
    }
}
