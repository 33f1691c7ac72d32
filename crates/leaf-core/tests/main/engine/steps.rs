//! How leafd's executor takes steps on the model of the host, and where they can fail.

use leaf_core::container::Container;
use leaf_core::event::ContainerStep;
use leaf_core::host_op::HostOp;
use leaf_core::moment::Moment;
use leaf_core::plan::plan;
use leaf_core::reconcile::Interruption;
use leaf_core::reconcile::container::{Observation, StepFailure, StepsOutcome};

use crate::model_host::{ModelHost, plan_context};

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
        let ops = plan(container, self.containers.get(name), &plan_context());
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
