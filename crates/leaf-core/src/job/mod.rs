//! Jobs: durable long-running work that is accepted with an id, can be followed and cancelled, and ends with an event.
//!
//! There are two kinds. A *process job* is one program, run as the user `leaf-job`: builds are, and evaluations, runs,
//! shells and uploads will be. A *saga* is made of steps of leafd and the helper with a durable position; migrations and
//! system switches will be sagas, and none exists yet (decision 14).
//!
//! Each task has a module with its arguments and its result, such as [`build`], a variant of [`Task`] and one of
//! [`JobResult`].

pub mod activities;
pub mod build;
pub mod check;
pub mod develop;
pub mod diff;
pub mod eval;
pub mod exit;
pub mod explanation;
pub mod gc;
pub mod installable;
pub mod outcome;
pub mod outputs;
pub mod policy;
pub mod print_env;
pub mod process;
pub mod run;
pub mod verify;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::id::{Caller, JobId};
use crate::placement::demand::Demand;
use crate::placement::work::JobWork;
use crate::provenance::envelope::Envelope;
use crate::session::SessionTask;

pub use activities::Activities;
pub use build::{BuildResult, BuildTask, BuiltDerivation, LockedSource, Origin};
pub use check::{CheckResult, CheckTask};
pub use develop::{DevelopTask, Shell};
pub use diff::{DiffResult, DiffTask};
pub use eval::{EvalResult, EvalTask};
pub use exit::ProgramExit;
pub use explanation::{Explanation, FailureKind};
pub use gc::{GcResult, GcTask, RootsResult, RootsTask};
pub use installable::Installable;
pub use outcome::{Failure, JobFailureCause, JobOutcome};
pub use policy::NixPolicy;
pub use print_env::{PrintEnvResult, PrintEnvTask};
pub use run::{RunResult, RunTask};
pub use verify::{VerifyResult, VerifyTask};

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Job {
    /// The job's id; ids sort by the time of creation.
    pub id: JobId,
    /// The caller that requested it.
    pub owner: Caller,
    /// The task.
    pub task: Task,
    /// What it takes of the leaf, and its place in the queue.
    #[serde(default, skip_serializing_if = "Demand::is_usual")]
    pub demand: Demand,
    /// Its part in a work, if another leaf takes it over should this one be lost, or the other way round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Box<JobWork>>,
    /// The phase.
    pub phase: JobPhase,
    /// The cause.
    #[serde(default)]
    pub cause: Cause,
    /// When it was accepted.
    pub queued_at: Timestamp,
    /// When it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// The result, if it succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<JobResult>,
    /// The kind of failure, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<JobFailureCause>,
    /// The reason why it failed, was cancelled or was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why it failed, as far as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub explanation: Option<Explanation>,
    /// The derivations of a build with `keep_going` that were built or were there, although the job failed: at most 32, and
    /// no more than fit into a message. No GC root holds them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partial: Vec<BuiltDerivation>,
    /// The signed statement about what it built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Envelope>,
}

impl Job {
    /// Returns why it failed, was cancelled or was interrupted; `None` if it has not ended so. A job without an
    /// explanation, since an older leafd ran it, gets one from its phase and its error.
    #[must_use]
    pub fn explained(&self) -> Option<Explanation> {
        if let Some(explanation) = &self.explanation {
            return Some(explanation.clone());
        }
        let kind = match (self.phase, self.failure) {
            (JobPhase::Failed, Some(JobFailureCause::TimedOut)) => FailureKind::TimedOut,
            (JobPhase::Failed, _) => FailureKind::Unknown,
            (JobPhase::Cancelled, _) => FailureKind::Cancelled,
            (JobPhase::Interrupted, _) => FailureKind::Interrupted,
            (JobPhase::Standby | JobPhase::Queued | JobPhase::Running | JobPhase::Succeeded, _) => {
                return None;
            }
        };
        Some(Explanation::new(kind, self.error.clone().unwrap_or_default()))
    }
}

/// The task of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Task {
    /// `nix build`.
    Build(BuildTask),
    /// `nix eval`.
    Eval(EvalTask),
    /// `nix print-dev-env`.
    PrintEnv(PrintEnvTask),
    /// `nix build --rebuild`.
    Check(CheckTask),
    /// `nix-store --gc`.
    Gc(GcTask),
    /// `nix-store --query --roots`.
    Roots(RootsTask),
    /// The difference of two closures.
    Diff(DiffTask),
    /// Packages, and a program that is run with them.
    Run(RunTask),
    /// `nix develop`.
    Develop(DevelopTask),
    /// The verification of the running system.
    Verify(VerifyTask),
}

