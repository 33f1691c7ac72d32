//! Handles jobs: starts them, handles their ends, and cancels those that are no longer needed.

use std::collections::BTreeMap;

use crate::cause::Cause;
use crate::decide::{after_job, needless_jobs};
use crate::event::{Fact, JobAttested, JobCancelled, JobFailed, JobInterrupted, JobStarted, JobSucceeded};
use crate::id::{Caller, JobId};
use crate::job::{Explanation, Failure, FailureKind, Job, JobFailureCause, JobOutcome, JobPhase, Progress};
use crate::provenance::envelope::Envelope;

use super::Engine;
use super::output::Effect;
use super::turn::Turn;

/// The running jobs.
#[derive(Debug, Clone, Default)]
pub(super) struct RunningJobs(BTreeMap<JobId, RunningJob>);

#[derive(Debug, Clone, Default)]
struct RunningJob {
    progress: Option<Progress>,
    /// Whether it is done with Nix, and runs its program.
    runs_program: bool,
    /// The caller that cancelled it.
    cancelled_by: Option<Caller>,
}

impl RunningJobs {
    pub(super) fn progress(&self, id: JobId) -> Option<&Progress> {
        self.0.get(&id)?.progress.as_ref()
    }

    /// Returns the number of jobs that Nix works for.
    pub(super) fn in_places(&self) -> usize {
        self.0.values().filter(|job| !job.runs_program).count()
    }

    pub(super) fn progressed(&mut self, id: JobId, progress: Progress) {
        if let Some(job) = self.0.get_mut(&id) {
            job.progress = Some(progress);
        }
    }
}

impl Engine {
    /// Follows the jobs that the last instance left running, cancels those whose cancellation it had accepted, and fails queued ones
    /// of which the settings have not enough any more: they would wait for ever, and others behind them.
    pub(super) fn resume_jobs(&mut self, turn: &mut Turn) {
        let is_queued = |job: &&Job| job.phase == JobPhase::Queued;
        let rules = &self.settings.jobs;
        let queued = self.state().jobs.values().filter(is_queued);
        let lacking: Vec<(JobId, String)> = queued
            .filter_map(|job| Some((job.id, rules.lacks(&job.demand)?)))
            .collect();
        for (id, error) in lacking {
            let failure = JobFailed {
                id,
                cause: JobFailureCause::Failed,
                explanation: Some(Explanation::new(FailureKind::Policy, error.clone())),
                error,
                partial: Vec::new(),
            };
            let cause = self.cause_of_job(id);
            self.record(turn, &cause, [Fact::from(failure)]);
        }
        let is_running = |job: &&Job| job.phase == JobPhase::Running;
        let running: Vec<Job> = self.state().jobs.values().filter(is_running).cloned().collect();
        for job in running {
            let id = job.id;
            let cancelled_by = self.waiting.last_caller(id).cloned();
            turn.effects.push(Effect::RunJob(Box::new(job)));
            if cancelled_by.is_some() {
                turn.effects.push(Effect::CancelJob(id));
            }
            let running = RunningJob {
                progress: None,
                runs_program: false,
                cancelled_by,
            };
            self.jobs.0.insert(id, running);
        }
    }

    /// Starts queued jobs, by priority and age, as far as there is room for them.
    pub(super) fn start_jobs(&mut self, turn: &mut Turn) {
        if self.is_stopping() {
            return;
        }
        let rules = &self.settings.jobs;
        let startable = rules.startable(self.state(), self.jobs.in_places(), turn.time());
        self.works.startable(&startable);
        for id in startable {
            if self.asks_before_start(turn, id) {
                continue;
            }
            self.jobs.0.insert(id, RunningJob::default());
            let cause = self.cause_of_job(id);
            self.record(turn, &cause, [Fact::from(JobStarted { id })]);
            if let Some(job) = self.state().jobs.get(&id) {
                turn.effects.push(Effect::RunJob(Box::new(job.clone())));
            }
        }
    }

