//! The container's part of reconciling: interruptions and ends of its steps, and steps without effect.

use std::time::Duration;

use crate::container::{Container, ContainerPhase, DesiredRun, ObservedContainer, ObservedRun};
use crate::event::ContainerStep;
use crate::host_op::HostOp;
use crate::moment::Moment;
use crate::renewal::Given;

use super::{BackOff, Interruption};

/// The back-off of steps during which the helper went away.
pub const HELPER_GONE: BackOff = BackOff {
    tries: 5,
    first_pause: Duration::from_millis(250),
};

/// The outcome of a container's steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepsOutcome {
    /// The observation after the last step; `None` if there was none, or it failed.
    pub observed: Option<Observation>,
    /// The failure, if a step failed.
    pub failure: Option<StepFailure>,
    /// Whether a step was interrupted.
    pub interrupted: bool,
    /// The credentials that the container was given; `None` if none were due, or they could not be given. That is no failure of the
    /// steps, since the former ones may be valid still.
    pub given: Option<Given>,
}

/// An observation of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// When it began.
    pub began: Moment,
    /// The observed container; `None` if the host has no such container.
    pub container: Option<ObservedContainer>,
}

/// The failure of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepFailure {
    /// The step.
    pub step: ContainerStep,
    /// What happened, and what to do about it.
    pub reason: String,
    /// Whether the helper went away during the step, so that its progress is unknown.
    pub helper_gone: bool,
}

impl Interruption {
    /// Returns the interruption for steps in flight when the desired state changes to this one.
    #[must_use]
    pub fn of(desired: DesiredRun) -> Self {
        match desired {
            DesiredRun::Running => Self::None,
            DesiredRun::Stopped | DesiredRun::Absent => Self::NotDesired,
        }
    }

    /// Returns whether the interruption ends the wait for an operation.
    #[must_use]
    pub fn cuts(self, op: &HostOp) -> bool {
        match op {
            HostOp::StartContainer { .. } | HostOp::UpdateContainer { .. } => self != Self::None,
            HostOp::StopContainer { .. } => self == Self::DaemonStops,
            HostOp::PrepareNetwork { .. }
            | HostOp::ReleaseNetwork { .. }
            | HostOp::CreateContainer { .. }
            | HostOp::RenewCredentials { .. }
            | HostOp::FreezeContainer { .. }
            | HostOp::DestroyContainer { .. }
            | HostOp::StartJob { .. }
            | HostOp::StartProgram { .. }
            | HostOp::StopJob { .. }
            | HostOp::RemoveJob { .. }
            | HostOp::StoreSecret { .. }
            | HostOp::RemoveSecret { .. }
            | HostOp::ListSecrets {}
            | HostOp::ArmChange { .. }
            | HostOp::ArmSystem { .. }
            | HostOp::ConfirmChange { .. }
            | HostOp::ShowHostKey {} => false,
        }
    }
}

/// Returns the reason if steps that all succeeded had no effect: the container is still in the phase in which they
/// found it.
#[must_use]
pub fn is_stuck(
    container: &Container,
    before: ContainerPhase,
    observed: Option<&ObservedContainer>,
) -> Option<String> {
    if !container.phase.is_moving() || container.phase != before {
        return None;
    }
    Some(match observed.map(|observed| &observed.run) {
        Some(ObservedRun::Exited(exit)) => format!("it ended right after it became ready: {exit}"),
        run => format!("the host does not show the effect of the steps: {run:?}"),
    })
}