impl Task {
    /// Returns the time limit, in seconds.
    #[must_use]
    pub fn timeout_seconds(&self) -> u32 {
        match self {
            Self::Build(task) => task.timeout_seconds,
            Self::Eval(task) => task.timeout_seconds,
            Self::PrintEnv(task) => task.timeout_seconds,
            Self::Check(task) => task.timeout_seconds,
            Self::Gc(task) => task.timeout_seconds,
            Self::Roots(task) => task.timeout_seconds,
            Self::Diff(task) => task.timeout_seconds,
            Self::Run(task) => task.timeout_seconds,
            Self::Develop(task) => task.timeout_seconds,
            Self::Verify(task) => task.timeout_seconds,
        }
    }

    /// Returns whether it ends with a program under a user of its own.
    #[must_use]
    pub fn has_program(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Develop(_))
    }

    /// Returns the session through which its program's input and output go.
    #[must_use]
    pub fn session(&self) -> Option<&SessionTask> {
        match self {
            Self::Run(task) => task.session.as_ref(),
            Self::Develop(task) => task.session.as_ref(),
            _ => None,
        }
    }

    /// Returns its session, to change it.
    pub(crate) fn session_mut(&mut self) -> Option<&mut SessionTask> {
        match self {
            Self::Run(task) => task.session.as_mut(),
            Self::Develop(task) => task.session.as_mut(),
            _ => None,
        }
    }
}

/// The phase of a job. The last four are final.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobPhase {
    /// Accepted, and waiting until another leaf, which has the same build, is gone. It is never started otherwise.
    Standby,
    /// Accepted, and waiting to be started.
    Queued,
    /// Running.
    Running,
    /// Ended with success.
    Succeeded,
    /// Ended with a failure.
    Failed,
    /// Ended because a caller cancelled it.
    Cancelled,
    /// Ended by a crash of the host or of its runner: its progress is unknown.
    Interrupted,
}

impl JobPhase {
    /// Returns whether the phase is final.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Interrupted
        )
    }
}

/// The result of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum JobResult {
    /// The result of a build.
    Build(BuildResult),
    /// The result of an evaluation.
    Eval(EvalResult),
    /// The result of printing a build environment.
    PrintEnv(PrintEnvResult),
    /// The result of a second build that gave the same.
    Check(CheckResult),
    /// The result of collecting garbage.
    Gc(GcResult),
    /// What holds store paths.
    Roots(RootsResult),
    /// What differs between two closures.
    Diff(DiffResult),
    /// The end of a program.
    Run(RunResult),
    /// The report on the running system.
    Verify(VerifyResult),
}

impl JobResult {
    /// Returns the result of a build, if it is one.
    #[must_use]
    pub fn build(&self) -> Option<&BuildResult> {
        match self {
            Self::Build(result) => Some(result),
            Self::Eval(_)
            | Self::PrintEnv(_)
            | Self::Check(_)
            | Self::Run(_)
            | Self::Gc(_)
            | Self::Roots(_)
            | Self::Diff(_)
            | Self::Verify(_) => None,
        }
    }
}

/// A notification that a job has ended: `job.show` returns its outcome, and an event records it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JobEnded {}

/// The `ce-type` of a running job's [`Progress`].
pub const PROGRESS_TYPE: &str = "cim.leaf.job.progress.v1";
/// The `ce-type` of a piece of a running job's log: plain text.
pub const LOG_TYPE: &str = "cim.leaf.job.log.v1";
/// The `ce-type` of [`JobEnded`].
pub const ENDED_TYPE: &str = "cim.leaf.job.ended.v1";

/// The progress of a running job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// Units of work done (derivations built, paths fetched).
    pub done: u64,
    /// Units of work expected so far; may grow.
    pub expected: u64,
    /// Units in progress.
    pub running: u64,
    /// Units that failed.
    pub failed: u64,
    /// Bytes fetched.
    #[serde(default)]
    pub fetched_bytes: u64,
    /// Bytes expected to be fetched.
    #[serde(default)]
    pub fetch_expected_bytes: u64,
    /// The current activity, such as `building hello-2.12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<String>,
}
