//! Accepted commands that wait for their outcome.

use std::collections::BTreeMap;

use crate::aggregate::Aggregate;
use crate::cause::Cause;
use crate::command::{CommandOutcome, CommandRecord, Destroyed, Success, declaration_of};
use crate::container::Container;
use crate::decide::Target;
use crate::id::{Caller, CommandId, ContainerName, JobId, decode_token};
use crate::json::to_json;
use crate::problem::{Problem, ProblemCode};
use crate::reconcile::Resource;
use crate::state::State;

use super::Engine;
use super::input::RequestId;
use super::turn::Turn;

/// Returns the stored form of a target: the key of the state's entry.
fn key_of(target: &Target) -> String {
    match target {
        Target::Container(name) => Aggregate::Container(name).key(),
        Target::Job(id) => Aggregate::Job(id).key(),
        Target::Hardware => "hardware".to_owned(),
    }
}

/// Parses the result of [`key_of`].
fn target_of(key: &str) -> Option<Target> {
    if key == "hardware" {
        return Some(Target::Hardware);
    }
    match key.split_once('.')? {
        ("container", token) => Some(Target::Container(ContainerName::new(decode_token(token)?).ok()?)),
        ("job", id) => Some(Target::Job(id.parse().ok()?)),
        _ => None,
    }
}

/// An accepted command without an outcome.
#[derive(Debug, Clone)]
pub(super) struct Accepted {
    /// Its record for the journal.
    pub(super) record: CommandRecord,
    /// Whether it changes something: queries are not recorded.
    pub(super) is_change: bool,
    /// The cause for the facts that follow from it.
    pub(super) cause: Cause,
    /// The requests to answer: several if it was sent several times, none after a restart.
    pub(super) to: Vec<RequestId>,
}

impl Accepted {
    /// Returns a command that the last instance did not finish.
    pub(super) fn of_last_run(record: CommandRecord) -> Self {
        Self {
            cause: Cause {
                command: Some(record.id.clone()),
                correlation: None,
            },
            record,
            is_change: true,
            to: Vec::new(),
        }
    }
}

/// An accepted command that waits for its target.
#[derive(Debug, Clone)]
pub(super) struct Waiter {
    accepted: Accepted,
    /// The generation or the rescan number that the target must have reached. `None` for a command of an earlier
    /// instance, whose number is not known any more: any settled state is its outcome.
    reached: Option<u64>,
}

/// All waiting commands.
#[derive(Debug, Clone, Default)]
pub(super) struct Waiting {
    waiters: BTreeMap<Target, Vec<Waiter>>,
    /// Commands that wait for a search for a foreign container. They are neither decided nor recorded before its end.
    adopting: BTreeMap<ContainerName, Vec<Accepted>>,
    /// Commands that a newer leafd accepted and this one can't read or answer.
    set_aside: Vec<CommandRecord>,
}

impl Waiting {
    /// Returns the commands that the last instance did not finish, by target.
    pub(super) fn of_last_run(unfinished: Vec<CommandRecord>, state: &State) -> Self {
        let mut waiting = Self::default();
        let is_readable = |target: &Target| match target {
            Target::Container(name) => state.raw_entry_of(Aggregate::Container(name)).is_none(),
            Target::Job(id) => state.raw_entry_of(Aggregate::Job(id)).is_none(),
            Target::Hardware => true,
        };
        for record in unfinished {
            let is_known = declaration_of(&record.noun_verb).is_some();
            let target = record.target.as_deref().and_then(target_of);
            let Some(target) = target.filter(|target| is_known && is_readable(target)) else {
                waiting.set_aside.push(record);
                continue;
            };
            let waiter = Waiter {
                accepted: Accepted::of_last_run(record),
                reached: None,
            };
            waiting.waiters.entry(target).or_default().push(waiter);
        }
        waiting
    }

    /// Returns the waiting command with this id, if any.
    pub(super) fn find(&mut self, caller: &Caller, id: &CommandId) -> Option<&mut Accepted> {
        let waiters = self.waiters.values_mut().flatten().map(|w| &mut w.accepted);
        let adopting = self.adopting.values_mut().flatten();
        waiters
            .chain(adopting)
            .find(|accepted| accepted.record.caller == *caller && accepted.record.id == *id)
    }

