//! Decides the commands about secrets. What they change is on the host: the facts follow from what the helper reports.

use std::collections::BTreeMap;

use super::{Decision, Question, Reply, invalid, known, not_found, only};
use crate::aggregate::Aggregate;
use crate::command::secret::{Command, ListedSecret, SecretList};
use crate::container::{Desired, DesiredRun};
use crate::event::{ContainerDesired, Fact, SecretRemoved, SecretSet};
use crate::host_op::{HostOp, Secret, StoredSecret};
use crate::id::{Caller, SecretName};
use crate::problem::{Problem, ProblemCode};
use crate::secret::{self, MAX_FILE_BYTES, MAX_SECRETS, SecretRecord};
use crate::state::State;

/// The first line of an armored age file (<https://age-encryption.org/v1>).
const ARMOR: &str = "-----BEGIN AGE ENCRYPTED FILE-----\n";

/// A change of a secret on the host, which is recorded once the helper has made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretChange {
    /// It is stored.
    Set {
        /// The secret's name.
        name: SecretName,
        /// The armored age file.
        age: Secret,
    },
    /// It is removed.
    Remove {
        /// The secret's name.
        name: SecretName,
    },
}

impl SecretChange {
    /// Returns the secret's name.
    #[must_use]
    pub fn name(&self) -> &SecretName {
        match self {
            Self::Set { name, .. } | Self::Remove { name } => name,
        }
    }

    /// Returns the host operation that makes the change.
    #[must_use]
    pub fn into_op(self) -> HostOp {
        match self {
            Self::Set { name, age } => HostOp::StoreSecret { name, age },
            Self::Remove { name } => HostOp::RemoveSecret { name },
        }
    }
}

pub(super) fn decide(state: &State, command: &Command) -> Result<Decision, Problem> {
    match command {
        Command::Set(c) => {
            check_file(c.age.expose())?;
            if !state.secrets.contains_key(&c.name) && state.secrets.len() >= MAX_SECRETS {
                let detail =
                    format!("the leaf has {MAX_SECRETS} secrets, and can't have more; remove one first");
                return Err(Problem::new(ProblemCode::Overloaded, detail));
            }
            Ok(only(Reply::WhenMade(SecretChange::Set {
                name: c.name.clone(),
                age: c.age.clone(),
            })))
        }
        Command::Remove(c) if !state.secrets.contains_key(&c.name) => Err(not_found(format!(
            "the leaf has no secret {}; secret.list lists all",
            c.name
        ))),
        Command::Remove(c) => Ok(only(Reply::WhenMade(SecretChange::Remove {
            name: c.name.clone(),
        }))),
        Command::List(_) => Ok(only(known(&list(state)))),
        Command::Recipient(_) => Ok(only(Reply::FromHost(Question::Recipient))),
    }
}

/// Refuses what can't be an age file before it goes to the helper, which alone can tell whether it is a right one.
fn check_file(age: &str) -> Result<(), Problem> {
    if age.len() > MAX_FILE_BYTES {
        let detail = format!(
            "the age file has {} bytes, at most {MAX_FILE_BYTES} are allowed",
            age.len()
        );
        return Err(Problem::new(ProblemCode::TooLarge, detail));
    }
    if !age.starts_with(ARMOR) || !age.is_ascii() {
        return Err(invalid(
            "`age` is not an armored age file; `leafctl secret set` makes one, and never send a secret in clear".to_owned(),
        ));
    }
    Ok(())
}

fn list(state: &State) -> SecretList {
    let listed = |secret: &SecretRecord| ListedSecret {
        secret: secret.clone(),
        containers: state
            .containers
            .values()
            .filter(|container| container.desired.options.uses_secret(&secret.name))
            .map(|container| container.name.clone())
            .collect(),
    };
    SecretList {
        secrets: state.secrets.values().map(listed).collect(),
    }
}

