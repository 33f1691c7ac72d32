//! The outcome of a job in the format of `outcome.json`.

use leaf_core::job::{
    BuildResult, BuiltDerivation, CheckResult, DiffResult, EvalResult, Explanation, Failure, GcResult,
    JobOutcome, JobResult, PrintEnvResult, RootsResult, RunResult, VerifyResult,
};
use serde::{Deserialize, Serialize};

/// The content of `outcome.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    outcome: StoredOutcome,
    /// The derivations that a failed build built.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    partial: Vec<BuiltDerivation>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    explanation: Option<Box<Explanation>>,
    /// A notice that the end of the log could not be written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) log_missing: Option<String>,
}

/// A [`JobOutcome`] in its format on disk, which every version of leafd reads and writes. What else is known of a failure is
/// beside it, in fields that an older leafd does not read.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase", content = "about")]
enum StoredOutcome {
    Succeeded(StoredResult),
    Failed(String),
    TimedOut(String),
    Cancelled,
    Interrupted(String),
}

/// A [`JobResult`] in its format on disk: the result of a build has no tag, and any other one names its task.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum StoredResult {
    Build(BuildResult),
    Named(NamedResult),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "task")]
enum NamedResult {
    Eval(EvalResult),
    PrintEnv(PrintEnvResult),
    Check(CheckResult),
    Gc(GcResult),
    Roots(RootsResult),
    Diff(DiffResult),
    Run(RunResult),
    Verify(VerifyResult),
}

impl From<JobResult> for StoredResult {
    fn from(result: JobResult) -> Self {
        match result {
            JobResult::Build(result) => Self::Build(result),
            JobResult::Eval(result) => Self::Named(NamedResult::Eval(result)),
            JobResult::PrintEnv(result) => Self::Named(NamedResult::PrintEnv(result)),
            JobResult::Check(result) => Self::Named(NamedResult::Check(result)),
            JobResult::Gc(result) => Self::Named(NamedResult::Gc(result)),
            JobResult::Roots(result) => Self::Named(NamedResult::Roots(result)),
            JobResult::Diff(result) => Self::Named(NamedResult::Diff(result)),
            JobResult::Run(result) => Self::Named(NamedResult::Run(result)),
            JobResult::Verify(result) => Self::Named(NamedResult::Verify(result)),
        }
    }
}

impl From<StoredResult> for JobResult {
    fn from(stored: StoredResult) -> Self {
        match stored {
            StoredResult::Build(result) => Self::Build(result),
            StoredResult::Named(NamedResult::Eval(result)) => Self::Eval(result),
            StoredResult::Named(NamedResult::PrintEnv(result)) => Self::PrintEnv(result),
            StoredResult::Named(NamedResult::Check(result)) => Self::Check(result),
            StoredResult::Named(NamedResult::Gc(result)) => Self::Gc(result),
            StoredResult::Named(NamedResult::Roots(result)) => Self::Roots(result),
            StoredResult::Named(NamedResult::Diff(result)) => Self::Diff(result),
            StoredResult::Named(NamedResult::Run(result)) => Self::Run(result),
            StoredResult::Named(NamedResult::Verify(result)) => Self::Verify(result),
        }
    }
}

impl Ended {
    pub(crate) fn new(outcome: JobOutcome, log_missing: Option<String>) -> Self {
        let (mut partial, mut explanation) = (Vec::new(), None);
        let mut error_of = |failure: Failure| {
            (partial, explanation) = (failure.partial, failure.explanation);
            failure.error
        };
        let outcome = match outcome {
            JobOutcome::Succeeded(result) => StoredOutcome::Succeeded(result.into()),
            JobOutcome::Failed(failure) => StoredOutcome::Failed(error_of(failure)),
            JobOutcome::TimedOut(failure) => StoredOutcome::TimedOut(error_of(failure)),
            JobOutcome::Cancelled => StoredOutcome::Cancelled,
            JobOutcome::Interrupted(why) => StoredOutcome::Interrupted(why),
        };
        Self {
            outcome,
            partial,
            explanation,
            log_missing,
        }
    }

    pub(crate) fn into_outcome(self) -> JobOutcome {
        let failure = |error| Failure {
            error,
            partial: self.partial,
            explanation: self.explanation,
        };
        match self.outcome {
            StoredOutcome::Succeeded(result) => JobOutcome::Succeeded(result.into()),
            StoredOutcome::Failed(error) => JobOutcome::Failed(failure(error)),
            StoredOutcome::TimedOut(error) => JobOutcome::TimedOut(failure(error)),
            StoredOutcome::Cancelled => JobOutcome::Cancelled,
            StoredOutcome::Interrupted(why) => JobOutcome::Interrupted(why),
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
            // Since evaluations.
            r#"{"outcome":{"phase":"succeeded","about":{"task":"eval","value":{"a":[1,null]},"locked":"path:/x?narHash=sha256-x","nix":"nix (Nix) 2.8.0","eval_time_ms":3}}}"#,
            // Since environments.
            r#"{"outcome":{"phase":"succeeded","about":{"task":"print_env","environment":{"bashFunctions":{"f":"x"},"variables":{"A":{"type":"exported","value":"1"}}},"nix":"nix (Nix) 2.8.0","built":1,"time_ms":3}}}"#,
            // Since checks.
            r#"{"outcome":{"phase":"succeeded","about":{"task":"check","derivations":[{"derivation":"/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a.drv","outputs":{"out":"/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a"}}],"nix":"nix (Nix) 2.8.0","check_time_ms":3}}}"#,
            // Since programs.
            r#"{"outcome":{"phase":"succeeded","about":{"task":"run","exit":{"code":3},"run_time_ms":5,"stdout":{"text":"a"}}}}"#,
            // Since garbage.
            r#"{"outcome":{"phase":"succeeded","about":{"task":"gc","paths":3,"given_up_jobs":1,"free_bytes_before":5,"free_bytes_after":9}}}"#,
            r#"{"outcome":{"phase":"succeeded","about":{"task":"roots","roots":[{"link":"/x","path":"/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a"}]}}}"#,
            // Since differences.
            r#"{"outcome":{"phase":"succeeded","about":{"task":"diff","from_closure_size_bytes":5,"to_closure_size_bytes":6,"packages":[{"name":"a","from":["1"],"to":["2"],"size_bytes":1}],"system":{"units":[{"unit":"a.service","effect":"restarts"}]}}}}"#,
            // Since verifications.
            r#"{"outcome":{"phase":"succeeded","about":{"task":"verify","toplevel":"/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a","paths":2,"signed":1,"attested":0,"built_here":0,"unknown":1,"listed":[{"path":"/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a","what":"unknown"}],"etc":{"of_system":5,"unexplained":1,"differences":[{"name":"hosts","what":"changed"}]}}}}"#,
            r#"{"outcome":{"phase":"interrupted","about":"killed"}}"#,
        ] {
            let ended: Ended = serde_json::from_str(line).expect("readable");
            let log_missing = ended.log_missing.clone();
            let ended = Ended::new(ended.into_outcome(), log_missing);
            assert_eq!(serde_json::to_string(&ended).expect("JSON"), line);
        }
    }
}
