//! Handles changes that can cut the leaf off: their steps by the helper, and what the host has of them.
//!
//! A step is recorded and answered after the helper has carried it out. What is on the host is observed as well, and recorded where the
//! events don't tell of it yet: a witness decides without leafd, and the way back is taken without it.

use crate::cause::Cause;
use crate::command::{ConfirmedChange, HubInPlace, OpenChange};
use crate::decide::{ChangeStep, ObservedChanges, change_armed, change_confirmed, changes_observed};
use crate::id::{Caller, ChangeId, CommandId};
use crate::json::to_json;
use crate::moment::Moment;
use crate::problem::{Problem, ProblemCode};

use super::Engine;
use super::output::Effect;
use super::turn::Turn;
use super::waiting::Accepted;

/// The maximum number of steps that wait for the helper.
const MAX_WAITING: usize = 16;

/// The steps that the helper carries out, and what the host has.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    /// The steps under way, by their numbers.
    steps: Vec<(u64, ChangeStep, Accepted)>,
    /// The number of the last step.
    last: u64,
    /// The last observation, and its time.
    seen: ObservedChanges,
    seen_at: Moment,
}

impl Changes {
    /// Returns the waiting command with this id, if any.
    pub(super) fn find(&mut self, caller: &Caller, id: &CommandId) -> Option<&mut Accepted> {
        let mut all = self.steps.iter_mut().map(|(_, _, accepted)| accepted);
        all.find(|accepted| accepted.record.caller == *caller && accepted.record.id == *id)
    }

    /// Returns whether no step is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.steps.is_empty()
    }

    /// Returns the open change, if there is one.
    pub(super) fn open(&self, now: Moment) -> Option<OpenChange> {
        self.seen.open_change(now.since(self.seen_at))
    }

    /// Returns the hub that is used in the settings' place, if one is.
    pub(super) fn hub_in_place(&self) -> Option<HubInPlace> {
        self.seen.hub.clone().filter(|_| self.seen.is_hub_used)
    }
}

impl Engine {
    /// Has the helper carry out a step.
    pub(super) fn change(&mut self, turn: &mut Turn, mut step: ChangeStep, accepted: Accepted) {
        // The helper arms a change with one id once.
        let of_command = || ChangeId::of_command(&accepted.record.caller, &accepted.record.id);
        match &mut step {
            ChangeStep::Move(order) => order.id = of_command(),
            ChangeStep::Switch(order) => order.id = of_command(),
            ChangeStep::Confirm { .. } => {}
        }
        if self.changes.steps.len() >= MAX_WAITING {
            let detail = format!("{MAX_WAITING} steps of changes are under way; try again");
            let problem = Problem::new(ProblemCode::Overloaded, detail);
            return turn.refuse(accepted.to, &accepted.record.id, problem);
        }
        self.changes.last += 1;
        let number = self.changes.last;
        turn.effects.push(Effect::Change {
            number,
            step: step.clone(),
        });
        self.changes.steps.push((number, step, accepted));
    }

    /// Records and answers a step that was carried out, or answers that it was not.
    pub(super) fn changed(&mut self, turn: &mut Turn, number: u64, outcome: Result<(), Problem>) {
        let steps = &mut self.changes.steps;
        let Some(at) = steps.iter().position(|(of_step, _, _)| *of_step == number) else {
            return;
        };
        let (_, step, accepted) = steps.remove(at);
        if let Err(problem) = outcome {
            let id = &accepted.record.id;
            return turn.answer(accepted.to.iter().copied(), id, &Err(problem.about(id)));
        }
        let (fact, body) = match step {
            ChangeStep::Move(moves) => {
                let open = moves.opened();
                (change_armed(self.state(), &open), to_json(&open))
            }
            ChangeStep::Switch(switch) => {
                let open = switch.opened();
                (change_armed(self.state(), &open), to_json(&open))
            }
            ChangeStep::Confirm { id, caller } => (
                change_confirmed(self.state(), id, Some(caller.to_string())),
                to_json(&ConfirmedChange { id }),
            ),
        };
        self.record(turn, &accepted.cause, fact);
        self.accept(turn, accepted, body);
    }

    /// Records what the events don't tell of yet. While a step is under way its own end does that, so that its event names the
    /// command.
    pub(super) fn changes_seen(&mut self, turn: &mut Turn, seen: ObservedChanges) {
        if self.changes.is_idle() {
            let facts = changes_observed(self.state(), &seen);
            self.record(turn, &Cause::default(), facts);
        }
        self.changes.seen_at = turn.at.moment;
        self.changes.seen = seen;
    }
}
