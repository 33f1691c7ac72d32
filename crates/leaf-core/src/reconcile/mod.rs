//! The reconciler's bookkeeping: the resources with steps in flight, the desired state that the steps are for, and
//! stale observations.
//!
//! It is pure, and the same for every kind of [`Resource`]: the caller reports changes ([`Reconciler::want`],
//! [`Reconciler::desired_changed`], [`Reconciler::ended`]), and learns whether to begin steps, to interrupt them, or to
//! try again and when. The steps themselves and the meaning of an observation are the resource's own part
//! ([`container`]); the shell takes the steps.
//!
//! - There is one run of steps per resource at a time. A change of the desired state in the meantime marks the run as
//!   *outdated*: its failure says nothing about the new desired state, and new steps follow it.
//! - An observation that began before the one with which the last steps ended is *stale*, and is ignored.
//! - Steps whose helper went away are tried again after a [`BackOff`], as often as it allows. Nothing else is tried again:
//!   a failed resource stays failed until a caller changes its desired state.

pub mod container;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::ContainerName;
use crate::moment::Moment;

/// A resource: something with a desired and an observed state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// A container.
    Container(ContainerName),
}

/// The reason to stop waiting for a step that only waits. What the step began continues by itself, and the next plan
/// begins with an observation of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Interruption {
    /// None: the step is waited for.
    #[default]
    None,
    /// The desired state has changed, and no longer includes what the step waits for.
    NotDesired,
    /// The daemon is stopping.
    DaemonStops,
}

/// A back-off: the number of tries, and the pauses between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// The maximum number of tries.
    pub tries: u32,
    /// The first pause; each later one is twice as long.
    pub first_pause: Duration,
}

impl BackOff {
    /// Returns the pause after this many failed tries; `None` if there must be no more.
    #[must_use]
    pub fn pause(self, failed: u32) -> Option<Duration> {
        (failed < self.tries).then(|| self.first_pause * 2u32.pow(failed.saturating_sub(1).min(16)))
    }
}

/// The next action for a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextAction {
    /// Begin steps.
    Begin,
    /// Interrupt the steps in flight.
    Interrupt(Interruption),
    /// Wait for the steps in flight.
    Wait,
}

/// The steps in flight for a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    /// The number of the record whose commit they wait for.
    record: u64,
    /// The desired state has changed since they were planned.
    outdated: bool,
    /// Their last interruption.
    interruption: Interruption,
    /// The number of runs in a row before this one that failed because the helper went away.
    failed: u32,
}

/// The reconciler's bookkeeping.
#[derive(Debug, Clone, Default)]
pub struct Reconciler {
    in_flight: BTreeMap<Resource, Run>,
    /// When the last steps' final observation began, as long as an older observation may still arrive.
    observed_at: BTreeMap<Resource, Moment>,
    /// Resources that systemd may have begun to start before the leaf ran, as the host booted, until the outcome of that
    /// start is known.
    early_starts: BTreeSet<Resource>,
}

impl Reconciler {
    /// Notes that a resource is not in its desired state. `record` is the number of the record that new steps would
    /// follow.
    pub fn reconcile(&mut self, resource: &Resource, interruption: Interruption, record: u64) -> NextAction {
        match self.in_flight.get_mut(resource) {
            Some(run) if run.interruption == interruption => NextAction::Wait,
            Some(run) => {
                run.interruption = interruption;
                NextAction::Interrupt(interruption)
            }
            None => {
                self.begin(resource.clone(), interruption, record, 0);
                NextAction::Begin
            }
        }
    }

    fn begin(&mut self, resource: Resource, interruption: Interruption, record: u64, failed: u32) {
        let run = Run {
            record,
            outdated: false,
            interruption,
            failed,
        };
        self.in_flight.insert(resource, run);
    }

    /// Notes that the desired state of a resource has changed.
    pub fn desired_changed(&mut self, resource: &Resource) {
        // What was begun for the state before no longer matters.
        self.early_starts.remove(resource);
        if let Some(run) = self.in_flight.get_mut(resource) {
            run.outdated = true;
        }
    }

    /// Notes that the steps for a resource have ended, and that observations which began before `observed_at` are
    /// stale. Returns the run that ended; `None` if none was in flight.
    pub fn ended(&mut self, resource: &Resource, observed_at: Moment) -> Option<EndedRun> {
        let run = self.in_flight.remove(resource)?;
        self.observed_at.insert(resource.clone(), observed_at);
        Some(EndedRun {
            outdated: run.outdated,
            failed: run.failed + 1,
        })
    }

    /// Begins the next run after one that failed because the helper went away, and returns the pause before it; `None`
    /// if the back-off is exhausted.
    pub fn retry(
        &mut self,
        resource: &Resource,
        ended: EndedRun,
        back_off: BackOff,
        interruption: Interruption,
        record: u64,
    ) -> Option<Duration> {
        let pause = back_off.pause(ended.failed)?;
        self.begin(resource.clone(), interruption, record, ended.failed);
        Some(pause)
    }

    /// Returns whether a resource has steps in flight.
    #[must_use]
    pub fn is_in_flight(&self, resource: &Resource) -> bool {
        self.in_flight.contains_key(resource)
    }

    /// Returns whether steps of any resource may have begun, given the number of committed records. Steps that wait for
    /// their record have not begun.
    #[must_use]
    pub fn is_under_way(&self, committed: u64) -> bool {
        self.in_flight.values().any(|run| run.record <= committed)
    }

    /// Notes that all steps in flight were interrupted this way.
    pub fn interrupt_all(&mut self, interruption: Interruption) {
        for run in self.in_flight.values_mut() {
            run.interruption = interruption;
        }
    }

    /// Returns whether an observation that began at `began` is stale for a resource: steps are in flight, or ended
    /// later.
    #[must_use]
    pub fn is_stale(&self, resource: &Resource, began: Moment) -> bool {
        self.is_in_flight(resource) || self.observed_at.get(resource).is_some_and(|last| *last > began)
    }

    /// Notes that all observations to come began later than this one.
    pub fn observed(&mut self, began: Moment) {
        self.observed_at.retain(|_, last| *last > began);
    }

    /// Notes that the host was booted, and that systemd may have begun to start a resource before the leaf ran.
    pub fn may_have_started_early(&mut self, resource: Resource) {
        self.early_starts.insert(resource);
    }

    /// Notes that a start of a resource was observed to have ended, in one way or the other. Returns whether systemd may
    /// have begun it before the leaf ran: that is true of the first one since the host was booted.
    pub fn ends_early_start(&mut self, resource: &Resource) -> bool {
        self.early_starts.remove(resource)
    }
}

/// A run of steps that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedRun {
    /// Whether the desired state has changed since it was planned, so that a failure says nothing about the new one.
    pub outdated: bool,
    /// The number of failed runs in a row, if this one failed.
    failed: u32,
}
