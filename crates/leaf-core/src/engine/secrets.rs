//! Handles secrets: their changes on the host, one after the other for each secret, and what the host has of them.
//!
//! A command is recorded before the helper makes its change, and its facts and outcome after that. If the daemon ends in between, the
//! first observation of the next instance records what is on the host, and so says whether the change was made. One that was made has
//! its outcome and is not made again; one that was not is made if it is sent again.

use std::collections::{BTreeMap, VecDeque};

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use crate::aggregate::Aggregate;
use crate::cause::Cause;
use crate::command::{CommandRecord, RemovedSecret};
use crate::decide::{SecretChange, secret_changed, secrets_observed};
use crate::host_op::StoredSecret;
use crate::id::{Caller, CommandId, SecretName, decode_token};
use crate::json::to_json;
use crate::problem::{Problem, ProblemCode};
use crate::state::State;

use super::Engine;
use super::output::Effect;
use super::turn::Turn;
use super::waiting::Accepted;

/// The maximum number of changes that wait, each with its age file.
const MAX_WAITING: usize = 128;

/// A command whose change the last instance may have made.
#[derive(Debug, Clone)]
struct Left {
    accepted: Accepted,
    name: SecretName,
    /// The SHA-256 of the age file; `None` of a command that removes the secret.
    digest: Option<String>,
}

/// The changes of secrets that are being made, or wait for their turn.
#[derive(Debug, Clone, Default)]
pub(super) struct SecretChanges {
    /// Of each secret the changes in order, of which the first is being made.
    lines: BTreeMap<SecretName, VecDeque<(SecretChange, Accepted)>>,
    /// The number of changes that have begun or ended. An observation that began at another number is stale.
    moves: u64,
    /// Whether the host must be observed once no change is being made.
    observe: bool,
    /// Whether it is being observed. That may take long, while the helper is away.
    observing: bool,
    /// What the last instance left. No change of these secrets begins before an observation gives the outcomes.
    left: Vec<Left>,
    /// Those of them that were not made: the same command may come again.
    not_made: Vec<CommandRecord>,
}

impl SecretChanges {
    /// Returns the changes that the last instance did not finish, and the records that are of no such change.
    pub(super) fn of_last_run(unfinished: Vec<CommandRecord>, state: &State) -> (Self, Vec<CommandRecord>) {
        let (mut changes, mut others) = (Self::default(), Vec::new());
        for record in unfinished {
            let target = record.target.as_deref().and_then(target_of);
            let readable = target.filter(|(name, _)| state.raw_entry_of(Aggregate::Secret(name)).is_none());
            match readable {
                Some((name, digest)) => changes.left.push(Left {
                    accepted: Accepted::of_last_run(record),
                    name,
                    digest,
                }),
                None => others.push(record),
            }
        }
        (changes, others)
    }

    /// Returns whether the last instance had this command, and may not have made, or has not made, its change. Then it goes on as if it
    /// came for the first time, unless it waits already.
    pub(super) fn takes_again(&mut self, record: &CommandRecord) -> bool {
        if self.find(&record.caller, &record.id).is_some() {
            return false;
        }
        let left = self.left.iter().map(|left| &left.accepted.record);
        left.chain(&self.not_made).any(|other| is_same(other, record))
    }

    /// Returns the waiting command with this id, if any.
    pub(super) fn find(&mut self, caller: &Caller, id: &CommandId) -> Option<&mut Accepted> {
        let mut all = self.lines.values_mut().flatten().map(|(_, accepted)| accepted);
        all.find(|accepted| accepted.record.caller == *caller && accepted.record.id == *id)
    }

    /// Returns whether no change is being made.
    pub(super) fn is_idle(&self) -> bool {
        self.lines.keys().all(|name| self.is_held(name))
    }

    /// Returns whether changes of a secret wait for an observation.
    fn is_held(&self, name: &SecretName) -> bool {
        self.left.iter().any(|left| left.name == *name)
    }
}

fn is_same(one: &CommandRecord, other: &CommandRecord) -> bool {
    one.caller == other.caller && one.id == other.id && one.fingerprint == other.fingerprint
}

/// Returns the stored form of what a command waits for: the key of the secret's entry, and the digest of the age file that it sets.
fn key_of(change: &SecretChange) -> String {
    let key = Aggregate::Secret(change.name()).key();
    match change {
        SecretChange::Set { age, .. } => {
            let digest = HEXLOWER.encode(&Sha256::digest(age.expose().as_bytes()));
            format!("{key}.{digest}")
        }
        SecretChange::Remove { .. } => key,
    }
}

