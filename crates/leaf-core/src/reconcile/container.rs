//! The container's part of reconciling: what interrupts its steps, how they end, and when they failed to help.

use std::time::Duration;

use crate::container::{Container, ContainerPhase, DesiredRun, ObservedContainer, ObservedRun};
use crate::event::ContainerStep;
use crate::host_op::HostOp;
use crate::moment::Moment;

use super::{BackOff, Interruption};

/// How often steps are planned again because the helper went away in the middle of one.
pub const HELPER_GONE: BackOff = BackOff {
    tries: 5,
    first_pause: Duration::from_millis(250),
};

/// How the steps for a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepsOutcome {
    /// The observation after the last step; nothing if there was none, or it failed.
    pub observed: Option<Observation>,
    /// The step that failed.
    pub failure: Option<StepFailure>,
    /// Whether a step was not waited for.
    pub interrupted: bool,
}

/// One observation of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// When it began.
    pub began: Moment,
    /// What it showed; nothing if the host has no such container.
    pub container: Option<ObservedContainer>,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepFailure {
    /// The step.
    pub step: ContainerStep,
    /// What happened, and what to do about it.
    pub reason: String,
    /// Whether the helper went away in the middle, so that it is unknown how far the step came.
    pub helper_gone: bool,
}

impl Interruption {
    /// Returns what a desired state means for steps in flight for another one.
    #[must_use]
    pub fn of(desired: DesiredRun) -> Self {
        match desired {
            DesiredRun::Running => Self::None,
            DesiredRun::Stopped | DesiredRun::Absent => Self::NotDesired,
        }
    }

    /// Returns whether an operation need not be waited for.
    #[must_use]
    pub fn cuts(self, op: &HostOp) -> bool {
        match op {
            HostOp::StartContainer { .. } | HostOp::UpdateContainer { .. } => self != Self::None,
            HostOp::StopContainer { .. } => self == Self::DaemonStops,
            HostOp::PrepareNetwork { .. }
            | HostOp::CreateContainer { .. }
            | HostOp::FreezeContainer { .. }
            | HostOp::DestroyContainer { .. }
            | HostOp::StartJob { .. }
            | HostOp::StopJob { .. }
            | HostOp::RemoveJob { .. } => false,
        }
    }
}

/// Returns why steps that all succeeded did not help, if so: the container is still in the phase in which they found it.
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
        Some(ObservedRun::Exited(exit)) => format!("it ended right after it was ready: {exit}"),
        run => format!("the host does not show what was done: {run:?}"),
    })
}
