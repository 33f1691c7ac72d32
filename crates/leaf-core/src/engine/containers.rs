//! Handles containers: observations, the ends of steps, and the start of steps.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::cause::Cause;
use crate::container::{Container, ContainerPhase, DesiredRun, ObservedContainer, ObservedRun};
use crate::decide::Target;
use crate::event::{ContainerFailed, ContainerReverted, ContainerStep, Fact};
use crate::id::ContainerName;
use crate::moment::Moment;
use crate::plan::{after_early_start, observe, try_again};
use crate::reconcile::container::{HELPER_GONE, StepsOutcome, is_stuck};
use crate::reconcile::{Interruption, NextAction, Resource};

use super::Engine;
use super::input::Scope;
use super::output::{Effect, Immediate};
use super::turn::Turn;

/// A bound on the facts that follow from one observation in sequence: created, and started.
const FACTS_IN_A_ROW: usize = 4;

impl Engine {
    pub(super) fn containers_observed(
        &mut self,
        turn: &mut Turn,
        began: Moment,
        scope: &Scope,
        observed: &BTreeMap<ContainerName, ObservedContainer>,
    ) {
        let counts = |name: &&ContainerName| {
            let resource = || Resource::Container((*name).clone());
            scope.contains(name) && !self.reconciler.is_stale(&resource(), began)
        };
        let names: Vec<ContainerName> = self.state().containers.keys().filter(counts).cloned().collect();
        // Observations arrive in the order of their beginnings.
        self.reconciler.observed(began);
        for name in names {
            self.take_in(turn, &name, observed.get(&name));
        }
    }

    /// Records the facts that an observation adds to a container's history.
    fn take_in(&mut self, turn: &mut Turn, name: &ContainerName, observed: Option<&ObservedContainer>) {
        turn.touched.insert(Target::Container(name.clone()));
        for _ in 0..FACTS_IN_A_ROW {
            let Some(container) = self.history.state().containers.get(name) else {
                break;
            };
            let mut facts = observe(container, observed, self.history.leaf());
            // A container that systemd started at boot, before the leaf ran, and that failed is tried once more.
            if let Some(observed) = observed.filter(|observed| observed.run != ObservedRun::Starting)
                && self
                    .reconciler
                    .ends_early_start(&Resource::Container(name.clone()))
            {
                facts.extend(after_early_start(container, observed));
            }
            if facts.is_empty() {
                break;
            }
            // A container's own actions have no command as their cause.
            let cause = if container.phase.is_moving() {
                container.cause.clone()
            } else {
                Cause::default()
            };
            self.record(turn, &cause, facts);
        }
    }

    pub(super) fn steps_ended(&mut self, turn: &mut Turn, name: &ContainerName, outcome: StepsOutcome) {
        let resource = Resource::Container(name.clone());
        // Without an observation, pending observations may have begun before the last step.
        let observed_at = outcome
            .observed
            .as_ref()
            .map_or(turn.at.moment, |observation| observation.began);
        let Some(run) = self.reconciler.ended(&resource, observed_at) else {
            return;
        };
        let is_renewal = self.renewals.ended(name);
        match outcome.given {
            Some(given) => self.renewals.given(name, given),
            None if is_renewal => self.renewals.failed(name, turn.at.moment),
            None => {}
        }
        turn.touched.insert(Target::Container(name.clone()));
        let Some(container) = self.state().containers.get(name) else {
            return;
        };
        let before = container.phase;
        if is_renewal {
            // Nothing else was tried, so nothing else can have failed.
            if let Some(observation) = outcome.observed {
                self.take_in(turn, name, observation.container.as_ref());
            }
            return;
        }
        match (outcome.failure, outcome.observed) {
            (Some(failure), _) if !run.outdated => {
                if failure.helper_gone && !self.is_stopping() {
                    let interruption = Interruption::of(container.desired.run);
                    let (reconciler, record) = (&mut self.reconciler, turn.record);
                    if let Some(pause) = reconciler.retry(&resource, run, HELPER_GONE, interruption, record) {
                        self.take_steps(turn, name, pause);
                        return;
                    }
                }
                self.step_failed(turn, name, failure.step, failure.reason);
            }
            (failure, Some(observation)) => {
                let observed = observation.container.as_ref();
                self.take_in(turn, name, observed);
                if run.outdated || outcome.interrupted || failure.is_some() {
                    return;
                }
                let container = self.state().containers.get(name);
                let stuck = container.and_then(|container| is_stuck(container, before, observed));
                if let Some(reason) = stuck {
                    self.step_failed(turn, name, ContainerStep::Look, reason);
                }
            }
            // Its state is unknown.
            (_, None) => {}
        }
    }

