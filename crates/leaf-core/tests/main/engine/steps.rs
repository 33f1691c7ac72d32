//! How leafd's executor takes steps on the model of the host, and where they can fail.

use leaf_core::container::Container;
use leaf_core::event::ContainerStep;
use leaf_core::host_op::HostOp;
use leaf_core::moment::Moment;
use leaf_core::plan::{plan, plan_renewal};
use leaf_core::reconcile::Interruption;
use leaf_core::reconcile::container::{Observation, StepFailure, StepsOutcome};
use leaf_core::renewal::{CONTAINER_VALID, Given, Life};

use crate::model_host::{ModelHost, plan_context_with};
use crate::strategies::time;

/// What a run of steps is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// The desired state; `renew`: the credentials that the container has must be renewed.
    Desired { renew: bool },
    /// The renewal of its credentials alone.
    Renewal,
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
        of: Of,
        told: Interruption,
        fate: Fate,
        now: u64,
    ) -> StepsOutcome {
        let name = &container.name;
        let mut outcome = StepsOutcome {
            observed: None,
            failure: None,
            interrupted: false,
            given: None,
        };
        if told == Interruption::DaemonStops && fate == Fate::Late {
            outcome.interrupted = true;
            return outcome;
        }
        let observed = self.containers.get(name);
        let ops = match of {
            Of::Desired { renew } => plan(container, observed, &plan_context_with(renew)),
            Of::Renewal => plan_renewal(name, observed, &plan_context_with(true)),
        };
        let mut number = 0u8;
        for op in &ops {
            let is_renewal = matches!(op, HostOp::RenewCredentials { .. });
            if is_renewal && of != Of::Renewal {
                // That it fails is no failure of the steps.
                if !self.renewals_fail {
                    self.carry_out(op, now);
                }
                continue;
            }
            let failure = match fate {
                Fate::HelperGone(at) if at == number => Some(("the helper went away", true)),
                Fate::Fails(at) if at == number => Some(("it failed", false)),
                _ => None,
            };
            number += 1;
            if failure.is_some() && is_renewal {
                break;
            }
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
        let gives = |op: &HostOp| {
            matches!(
                op,
                HostOp::CreateContainer { .. } | HostOp::RenewCredentials { .. }
            )
        };
        if ops.iter().any(gives) && self.credentials.get(name) == Some(&now) {
            outcome.given = Some(Given {
                life: Life::from(time(now), CONTAINER_VALID),
                at_next_start: false,
            });
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
