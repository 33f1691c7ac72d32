//! The loop's part that takes in what the host shows: hardware, containers, jobs.

use std::collections::btree_map::Entry;

use leaf_core::cause::Cause;
use leaf_core::command::RescanReport;
use leaf_core::container::{ObservedContainer, ObservedRun};
use leaf_core::decide::{after_job, needless_jobs};
use leaf_core::diff::changes;
use leaf_core::event::{
    ContainerFact, ContainerFailed, ContainerReverted, ContainerStep, Fact, HardwareFact, JobCancelled,
    JobFailed, JobInterrupted, JobStarted, JobSucceeded,
};
use leaf_core::hardware::Inventory;
use leaf_core::id::{Caller, ContainerName, DeviceId, JobId};
use leaf_core::job::{JobFailureCause, JobOutcome, JobPhase, JobResult};
use leaf_core::plan::{after_early_start, observe};
use leaf_core::problem::{Problem, ProblemCode};

use crate::input::Effect;
use crate::main_loop::{MainLoop, Target, Waiter, to_body};
use crate::steps::Taken;

impl MainLoop {
    pub(crate) fn handle_hardware(&mut self, seen: Result<Inventory, String>, rescan: u64) {
        let facts = match &seen {
            Ok(inventory) => changes(self.ledger.state(), inventory),
            Err(error) => {
                tracing::error!(error, "the look at the hardware failed");
                Vec::new()
            }
        };
        let reply = match seen {
            Ok(inventory) => {
                let ids =
                    |kind: fn(&Fact) -> Option<DeviceId>| facts.iter().filter_map(kind).collect::<Vec<_>>();
                Ok(to_body(&RescanReport {
                    devices: inventory.devices.len() as u64,
                    appeared: ids(|f| {
                        if let Fact::Hardware(HardwareFact::Appeared(f)) = f {
                            Some(f.device.id.clone())
                        } else {
                            None
                        }
                    }),
                    changed: ids(|f| {
                        if let Fact::Hardware(HardwareFact::Changed(f)) = f {
                            Some(f.device.id.clone())
                        } else {
                            None
                        }
                    }),
                    vanished: ids(|f| {
                        if let Fact::Hardware(HardwareFact::Vanished(f)) = f {
                            Some(f.id.clone())
                        } else {
                            None
                        }
                    }),
                }))
            }
            Err(error) => Err(Problem::new(ProblemCode::Failed, error)),
        };
        let waiting = self.waiting.remove(&Target::Hardware).unwrap_or_default();
        let (answered, waiting): (Vec<Waiter>, Vec<Waiter>) = waiting
            .into_iter()
            .partition(|waiter| waiter.generation <= rescan || waiter.generation == u64::MAX);
        if !waiting.is_empty() {
            self.waiting.insert(Target::Hardware, waiting);
        }
        let cause = answered
            .last()
            .map(|waiter| waiter.cause.clone())
            .unwrap_or_default();
        self.record(&cause, facts, Vec::new(), Vec::new());
        for waiter in answered {
            self.finish(waiter, reply.clone());
        }
    }

    /// Adds to the state what a look at the host says of a container, and answers those who wait for it.
    pub(crate) fn take_in(&mut self, name: &ContainerName, observed: Option<&ObservedContainer>) {
        // A fact may lead to the next: created, and started.
        for _ in 0..4 {
            let Some(container) = self.ledger.state().containers.get(name) else {
                break;
            };
            let mut facts = observe(container, observed, self.ledger.leaf());
            // One that systemd started with the host, before the leaf was there, and that failed is tried once more.
            if let Some(observed) = observed.filter(|seen| seen.run != ObservedRun::Starting)
                && self.booting.remove(name)
            {
                facts.extend(after_early_start(container, observed));
            }
            if facts.is_empty() {
                break;
            }
            // What a container does by itself has no cause but itself.
            let cause = if container.phase.is_moving() {
                container.cause.clone()
            } else {
                Cause::default()
            };
            self.record(&cause, facts, Vec::new(), Vec::new());
        }
        let moving = self
            .ledger
            .state()
            .containers
            .get(name)
            .is_some_and(|c| c.phase.is_moving());
        if moving && !self.in_steps.has(name) {
            self.ledger.after(vec![Effect::Reconcile(name.clone())]);
        }
        self.settle(&Target::Container(name.clone()));
    }

    pub(crate) fn handle_reconciled(&mut self, name: &ContainerName, generation: u64, taken: Taken) {
        let observed = taken.observed.as_ref();
        let Some(container) = self.ledger.state().containers.get(name) else {
            return;
        };
        let current = container.desired.generation == generation;
        let before = container.phase;
        match taken.failure {
            Some((step, error)) if current => {
                tracing::warn!(%name, %step, error = &error as &dyn std::error::Error, "a step did not work");
                self.step_failed(name, step, error.reason);
            }
            _ => {
                self.take_in(name, observed);
                let stuck =
                    self.ledger.state().containers.get(name).is_some_and(|c| {
                        current && !taken.cut_short && c.phase.is_moving() && c.phase == before
                    });
                if stuck {
                    let reason = match observed.map(|o| &o.run) {
                        Some(ObservedRun::Exited(exit)) => {
                            format!("it ended right after it was ready: {exit}")
                        }
                        run => format!("the host does not show what was done: {run:?}"),
                    };
                    self.step_failed(name, ContainerStep::Look, reason);
                }
            }
        }
    }