/// Returns the facts of a change that the helper has made. `stored` is the stored secret, of one that was set.
#[must_use]
pub fn secret_changed(
    state: &State,
    name: &SecretName,
    stored: Option<&StoredSecret>,
    caller: &Caller,
) -> Vec<Fact> {
    let before = state.secrets.get(name);
    let Some(stored) = stored else {
        let removed = || {
            Fact::from(SecretRemoved {
                name: name.clone(),
                caller: caller.clone(),
            })
        };
        return before.map(|_| removed()).into_iter().collect();
    };
    if before.is_some_and(|before| before.digest == stored.digest) {
        return Vec::new();
    }
    let set = Fact::from(SecretSet {
        name: name.clone(),
        caller: caller.clone(),
        generation: before.map_or(0, |before| before.generation) + 1,
        file_bytes: stored.file_bytes,
        digest: stored.digest.clone(),
        users: stored.users.clone(),
    });
    std::iter::once(set)
        .chain(restarts(state, name, stored, caller))
        .collect()
}

/// Returns the facts by which the containers that a changed secret restarts get the new content: each desired state has the
/// digest of the age file, so that each container is restarted once, whatever happens in between.
fn restarts(state: &State, name: &SecretName, stored: &StoredSecret, caller: &Caller) -> Vec<Fact> {
    let record = SecretRecord {
        name: name.clone(),
        generation: 0,
        file_bytes: stored.file_bytes,
        digest: stored.digest.clone(),
        users: stored.users.clone(),
        set_by: caller.clone(),
        set_at: jiff::Timestamp::UNIX_EPOCH,
    };
    let changed = BTreeMap::from([(name.clone(), record)]);
    // One whose build failed has nothing to run; the next build takes the secrets as they are then.
    let containers = state.containers.values().filter(|c| {
        c.desired.run != DesiredRun::Absent && (c.desired.toplevel.is_some() || c.desired.build_job.is_some())
    });
    containers
        .filter_map(|container| {
            let new = secret::restarting(&changed, &container.name, &container.desired.options);
            let mut desired: Desired = container.desired.clone();
            desired.secrets.extend(new);
            (desired.secrets != container.desired.secrets).then(|| {
                Fact::from(ContainerDesired {
                    name: container.name.clone(),
                    desired,
                    caller: caller.clone(),
                })
            })
        })
        .collect()
}

/// Returns the facts about secrets whose files on the host differ from the state: they were changed by hand, or leafd ended
/// between a change and its record. Files that can't be used are ignored.
#[must_use]
pub fn secrets_observed(state: &State, found: &[StoredSecret]) -> Vec<Fact> {
    let caller = Caller::daemon();
    let is_raw = |name: &SecretName| state.raw_entry_of(Aggregate::Secret(name)).is_some();
    let stored = found
        .iter()
        .filter(|stored| stored.problem.is_none() && !is_raw(&stored.name));
    let set = stored.flat_map(|stored| secret_changed(state, &stored.name, Some(stored), &caller));
    let is_found = |name: &SecretName| found.iter().any(|stored| stored.name == *name);
    let gone = state.secrets.keys().filter(|name| !is_found(name));
    let removed = gone.flat_map(|name| secret_changed(state, name, None, &caller));
    // A container may use several of them: the facts about it are put together.
    let mut desired: BTreeMap<_, ContainerDesired> = BTreeMap::new();
    let mut facts = Vec::new();
    for fact in set.chain(removed) {
        match fact {
            Fact::Container(crate::event::ContainerFact::Desired(fact)) => {
                match desired.get_mut(&fact.name) {
                    Some(before) => before
                        .desired
                        .secrets
                        .extend(fact.desired.secrets.into_iter().filter(|(name, digest)| {
                            state.containers[&fact.name].desired.secrets.get(name) != Some(digest)
                        })),
                    None => drop(desired.insert(fact.name.clone(), fact)),
                }
            }
            fact => facts.push(fact),
        }
    }
    facts.extend(desired.into_values().map(Fact::from));
    facts
}
