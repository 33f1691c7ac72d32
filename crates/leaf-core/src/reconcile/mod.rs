//! The reconciler's bookkeeping: for which resources steps are in flight, for which desired state, and which observations
//! still count.
//!
//! It is pure, and the same for every kind of [`Resource`]: the caller says what changed ([`Reconciler::want`],
//! [`Reconciler::desired_changed`], [`Reconciler::ended`]) and gets back whether steps are to begin, to be interrupted, or
//! to be tried again and when. What the steps are, and what an observation means, is the resource's own part
//! ([`container`]); the steps are taken by the shell.
//!
//! - One run of steps per resource at a time. A change of the desired state meanwhile marks the run as *outdated*: its
//!   failure says nothing about the new desired state, and other steps follow it.
//! - An observation that began before the last steps ended with their own is *stale*, and is left out.
//! - Steps whose helper went away are tried again after a [`BackOff`], as often as it allows. Nothing else is tried again:
//!   a resource that failed stays so until a caller changes its desired state.

pub mod container;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::ContainerName;
use crate::moment::Moment;

/// Something with a desired and an observed state.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// The container of this name.
    Container(ContainerName),
}

/// Why a step that only waits need not be waited for. What it began continues by itself, and the next plan begins with
/// the observation of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Interruption {
    /// It is to be waited for.
    #[default]
    None,
    /// The desired state has changed: what the step waits for is not desired any more.
    NotDesired,
    /// The daemon stops.
    DaemonStops,
}

/// How often something is tried, and the pauses between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// How often it is tried at most.
    pub tries: u32,
    /// The first pause; each later one is twice as long.
    pub first_pause: Duration,
}

impl BackOff {
    /// Returns the pause after this many tries that failed, or nothing if there were enough.
    #[must_use]
    pub fn pause(self, failed: u32) -> Option<Duration> {
        (failed < self.tries).then(|| self.first_pause * 2u32.pow(failed.saturating_sub(1).min(16)))
    }
}

/// What is to be done about a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Begin to take steps.
    Begin,
    /// Steps are in flight: tell them this.
    Interrupt(Interruption),
    /// Steps are in flight, and know all they need.
    Wait,
}

/// The steps in flight for a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    /// The number of the record after whose commit they begin.
    record: u64,
    /// The desired state has changed since they were planned.
    outdated: bool,
    /// What they were last told.
    interruption: Interruption,
    /// How many runs before it failed because the helper went away.
    failed: u32,
}

/// The bookkeeping.
#[derive(Debug, Clone, Default)]
pub struct Reconciler {
    in_flight: BTreeMap<Resource, Run>,
    /// When the observation began with which the last steps ended, as long as an older one may still arrive.
    observed_at: BTreeMap<Resource, Moment>,
    /// Resources that ran before the host was booted and were not observed since.
    unobserved_since_boot: BTreeSet<Resource>,
}

impl Reconciler {
    /// Takes in that a resource is not in its desired state. `record` is the number of the record that steps would follow.
    pub fn want(&mut self, resource: &Resource, interruption: Interruption, record: u64) -> Order {
        match self.in_flight.get_mut(resource) {
            Some(run) if run.interruption == interruption => Order::Wait,
            Some(run) => {
                run.interruption = interruption;
                Order::Interrupt(interruption)
            }
            None => {
                self.begin(resource.clone(), interruption, record, 0);
                Order::Begin
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

    /// Takes in that the desired state of a resource has changed.
    pub fn desired_changed(&mut self, resource: &Resource) {
        if let Some(run) = self.in_flight.get_mut(resource) {
            run.outdated = true;
        }
    }

    /// Takes in that the steps for a resource have ended, and that observations which began before `observed_at` are stale.
    /// Returns the run that ended; nothing if none was in flight.
    pub fn ended(&mut self, resource: &Resource, observed_at: Moment) -> Option<EndedRun> {
        let run = self.in_flight.remove(resource)?;
        self.observed_at.insert(resource.clone(), observed_at);
        Some(EndedRun {
            outdated: run.outdated,
            failed: run.failed + 1,
        })
    }

    /// Begins the next run after one that failed because the helper went away, and returns the pause before it; nothing if
    /// that has failed often enough.
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

    /// Returns whether steps are in flight for a resource.
    #[must_use]
    pub fn is_in_flight(&self, resource: &Resource) -> bool {
        self.in_flight.contains_key(resource)
    }

    /// Returns whether steps of any resource may be under way, given how many records are committed. Steps that wait for
    /// their record have not begun.
    #[must_use]
    pub fn is_under_way(&self, committed: u64) -> bool {
        self.in_flight.values().any(|run| run.record <= committed)
    }

    /// Takes in that all steps in flight were told this.
    pub fn interrupt_all(&mut self, interruption: Interruption) {
        for run in self.in_flight.values_mut() {
            run.interruption = interruption;
        }
    }

    /// Returns whether an observation that began then says nothing about a resource: steps are in flight, or ended later.
    #[must_use]
    pub fn is_stale(&self, resource: &Resource, began: Moment) -> bool {
        self.is_in_flight(resource) || self.observed_at.get(resource).is_some_and(|last| *last > began)
    }

    /// Takes in that all observations to come began later than this one.
    pub fn observed(&mut self, began: Moment) {
        self.observed_at.retain(|_, last| *last > began);
    }

    /// Takes in that the host was booted while this resource ran.
    pub fn ran_before_boot(&mut self, resource: Resource) {
        self.unobserved_since_boot.insert(resource);
    }

    /// Takes in that a resource was observed. Returns whether it is the first observation since the host was booted of a
    /// resource that ran before.
    pub fn first_since_boot(&mut self, resource: &Resource) -> bool {
        self.unobserved_since_boot.remove(resource)
    }
}

/// A run of steps that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedRun {
    /// Whether the desired state has changed since it was planned: a failure says nothing about the new one.
    pub outdated: bool,
    /// How many runs failed in a row, if this one did.
    failed: u32,
}