    /// Records that a step did not work. A container that has a system to go back to does that.
    fn step_failed(&mut self, name: &ContainerName, step: ContainerStep, reason: String) {
        let Some(container) = self.ledger.state().containers.get(name) else {
            return;
        };
        let cause = container.cause.clone();
        let mut facts = vec![Fact::from(ContainerFailed {
            name: name.clone(),
            step,
            reason: reason.clone(),
        })];
        let mut effects = Vec::new();
        if let Some(toplevel) = &container.desired.fallback {
            facts.push(Fact::from(ContainerReverted {
                name: name.clone(),
                toplevel: toplevel.clone(),
                reason: format!("{step}: {reason}"),
            }));
            effects.push(Effect::Reconcile(name.clone()));
        }
        self.record(&cause, facts, Vec::new(), effects);
        self.settle(&Target::Container(name.clone()));
    }

    fn cause_of_job(&self, id: JobId) -> Cause {
        self.ledger
            .state()
            .jobs
            .get(&id)
            .map(|job| job.cause.clone())
            .unwrap_or_default()
    }

    pub(crate) fn start_jobs(&mut self) {
        let room = self.settings.nix.max_jobs.saturating_sub(self.running.len());
        if self.stopping.is_some() || room == 0 {
            return;
        }
        let next: Vec<JobId> = self
            .ledger
            .state()
            .jobs
            .values()
            .filter(|job| job.phase == JobPhase::Queued)
            .map(|job| job.id)
            .take(room)
            .collect();
        for id in next {
            self.running.insert(id, None);
            let cause = self.cause_of_job(id);
            self.record(
                &cause,
                vec![Fact::from(JobStarted { id })],
                Vec::new(),
                vec![Effect::RunJob(id)],
            );
        }
    }

    /// Ends the builds that nobody needs any more, in the name of whoever made them so.
    pub(crate) fn cancel_needless_jobs(&mut self, by: &Caller) {
        for id in needless_jobs(self.ledger.state()) {
            if self.running.contains_key(&id) {
                if let Entry::Vacant(free) = self.cancelling.entry(id) {
                    free.insert(by.clone());
                    self.ledger.after(vec![Effect::CancelJob(id)]);
                }
                continue;
            }
            let cause = self.cause_of_job(id);
            let cancelled = Fact::from(JobCancelled { id, by: by.clone() });
            self.record(&cause, vec![cancelled], Vec::new(), vec![Effect::TellJobEnd(id)]);
            self.settle(&Target::Job(id));
        }
    }

    pub(crate) fn handle_job_end(&mut self, id: JobId, outcome: JobOutcome) {
        self.running.remove(&id);
        self.workers.job_ended(id);
        let by = self.cancelling.remove(&id);
        let state = self.ledger.state();
        let failed = |id, cause, error| JobFailed { id, cause, error };
        let (fact, after) = match outcome {
            JobOutcome::Succeeded(result) => {
                let JobResult::Build(build) = &result;
                let after = after_job(state, id, Ok(build));
                (Fact::from(JobSucceeded { id, result }), after)
            }
            JobOutcome::Failed(error) => {
                let after = after_job(state, id, Err(&error));
                (Fact::from(failed(id, JobFailureCause::Failed, error)), after)
            }
            JobOutcome::TimedOut(error) => {
                let after = after_job(state, id, Err(&error));
                (Fact::from(failed(id, JobFailureCause::TimedOut, error)), after)
            }
            JobOutcome::Cancelled => {
                let by = by.unwrap_or_else(|| Caller::new("leafd").expect("a caller"));
                (
                    Fact::from(JobCancelled { id, by }),
                    after_job(state, id, Err("the build was cancelled")),
                )
            }
            JobOutcome::Interrupted(reason) => {
                let after = after_job(state, id, Err(&reason));
                (Fact::from(JobInterrupted { id, reason }), after)
            }
        };
        let built: Vec<Effect> = after
            .iter()
            .filter_map(|fact| match fact {
                Fact::Container(ContainerFact::Built(built)) => Some(Effect::Reconcile(built.name.clone())),
                _ => None,
            })
            .collect();
        let mut facts = vec![fact];
        facts.extend(after);
        let mut effects = built;
        effects.extend([Effect::TellJobEnd(id), Effect::StartJobs]);
        let cause = self.cause_of_job(id);
        self.record(&cause, facts, Vec::new(), effects);
        self.settle(&Target::Job(id));
        self.settle_containers();
    }
}