    pub(super) fn set_aside(&self) -> &[CommandRecord] {
        &self.set_aside
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = &Target> {
        self.waiters.keys()
    }

    /// Returns the caller of the last command that waits for the end of a job.
    pub(super) fn last_caller(&self, job: JobId) -> Option<&Caller> {
        let waiters = self.waiters.get(&Target::Job(job))?;
        waiters.last().map(|waiter| &waiter.accepted.record.caller)
    }

    /// Returns whether a command waits for work that ends soon: a scan, or a search of the host.
    pub(super) fn is_soon_over(&self) -> bool {
        self.waiters.contains_key(&Target::Hardware) || !self.adopting.is_empty()
    }

    pub(super) fn adopt(&mut self, name: ContainerName, accepted: Accepted) {
        self.adopting.entry(name).or_default().push(accepted);
    }

    pub(super) fn take_adopting(&mut self, name: &ContainerName) -> Vec<Accepted> {
        self.adopting.remove(name).unwrap_or_default()
    }

    /// Takes the commands that a scan answers, given the last rescan that was requested before it.
    pub(super) fn take_scanned(&mut self, rescan: u64) -> Vec<Accepted> {
        let waiters = self.waiters.remove(&Target::Hardware).unwrap_or_default();
        let (done, waiters): (Vec<_>, Vec<_>) = waiters
            .into_iter()
            .partition(|waiter| waiter.reached.is_none_or(|number| number <= rescan));
        self.put(Target::Hardware, waiters);
        done.into_iter().map(|waiter| waiter.accepted).collect()
    }

    fn put(&mut self, target: Target, waiters: Vec<Waiter>) {
        if !waiters.is_empty() {
            self.waiters.insert(target, waiters);
        }
    }
}

impl Engine {
    /// Makes an accepted command, whose facts are recorded, wait for its target.
    pub(super) fn wait(&mut self, turn: &mut Turn, target: Target, accepted: Accepted) {
        let reached = match &target {
            Target::Container(name) => self
                .state()
                .containers
                .get(name)
                .map_or(0, |container| container.desired.generation),
            Target::Job(_) => 0,
            Target::Hardware => self.rescan,
        };
        let record = CommandRecord {
            target: Some(key_of(&target)),
            ..accepted.record
        };
        turn.keep(record.clone());
        turn.touched.insert(target.clone());
        let waiter = Waiter {
            accepted: Accepted { record, ..accepted },
            reached: Some(reached),
        };
        self.waiting.waiters.entry(target).or_default().push(waiter);
    }

    /// Answers the commands that wait for a target, if it has settled.
    pub(super) fn settle(&mut self, turn: &mut Turn, target: &Target) {
        let Some(waiters) = self.waiting.waiters.remove(target) else {
            return;
        };
        let mut still = Vec::new();
        for waiter in waiters {
            match self.outcome(target, &waiter) {
                Some(reply) => self.finish(turn, waiter.accepted, reply),
                None => still.push(waiter),
            }
        }
        self.waiting.put(target.clone(), still);
    }

    /// Returns the outcome of a command; `None` while its target has not settled.
    fn outcome(&self, target: &Target, waiter: &Waiter) -> Option<Result<Vec<u8>, Problem>> {
        match target {
            Target::Container(name) => {
                let in_flight = self.reconciler.is_in_flight(&Resource::Container(name.clone()));
                container_outcome(name, self.state().containers.get(name), waiter, in_flight)
            }
            Target::Job(id) => match self.state().jobs.get(id) {
                Some(job) if !job.phase.is_final() => None,
                Some(job) => Some(Ok(to_json(job))),
                None => Some(Err(Problem::new(
                    ProblemCode::NotFound,
                    format!("job {id} is not remembered any more"),
                ))),
            },
            // The end of a scan answers its commands.
            Target::Hardware => None,
        }
    }

    /// Records the outcome of an accepted command, and answers it.
    pub(super) fn finish(&mut self, turn: &mut Turn, accepted: Accepted, reply: Result<Vec<u8>, Problem>) {
        let Accepted { record, to, .. } = accepted;
        let reply = reply.map_err(|problem| problem.about(&record.id));
        let outcome = match &reply {
            Ok(body) => CommandOutcome {
                body: body.clone(),
                problem: false,
            },
            Err(problem) => CommandOutcome {
                body: to_json(problem),
                problem: true,
            },
        };
        turn.answer(to, &record.id, &reply);
        turn.keep(CommandRecord {
            outcome: Some(outcome),
            ..record
        });
    }
}

/// Returns the outcome of a command about a container; `None` while the container has not settled.
fn container_outcome(
    name: &ContainerName,
    container: Option<&Container>,
    waiter: &Waiter,
    in_flight: bool,
) -> Option<Result<Vec<u8>, Problem>> {
    let declaration = declaration_of(&waiter.accepted.record.noun_verb);
    let success = declaration.map_or(Success::Answered, |declaration| declaration.success);
    let Some(container) = container else {
        return Some(if success == Success::ContainerGone {
            Ok(to_json(&Destroyed { name: name.clone() }))
        } else {
            Err(Problem::new(
                ProblemCode::Conflict,
                format!("container {name} was destroyed in the meantime"),
            ))
        });
    };
    if waiter
        .reached
        .is_some_and(|own| container.desired.generation > own)
    {
        let detail = format!(
            "the desired state of container {name} was changed in the meantime: it is at generation {}",
            container.desired.generation
        );
        return Some(Err(Problem::new(ProblemCode::Conflict, detail)));
    }
    if in_flight || container.phase.is_moving() {
        return None;
    }
    Some(if success.is_met_by(container) {
        Ok(to_json(container))
    } else {
        let why = container
            .error
            .as_deref()
            .unwrap_or("it did not reach its desired state");
        Err(Problem::new(
            ProblemCode::Failed,
            format!("container {name}: {why}"),
        ))
    })
}