    /// Records that a step failed. A container whose start may be the one that systemd had begun as the host booted is
    /// tried once more; of the others, one that has a system to revert to is reverted.
    fn step_failed(&mut self, turn: &mut Turn, name: &ContainerName, step: ContainerStep, reason: String) {
        let Some(container) = self.history.state().containers.get(name) else {
            return;
        };
        let cause = container.cause.clone();
        let resource = Resource::Container(name.clone());
        let next = if step == ContainerStep::Start && self.reconciler.ends_early_start(&resource) {
            Some(try_again(container))
        } else {
            container.desired.fallback.clone().map(|toplevel| {
                Fact::from(ContainerReverted {
                    name: name.clone(),
                    toplevel,
                    reason: format!("{step}: {reason}"),
                })
            })
        };
        let failed = Fact::from(ContainerFailed {
            name: name.clone(),
            step,
            reason,
        });
        self.record(turn, &cause, [failed].into_iter().chain(next));
    }

    /// Begins steps for a container that is not in its desired state, or interrupts those in flight.
    pub(super) fn reconcile(&mut self, turn: &mut Turn, name: &ContainerName) {
        let is_moving = |container: &&Container| container.phase.is_moving();
        let Some(container) = self.history.state().containers.get(name).filter(is_moving) else {
            return;
        };
        if self.is_stopping() {
            return;
        }
        let resource = Resource::Container(name.clone());
        let interruption = Interruption::of(container.desired.run);
        match self.reconciler.reconcile(&resource, interruption, turn.record) {
            NextAction::Begin => self.take_steps(turn, name, Duration::ZERO),
            NextAction::Interrupt(interruption) => turn.effects.push(Effect::Interrupt {
                resource,
                interruption,
            }),
            NextAction::Wait => {}
        }
    }

    fn take_steps(&self, turn: &mut Turn, name: &ContainerName, after: Duration) {
        if let Some(container) = self.state().containers.get(name) {
            turn.effects.push(Effect::TakeSteps {
                container: Box::new(container.clone()),
                after,
                renew: self.renewals.is_due(name, turn.time()),
            });
        }
    }

    // ---- credentials -----------------------------------------------------------------------------------------

    /// Begins the renewal of the credentials of the container that is next, if one is due.
    pub(super) fn renew_credentials(&mut self, turn: &mut Turn) {
        if self.look_again_after.is_none() || self.is_stopping() {
            self.look_again_after = None;
            return;
        }
        let containers = self.history.state().containers.values();
        let reconciler = &self.reconciler;
        let is_free = |container: &&Container| {
            keeps_credentials(container)
                && !reconciler.is_in_flight(&Resource::Container(container.name.clone()))
        };
        let names = containers.filter(is_free).map(|container| &container.name);
        let look = self.renewals.look(names, turn.time(), turn.at.moment);
        self.look_again_after = Some(look.again_after);
        let container = look
            .renew
            .and_then(|name| self.state().containers.get(&name).cloned());
        let Some(container) = container else { return };
        let resource = Resource::Container(container.name.clone());
        // It waits for no record.
        self.reconciler
            .reconcile(&resource, Interruption::of(container.desired.run), 0);
        turn.now.push(Immediate::RenewCredentials(Box::new(container)));
    }
}

/// Returns whether a container is given new credentials while it is left alone: it runs, or systemd may start it. Steps see to those
/// of one that they start.
fn keeps_credentials(container: &Container) -> bool {
    container.desired.run == DesiredRun::Running
        && container.desired.toplevel.is_some()
        && !container.phase.is_moving()
        && container.phase != ContainerPhase::Building
}
