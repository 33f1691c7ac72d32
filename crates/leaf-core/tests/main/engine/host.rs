//! A model of the host: it carries out host operations, and containers move by themselves.

use std::collections::{BTreeMap, BTreeSet};

use leaf_core::container::{Container, Exit, ForeignContainer, ObservedContainer, ObservedRun};
use leaf_core::event::ContainerStep;
use leaf_core::host_op::{HostOp, RunSpec, Secret};
use leaf_core::id::{ContainerName, StorePath};
use leaf_core::moment::Moment;
use leaf_core::plan::{PlanContext, plan};
use leaf_core::reconcile::Interruption;
use leaf_core::reconcile::container::{Observation, StepFailure, StepsOutcome};

use crate::strategies::{leaf, time};

/// What is on the host.
#[derive(Default)]
pub(super) struct ModelHost {
    pub(super) containers: BTreeMap<ContainerName, ObservedContainer>,
    /// What the helper was told of each container last.
    told: BTreeMap<ContainerName, RunSpec>,
    pub(super) foreign: BTreeMap<ContainerName, ForeignContainer>,
    /// Systems that don't become ready.
    pub(super) broken: BTreeSet<StorePath>,
}

/// How a run of steps goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Each step does what the host does.
    Done,
    /// The helper goes away before this step.
    HelperGone(u8),
    /// This step fails for a reason of its own.
    Fails(u8),
    /// All steps are taken, and the observation afterwards fails.
    Unobserved,
    /// What is interrupted has not even begun.
    Late,
}

impl ModelHost {
    /// Takes the steps for a container, as leafd's executor does.
    pub(super) fn take_steps(
        &mut self,
        container: &Container,
        told: Interruption,
        fate: Fate,
        now: u64,
    ) -> StepsOutcome {
        let name = &container.name;
        let mut outcome = StepsOutcome {
            observed: None,
            failure: None,
            interrupted: false,
        };
        if told == Interruption::DaemonStops && fate == Fate::Late {
            outcome.interrupted = true;
            return outcome;
        }
        let context = PlanContext {
            leaf: leaf(),
            nats_url: "nats://10.233.0.1:4222".to_owned(),
            nats_credentials: Secret::new("creds"),
            ready_timeout_seconds: 30,
            stop_timeout_seconds: 30,
        };
        let ops = plan(container, self.containers.get(name), &context);
        for (number, op) in (0u8..).zip(&ops) {
            let failure = match fate {
                Fate::HelperGone(at) if at == number => Some(("the helper went away", true)),
                Fate::Fails(at) if at == number => Some(("it failed", false)),
                _ => None,
            };
            if let Some((reason, helper_gone)) = failure {
                outcome.failure = Some(StepFailure {
                    step: step_of(op),
                    reason: reason.to_owned(),
                    helper_gone,
                });
                break;
            }
            if told.cuts(op) {
                if fate != Fate::Late {
                    self.begin(op);
                }
                outcome.interrupted = true;
                break;
            }
            if !self.carry_out(op, now) {
                outcome.failure = Some(StepFailure {
                    step: step_of(op),
                    reason: "it was not ready".to_owned(),
                    helper_gone: false,
                });
                break;
            }
        }
        if fate == Fate::Unobserved {
            outcome.failure = outcome.failure.or(Some(StepFailure {
                step: ContainerStep::Look,
                reason: "it can't be observed".to_owned(),
                helper_gone: false,
            }));
            return outcome;
        }
        outcome.observed = Some(Observation {
            began: moment(now),
            container: self.containers.get(name).cloned(),
        });
        outcome
    }

    /// Begins an operation that nobody waits for.
    fn begin(&mut self, op: &HostOp) {
        if let HostOp::StartContainer { name, .. } = op
            && let Some(observed) = self.containers.get_mut(name)
        {
            observed.frozen = false;
            observed.run = ObservedRun::Starting;
        }
    }