    /// Cancels a running job.
    pub(super) fn cancel_job(&mut self, turn: &mut Turn, id: JobId, by: Caller) {
        if let Some(job) = self.jobs.0.get_mut(&id) {
            job.cancelled_by = Some(by);
            turn.effects.push(Effect::CancelJob(id));
        }
    }

    /// Cancels the builds that no container needs any more, in the name of the caller that changed the desired state.
    pub(super) fn cancel_needless_jobs(&mut self, turn: &mut Turn, by: &Caller) {
        for id in needless_jobs(self.state()) {
            match self.jobs.0.get(&id) {
                Some(running) if running.cancelled_by.is_some() => {}
                Some(_) => self.cancel_job(turn, id, by.clone()),
                None => {
                    let cause = self.cause_of_job(id);
                    let by = by.clone();
                    let reason = None;
                    self.record(turn, &cause, [Fact::from(JobCancelled { id, by, reason })]);
                }
            }
        }
    }

    /// Leaves the place of a job that runs its program to another job.
    pub(super) fn job_runs_program(&mut self, turn: &mut Turn, id: JobId) {
        if let Some(job) = self.jobs.0.get_mut(&id) {
            job.runs_program = true;
            turn.may_start_jobs = true;
        }
    }

    /// Records a job's outcome, and its consequence for the container that waits for it.
    pub(super) fn job_ended(
        &mut self,
        turn: &mut Turn,
        id: JobId,
        outcome: JobOutcome,
        attestation: Option<Box<Envelope>>,
    ) {
        let Some(running) = self.jobs.0.remove(&id) else {
            return;
        };
        let state = self.state();
        let failed = |cause, failure: Failure| {
            let Failure {
                error,
                partial,
                explanation,
            } = failure;
            Fact::from(JobFailed {
                id,
                cause,
                error,
                partial,
                explanation: explanation.map(|explanation| *explanation),
            })
        };
        let (fact, after) = match outcome {
            JobOutcome::Succeeded(result) => {
                let build = result.build();
                let after = build
                    .map(|build| after_job(state, id, Ok(build)))
                    .unwrap_or_default();
                (Fact::from(JobSucceeded { id, result }), after)
            }
            JobOutcome::Failed(failure) => {
                let after = after_job(state, id, Err(&failure.error));
                (failed(JobFailureCause::Failed, failure), after)
            }
            JobOutcome::TimedOut(failure) => {
                let after = after_job(state, id, Err(&failure.error));
                (failed(JobFailureCause::TimedOut, failure), after)
            }
            JobOutcome::Cancelled => {
                let by = running.cancelled_by.unwrap_or_else(Caller::daemon);
                let after = after_job(state, id, Err("the build was cancelled"));
                let reason = None;
                (Fact::from(JobCancelled { id, by, reason }), after)
            }
            JobOutcome::Interrupted(reason) => {
                let after = after_job(state, id, Err(&reason));
                (Fact::from(JobInterrupted { id, reason }), after)
            }
        };
        let cause = self.cause_of_job(id);
        self.record(turn, &cause, [fact]);
        if let Some(envelope) = attestation {
            self.attest(turn, &cause, id, *envelope);
        }
        self.record(turn, &cause, after);
        turn.may_start_jobs = true;
    }

    /// Records the statement about what a job built, if its event fits into a message.
    fn attest(&mut self, turn: &mut Turn, cause: &Cause, id: JobId, envelope: Envelope) {
        let fact = Fact::from(JobAttested { id, envelope });
        if self.history.size_of(turn.time(), cause, &fact) <= self.history.max_event_bytes() {
            self.record(turn, cause, [fact]);
        }
    }

    fn cause_of_job(&self, id: JobId) -> Cause {
        let job = self.state().jobs.get(&id);
        job.map(|job| job.cause.clone()).unwrap_or_default()
    }
}
