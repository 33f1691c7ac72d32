//! Handles secrets: their changes on the host, one after the other for each secret, and what the host has of them.
//!
//! A change is recorded and answered after the helper has made it. If the daemon ends in between, nothing is recorded: its sender sends
//! it again, and the first observation of the next instance records what is on the host.

use std::collections::{BTreeMap, VecDeque};

use crate::cause::Cause;
use crate::command::RemovedSecret;
use crate::decide::{SecretChange, secret_changed, secrets_observed};
use crate::host_op::StoredSecret;
use crate::id::{Caller, CommandId, SecretName};
use crate::json::to_json;
use crate::problem::{Problem, ProblemCode};

use super::Engine;
use super::output::Effect;
use super::turn::Turn;
use super::waiting::Accepted;

/// The maximum number of changes that wait, each with its age file.
const MAX_WAITING: usize = 128;

/// The changes of secrets that are being made, or wait for their turn.
#[derive(Debug, Clone, Default)]
pub(super) struct SecretChanges {
    /// Of each secret the changes in order, of which the first is being made.
    lines: BTreeMap<SecretName, VecDeque<(SecretChange, Accepted)>>,
    /// The number of changes that have begun or ended. An observation that began at another number is stale.
    moves: u64,
    /// Whether the host must be observed once no change is being made.
    observe: bool,
}

impl SecretChanges {
    /// Returns the waiting command with this id, if any.
    pub(super) fn find(&mut self, caller: &Caller, id: &CommandId) -> Option<&mut Accepted> {
        let mut all = self.lines.values_mut().flatten().map(|(_, accepted)| accepted);
        all.find(|accepted| accepted.record.caller == *caller && accepted.record.id == *id)
    }

    /// Returns whether no change is being made.
    pub(super) fn is_idle(&self) -> bool {
        self.lines.is_empty()
    }
}

impl Engine {
    /// Makes a change after the earlier ones of the same secret.
    pub(super) fn change_secret(&mut self, turn: &mut Turn, change: SecretChange, accepted: Accepted) {
        let waiting: usize = self.secrets.lines.values().map(VecDeque::len).sum();
        if waiting >= MAX_WAITING {
            let detail = format!("{waiting} changes of secrets are waiting; try again");
            let problem = Problem::new(ProblemCode::Overloaded, detail);
            return turn.refuse(accepted.to, &accepted.record.id, problem);
        }
        let name = change.name().clone();
        let line = self.secrets.lines.entry(name.clone()).or_default();
        line.push_back((change, accepted));
        if line.len() == 1 {
            self.begin_change(turn, &name);
        }
    }

    fn begin_change(&mut self, turn: &mut Turn, name: &SecretName) {
        if let Some((change, _)) = self.secrets.lines.get(name).and_then(VecDeque::front) {
            turn.effects.push(Effect::ChangeSecret(change.clone()));
            self.secrets.moves += 1;
        }
    }

    /// Records and answers a change that was made, or answers that it was not.
    pub(super) fn secret_made(
        &mut self,
        turn: &mut Turn,
        name: &SecretName,
        outcome: Result<Option<StoredSecret>, Problem>,
    ) {
        let Some(line) = self.secrets.lines.get_mut(name) else {
            return;
        };
        let Some((_, accepted)) = line.pop_front() else {
            return;
        };
        if line.is_empty() {
            self.secrets.lines.remove(name);
        }
        self.secrets.moves += 1;
        match outcome {
            Ok(stored) => {
                let facts = secret_changed(self.state(), name, stored.as_ref(), &accepted.record.caller);
                self.record(turn, &accepted.cause, facts);
                let body = match self.state().secrets.get(name) {
                    Some(record) if stored.is_some() => to_json(record),
                    _ => to_json(&RemovedSecret { name: name.clone() }),
                };
                self.accept(turn, accepted, body);
            }
            Err(problem) => {
                let id = &accepted.record.id;
                turn.answer(accepted.to.iter().copied(), id, &Err(problem.about(id)));
                // The helper may have gone away after it had made the change.
                self.secrets.observe = true;
            }
        }
        self.begin_change(turn, name);
        self.observe_secrets_if_due(turn);
    }

    /// Has the host's secrets observed, once no change is being made.
    pub(super) fn observe_secrets(&mut self, turn: &mut Turn) {
        self.secrets.observe = self.settings.capabilities.secrets.is_ok();
        self.observe_secrets_if_due(turn);
    }

    fn observe_secrets_if_due(&mut self, turn: &mut Turn) {
        if self.secrets.observe && self.secrets.is_idle() {
            self.secrets.observe = false;
            let moves = self.secrets.moves;
            turn.effects.push(Effect::ObserveSecrets { moves });
        }
    }

    /// Records in what the host's secrets differ from the state.
    pub(super) fn secrets_seen(&mut self, turn: &mut Turn, moves: u64, found: &[StoredSecret]) {
        if moves != self.secrets.moves {
            return self.observe_secrets(turn);
        }
        let facts = secrets_observed(self.state(), found);
        self.record(turn, &Cause::default(), facts);
    }
}