    /// Carries out an operation, and returns whether it succeeded.
    fn carry_out(&mut self, op: &HostOp, now: u64) -> bool {
        match op {
            HostOp::CreateContainer {
                name,
                toplevel,
                network,
                options,
                ..
            } => {
                let spec = RunSpec {
                    leaf: leaf(),
                    name: name.clone(),
                    toplevel: toplevel.clone(),
                    network: *network,
                    options: (**options).clone(),
                };
                let before = self.containers.remove(name);
                let observed = ObservedContainer {
                    name: name.clone(),
                    toplevel: Some(toplevel.clone()),
                    digest: Some(spec.digest()),
                    frozen: before.as_ref().is_some_and(|before| before.frozen),
                    run: before.map_or(ObservedRun::Stopped, |before| before.run),
                    oom_kills: 0,
                };
                self.foreign.remove(name);
                self.containers.insert(name.clone(), observed);
                self.told.insert(name.clone(), spec);
                true
            }
            HostOp::StartContainer { name, .. } | HostOp::UpdateContainer { name, .. } => {
                let run = self.run_of(name, now);
                let is_ready = matches!(run, ObservedRun::Running { .. });
                if let Some(observed) = self.containers.get_mut(name) {
                    observed.run = run;
                }
                is_ready
            }
            HostOp::FreezeContainer { name, frozen } => {
                let runs =
                    |observed: &&mut ObservedContainer| matches!(observed.run, ObservedRun::Running { .. });
                match self.containers.get_mut(name).filter(runs) {
                    Some(observed) => observed.frozen = *frozen,
                    None => return false,
                }
                true
            }
            HostOp::StopContainer { name, .. } => {
                if let Some(observed) = self.containers.get_mut(name) {
                    observed.run = ObservedRun::Exited(Exit::Code { code: 0 });
                }
                true
            }
            HostOp::DestroyContainer { name } => {
                let gone = self.containers.remove(name);
                assert!(
                    gone.is_none_or(|gone| matches!(gone.run, ObservedRun::Stopped | ObservedRun::Exited(_))),
                    "{name} is destroyed while it runs"
                );
                self.told.remove(name);
                true
            }
            other => panic!("a plan for a container has no {other:?}"),
        }
    }

    /// How a container runs that is started now.
    fn run_of(&self, name: &ContainerName, now: u64) -> ObservedRun {
        let Some(spec) = self.told.get(name) else {
            return ObservedRun::Stopped;
        };
        if self.broken.contains(&spec.toplevel) {
            return ObservedRun::Exited(Exit::Code { code: 1 });
        }
        ObservedRun::Running {
            leader_pid: 1000,
            started_at: time(now),
            ready_after_ms: 100,
            start_digest: Some(spec.start_digest()),
        }
    }

    /// A container moves by itself: one that starts becomes ready or not, one that runs ends, and is started again as its
    /// policy says.
    pub(super) fn moves(&mut self, name: &ContainerName, exit: Exit, now: u64) {
        let Some(observed) = self.containers.get(name) else {
            return;
        };
        let run = match observed.run {
            ObservedRun::Starting | ObservedRun::Restarting(_) => self.run_of(name, now),
            ObservedRun::Running { .. } => {
                let spec = self.told.get(name);
                if spec.is_some_and(|spec| spec.options.restart.when.covers(Some(exit))) {
                    ObservedRun::Restarting(exit)
                } else {
                    ObservedRun::Exited(exit)
                }
            }
            ObservedRun::Stopped | ObservedRun::Exited(_) => return,
        };
        if let Some(observed) = self.containers.get_mut(name) {
            observed.frozen = false;
            observed.run = run;
        }
    }

    /// Somebody removes a container's files.
    pub(super) fn remove(&mut self, name: &ContainerName) {
        self.containers.remove(name);
    }

    /// Processes of a container are killed for want of memory.
    pub(super) fn out_of_memory(&mut self, name: &ContainerName) {
        if let Some(observed) = self.containers.get_mut(name)
            && matches!(observed.run, ObservedRun::Running { .. })
        {
            observed.oom_kills += 1;
        }
    }

    /// The host is booted: nothing runs.
    pub(super) fn boot(&mut self) {
        for observed in self.containers.values_mut() {
            observed.frozen = false;
            observed.run = ObservedRun::Stopped;
            observed.oom_kills = 0;
        }
    }

    /// Lets all come to rest that moves by itself.
    pub(super) fn rest(&mut self, now: u64) {
        let names: Vec<ContainerName> = self.containers.keys().cloned().collect();
        for name in names {
            let run = self.containers.get(&name).map(|observed| &observed.run);
            if let Some(ObservedRun::Starting | ObservedRun::Restarting(_)) = run {
                self.moves(&name, Exit::Lost, now);
            }
        }
    }
}

/// A point on the monotonic clock of the model.
pub(super) fn moment(now: u64) -> Moment {
    Moment::after_origin(std::time::Duration::from_secs(now))
}

fn step_of(op: &HostOp) -> ContainerStep {
    match op {
        HostOp::StartContainer { .. } => ContainerStep::Start,
        HostOp::UpdateContainer { .. } | HostOp::FreezeContainer { .. } => ContainerStep::Update,
        HostOp::StopContainer { .. } => ContainerStep::Stop,
        HostOp::DestroyContainer { .. } => ContainerStep::Destroy,
        _ => ContainerStep::Create,
    }
}