/// Parses the result of [`key_of`].
fn target_of(key: &str) -> Option<(SecretName, Option<String>)> {
    let rest = key.strip_prefix("secret.")?;
    let (name, digest) = match rest.split_once('.') {
        Some((name, digest)) => (name, Some(digest.to_owned())),
        None => (rest, None),
    };
    Some((SecretName::new(decode_token(name)?).ok()?, digest))
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
        self.secrets
            .not_made
            .retain(|other| !is_same(other, &accepted.record));
        let name = change.name().clone();
        let line = self.secrets.lines.entry(name.clone()).or_default();
        line.push_back((change, accepted));
        if line.len() == 1 {
            self.begin_change(turn, &name);
        }
    }

    fn begin_change(&mut self, turn: &mut Turn, name: &SecretName) {
        if self.secrets.is_held(name) {
            return;
        }
        let line = self.secrets.lines.get_mut(name);
        if let Some((change, accepted)) = line.and_then(VecDeque::front_mut) {
            accepted.record.target = Some(key_of(change));
            turn.keep(accepted.record.clone());
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
                self.finish(turn, accepted, Err(problem));
                // The helper may have gone away after it had made the change.
                self.secrets.observe = true;
            }
        }
        self.begin_change(turn, name);
        self.observe_secrets_if_due(turn);
    }

    /// Has the host's secrets observed, once no change is being made. Where that can't be, what the last instance left has failed.
    pub(super) fn observe_secrets(&mut self, turn: &mut Turn) {
        match &self.settings.capabilities.secrets {
            Ok(()) => {
                self.secrets.observe = true;
                self.observe_secrets_if_due(turn);
            }
            Err(why) => {
                let problem = Problem::new(ProblemCode::Unsupported, why.clone());
                for left in std::mem::take(&mut self.secrets.left) {
                    self.finish(turn, left.accepted, Err(problem.clone()));
                }
            }
        }
    }

    fn observe_secrets_if_due(&mut self, turn: &mut Turn) {
        if self.secrets.observe && !self.secrets.observing && self.secrets.is_idle() {
            self.secrets.observe = false;
            self.secrets.observing = true;
            let moves = self.secrets.moves;
            turn.effects.push(Effect::ObserveSecrets { moves });
        }
    }

    /// Records in what the host's secrets differ from the state.
    pub(super) fn secrets_seen(&mut self, turn: &mut Turn, moves: u64, found: &[StoredSecret]) {
        self.secrets.observing = false;
        if moves != self.secrets.moves {
            return self.observe_secrets(turn);
        }
        let facts = secrets_observed(self.state(), found);
        self.record(turn, &Cause::default(), facts);
        for left in std::mem::take(&mut self.secrets.left) {
            self.settle_left(turn, left);
        }
        let names: Vec<SecretName> = self.secrets.lines.keys().cloned().collect();
        for name in names {
            self.begin_change(turn, &name);
        }
        self.observe_secrets_if_due(turn);
    }

    /// Answers a command of the last instance, as the secrets show its outcome.
    fn settle_left(&mut self, turn: &mut Turn, left: Left) {
        let Left {
            accepted,
            name,
            digest,
        } = left;
        let line = self.secrets.lines.get_mut(&name);
        let again = line.and_then(|line| {
            let is_it = |(_, other): &(SecretChange, Accepted)| {
                other.record.caller == accepted.record.caller && other.record.id == accepted.record.id
            };
            let place = line.iter().position(is_it)?;
            Some((line, place))
        });
        let body = match (self.history.state().secrets.get(&name), digest) {
            (Some(record), Some(digest)) if record.digest == digest => Some(to_json(record)),
            (None, None) => Some(to_json(&RemovedSecret { name: name.clone() })),
            _ => None,
        };
        match (body, again) {
            (Some(body), Some((line, place))) => {
                let to = line.remove(place).map_or_else(Vec::new, |(_, again)| again.to);
                if line.is_empty() {
                    self.secrets.lines.remove(&name);
                }
                self.finish(turn, Accepted { to, ..accepted }, Ok(body));
            }
            (Some(body), None) => self.finish(turn, accepted, Ok(body)),
            // It is made in its turn.
            (None, Some(_)) => {}
            (None, None) => {
                self.secrets.not_made.push(accepted.record.clone());
                let detail = format!(
                    "leafd ended before this was done: send it again, or see what secret.list says of {name}"
                );
                self.finish(turn, accepted, Err(Problem::new(ProblemCode::Failed, detail)));
            }
        }
    }
}
