//! The loop's part that takes commands: decode, seen before, refused, decide, accept; and the answers of those that wait.

use jiff::Timestamp;
use leaf_bus::serve::{Incoming, Responder};
use leaf_core::cause::Cause;
use leaf_core::command::{
    Command, CommandKind, Destroyed, Disk, JobReport, LeafReport, Success, WhileStuck, declaration_of,
};
use leaf_core::container::{Container, ContainerPhase, ForeignContainer};
use leaf_core::decide::{self, Context, Next, decide, job_accepted};
use leaf_core::event::Fact;
use leaf_core::hardware::DeviceStatus;
use leaf_core::id::{CommandId, ContainerName};
use leaf_core::job::JobPhase;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_journal::{CommandRecord, Outcome as CommandOutcome};
use uuid::Uuid;

use crate::input::{Effect, Question};
use crate::main_loop::{MainLoop, Target, Waiter, to_body};

/// A command on its way from acceptance to its answer.
pub struct Accepted {
    record: CommandRecord,
    cause: Cause,
    responder: Responder,
    /// Whether it changes something or begins a job, and is recorded.
    changes: bool,
}

impl MainLoop {
    pub(crate) fn handle_command(&mut self, incoming: Incoming) {
        let Incoming {
            caller,
            noun,
            verb,
            command_id,
            correlation,
            body,
            responder,
        } = incoming;
        let given = command_id.is_some();
        let id = command_id.unwrap_or_else(|| CommandId::from(Uuid::now_v7()));
        let command = match Command::parse(&noun, &verb, &body) {
            Ok(command) => command,
            Err(problem) => return self.refuse(responder, id, problem),
        };
        let changes = command.kind() != CommandKind::Query;
        let accepted = Accepted {
            cause: Cause {
                command: Some(id.clone()),
                correlation,
            },
            record: CommandRecord {
                caller,
                id,
                noun_verb: format!("{noun}.{verb}"),
                fingerprint: command.fingerprint(),
                accepted_at: Timestamp::now(),
                target: None,
                outcome: None,
            },
            responder,
            changes,
        };
        let accepted = if changes && given {
            match self.unless_seen_before(accepted) {
                Some(accepted) => accepted,
                None => return,
            }
        } else {
            accepted
        };
        if let Some(problem) = self.refuses(&command, changes) {
            return self.refuse(accepted.responder, accepted.record.id, problem);
        }
        let decision = decide(self.ledger.state(), &command, &self.context(&accepted));
        self.decided(decision, accepted);
    }

    /// What a decision on a command needs to know beside the state.
    fn context(&self, accepted: &Accepted) -> Context {
        Context {
            caller: accepted.record.caller.clone(),
            now: accepted.record.accepted_at,
            fresh_id: Uuid::now_v7(),
            runtime: self.runtime,
            pool: self.settings.containers.address_pool,
            max_queued_jobs: self.settings.nix.max_queued_jobs,
            job_timeout_seconds: self.settings.nix.timeout_seconds,
        }
    }

    /// Carries on with a command that was decided, or answers why it is refused.
    fn decided(&mut self, decision: Result<decide::Decision, Problem>, accepted: Accepted) {
        let record = &accepted.record;
        match decision {
            Ok(decision) => {
                if accepted.changes {
                    tracing::info!(command = %record.id, caller = %record.caller, what = record.noun_verb, "accepted");
                }
                self.carry_on(decision, accepted);
            }
            Err(problem) => {
                tracing::info!(command = %record.id, caller = %record.caller, what = record.noun_verb, %problem, "refused");
                // It tells of the state, which may be ahead of the disk.
                let reply = Err(problem.about(&record.id));
                let id = record.id.clone();
                self.ledger.after(vec![Effect::Reply {
                    responder: accepted.responder,
                    id,
                    reply,
                }]);
            }
        }
    }

    /// Goes on with the commands that waited for a look at a container that is not this leaf's.
    pub(crate) fn handle_foreign(
        &mut self,
        name: &ContainerName,
        seen: &Result<Option<ForeignContainer>, Problem>,
    ) {
        for accepted in self.adopting.remove(name).unwrap_or_default() {
            let context = self.context(&accepted);
            let decision = match seen {
                Ok(found) => decide::adopt(self.ledger.state(), name, found.as_ref(), &context),
                Err(problem) => Err(problem.clone()),
            };
            self.decided(decision, accepted);
        }
    }

    /// Returns why a command can't be taken now, whatever it is about.
    fn refuses(&self, command: &Command, changes: bool) -> Option<Problem> {
        if changes {
            let journal = self.ledger.journal();
            let refusal = match command.declaration().disk {
                Disk::Frees => self.guard.refuses_all(journal),
                Disk::Untouched | Disk::Takes => self.guard.refuses(journal),
            };
            refusal.or_else(|| self.workers.can_do(command).err())
        } else if self.ledger.is_stuck() && command.declaration().while_stuck == WhileStuck::Refused {
            // The state in memory is ahead of a disk that takes nothing.
            self.guard.refuses(self.ledger.journal())
        } else {
            self.workers.can_do(command).err()
        }
    }

    /// Records an accepted command, and what comes next.
    fn carry_on(&mut self, decision: decide::Decision, accepted: Accepted) {
        let facts = decision.facts;
        match decision.next {
            Next::Reply(value) => self.answer(facts, accepted, Vec::new(), to_body(&value)),
            Next::ShowLeaf => {
                let body = to_body(&self.report());
                if self.ledger.is_stuck() {
                    self.workers
                        .reply(accepted.responder, accepted.record.id, Ok(body));
                } else {
                    self.answer(facts, accepted, Vec::new(), body);
                }
            }
            Next::ShowJob(id) => {
                let progress = self.running.get(&id).cloned().flatten();
                if let Some(job) = self.ledger.state().jobs.get(&id).cloned() {
                    self.answer(facts, accepted, Vec::new(), to_body(&JobReport { job, progress }));
                }
            }
            Next::Queue(job) => {
                self.answer(
                    facts,
                    accepted,
                    vec![Effect::StartJobs],
                    to_body(&job_accepted(job)),
                );
            }
            Next::Create(name) => {
                let caller = accepted.record.caller.clone();
                // The answer is the container as the facts make it, so they come first.
                self.record(&accepted.cause, facts, vec![accepted.record.clone()], Vec::new());
                if let Some(container) = self.ledger.state().containers.get(&name) {
                    let body = to_body(container);
                    self.answer(
                        Vec::new(),
                        accepted,
                        vec![Effect::StartJobs, Effect::Reconcile(name)],
                        body,
                    );
                }
                self.cancel_needless_jobs(&caller);
            }
            Next::Reconcile(name) => {
                let effects = if facts.is_empty() {
                    Vec::new()
                } else {
                    vec![Effect::Reconcile(name.clone())]
                };
                let caller = accepted.record.caller.clone();
                self.wait(Target::Container(name), facts, accepted, effects);
                self.cancel_needless_jobs(&caller);
            }
            Next::Cancel(job) => {
                let running = self.running.contains_key(&job);
                let effect = if running {
                    Effect::CancelJob(job)
                } else {
                    Effect::TellJobEnd(job)
                };
                if running {
                    self.cancelling.insert(job, accepted.record.caller.clone());
                }
                self.wait(Target::Job(job), facts, accepted, vec![effect]);
                self.settle_containers();
            }
            Next::Rescan => {
                self.rescan += 1;
                self.wait(
                    Target::Hardware,
                    facts,
                    accepted,
                    vec![Effect::LookAtHardware(self.rescan)],
                );
            }
            Next::ReadJobLog(job, offset) => {
                let known = self.ledger.state().jobs.get(&job);
                let ended = known.is_none_or(|job| job.phase.is_final());
                self.ask(accepted, Question::JobLog { job, offset, ended });
            }
            Next::ReadContainerLog(query) => self.ask(accepted, Question::ContainerLog(query)),
            Next::ReadContainerStats(name) => self.ask(accepted, Question::ContainerStats(name)),
            Next::ListContainers(containers) => self.ask(accepted, Question::Containers(containers)),
            Next::Adopt(name) => {
                self.adopting.entry(name.clone()).or_default().push(accepted);
                self.ledger.after(vec![Effect::LookForForeign(name)]);
            }
        }
    }

    /// Has a query answered that only the host can answer.
    fn ask(&mut self, accepted: Accepted, question: Question) {
        self.ledger.after(vec![Effect::Answer {
            responder: accepted.responder,
            id: accepted.record.id,
            question,
        }]);
    }

    /// Records what a command changes along with its answer, which is known; an answer to a query is not recorded.
    fn answer(&mut self, facts: Vec<Fact>, accepted: Accepted, mut effects: Vec<Effect>, body: Vec<u8>) {
        let Accepted {
            record,
            cause,
            responder,
            changes,
        } = accepted;
        effects.push(Effect::Reply {
            responder,
            id: record.id.clone(),
            reply: Ok(body.clone()),
        });
        let outcome = Some(CommandOutcome { body, problem: false });
        let records = if changes {
            vec![CommandRecord { outcome, ..record }]
        } else {
            Vec::new()
        };
        self.record(&cause, facts, records, effects);
    }

    /// Records an accepted command whose answer comes when its target has settled.
    fn wait(&mut self, target: Target, facts: Vec<Fact>, accepted: Accepted, effects: Vec<Effect>) {
        let Accepted {
            record,
            cause,
            responder,
            ..
        } = accepted;
        let record = CommandRecord {
            target: Some(target.key()),
            ..record
        };
        self.record(&cause, facts, vec![record.clone()], effects);
        let generation = match &target {
            Target::Container(name) => self
                .ledger
                .state()
                .containers
                .get(name)
                .map_or(0, |c| c.desired.generation),
            Target::Job(_) => 0,
            Target::Hardware => self.rescan,
        };
        let waiter = Waiter {
            record,
            cause,
            responders: vec![responder],
            generation,
        };
        self.waiting.entry(target.clone()).or_default().push(waiter);
        self.settle(&target);
    }

    /// Answers at once that a command can't be taken, whatever waits for the disk. Nothing is recorded of it.
    fn refuse(&mut self, responder: Responder, id: CommandId, problem: Problem) {
        tracing::info!(command = %id, %problem, "refused");
        let reply = Err(problem.about(&id));
        self.workers.reply(responder, id, reply);
    }

    /// Answers a command that was sent before, or gives it back if it was not.
    fn unless_seen_before(&mut self, accepted: Accepted) -> Option<Accepted> {
        let record = &accepted.record;
        let id = record.id.clone();
        let reused = || {
            let detail = format!(
                "the command id {id} was used for another command in the last 24 hours; choose a new one"
            );
            Err(Problem::new(ProblemCode::CommandIdReused, detail).about(&id))
        };
        let same = |seen: &CommandRecord| seen.caller == record.caller && seen.id == record.id;
        let waiter = self
            .waiting
            .values_mut()
            .flatten()
            .find(|waiter| same(&waiter.record));
        let reply = match waiter {
            Some(waiter) if waiter.record.fingerprint == record.fingerprint => {
                waiter.responders.push(accepted.responder);
                return None;
            }
            Some(_) => reused(),
            None => match self.ledger.command(&record.caller, &record.id) {
                Ok(None) => return Some(accepted),
                Ok(Some(seen)) if seen.fingerprint != record.fingerprint => reused(),
                Ok(Some(CommandRecord { outcome: Some(outcome), .. })) => outcome_to_reply(&outcome),
                Ok(Some(CommandRecord { outcome: None, .. })) => Err(Problem::new(
                    ProblemCode::Conflict,
                    "this command was accepted before, and nothing is known of its end; look at what it was about",
                )
                .about(&id)),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "the journal can't be read just now");
                    let problem = self.guard.refuses(self.ledger.journal()).unwrap_or_else(|| {
                        Problem::new(ProblemCode::Failed, "the journal can't be read just now: see the leaf's log")
                    });
                    self.refuse(accepted.responder, id, problem);
                    return None;
                }
            },
        };
        self.ledger.after(vec![Effect::Reply {
            responder: accepted.responder,
            id,
            reply,
        }]);
        None
    }

    /// Records the end of a command that waited, and answers it.
    pub(crate) fn finish(&mut self, waiter: Waiter, reply: Result<Vec<u8>, Problem>) {
        let Waiter {
            record,
            cause,
            responders,
            ..
        } = waiter;
        let id = record.id.clone();
        let reply = reply.map_err(|problem| problem.about(&id));
        let outcome = match &reply {
            Ok(body) => CommandOutcome {
                body: body.clone(),
                problem: false,
            },
            Err(problem) => {
                tracing::warn!(command = %id, caller = %record.caller, what = record.noun_verb, %problem, "failed");
                CommandOutcome {
                    body: to_body(problem),
                    problem: true,
                }
            }
        };
        let effects = responders
            .into_iter()
            .map(|responder| Effect::Reply {
                responder,
                id: id.clone(),
                reply: reply.clone(),
            })
            .collect();
        self.record(
            &cause,
            Vec::new(),
            vec![CommandRecord {
                outcome: Some(outcome),
                ..record
            }],
            effects,
        );
    }

    /// Answers those who wait for a target, if it has settled.
    pub(crate) fn settle(&mut self, target: &Target) {
        let Some(waiters) = self.waiting.remove(target) else {
            return;
        };
        let mut still = Vec::new();
        for waiter in waiters {
            let reply = match target {
                Target::Container(name) => container_reply(
                    name,
                    self.ledger.state().containers.get(name),
                    &waiter,
                    self.in_steps.has(name),
                ),
                Target::Job(id) => match self.ledger.state().jobs.get(id) {
                    Some(job) if !job.phase.is_final() => None,
                    Some(job) => Some(Ok(to_body(job))),
                    None => Some(Err(Problem::new(
                        ProblemCode::NotFound,
                        format!("job {id} is forgotten"),
                    ))),
                },
                // A look answers by itself.
                Target::Hardware => None,
            };
            match reply {
                Some(reply) => self.finish(waiter, reply),
                None => still.push(waiter),
            }
        }
        if !still.is_empty() {
            self.waiting.insert(target.clone(), still);
        }
    }

    pub(crate) fn settle_containers(&mut self) {
        let targets: Vec<Target> = self
            .waiting
            .keys()
            .filter(|target| matches!(target, Target::Container(_)))
            .cloned()
            .collect();
        for target in targets {
            self.settle(&target);
        }
    }

    fn report(&self) -> LeafReport {
        let state = self.ledger.state();
        let leaf = state
            .leaf
            .as_ref()
            .expect("the first thing that a run records is its start");
        let count = |of: usize| of as u64;
        LeafReport {
            name: leaf.name.clone(),
            instance: leaf.instance,
            version: leaf.version.clone(),
            started_at: leaf.started_at,
            host: leaf.host.clone(),
            epoch: self.ledger.epoch(),
            // With the disk full, what is in memory only is not told.
            sequence: if self.ledger.is_stuck() {
                self.ledger.journal().last_sequence()
            } else {
                state.sequence
            },
            published: self.workers.published(),
            devices_present: count(
                state
                    .devices
                    .values()
                    .filter(|d| d.status != DeviceStatus::Absent)
                    .count(),
            ),
            devices: count(state.devices.len()),
            containers_running: count(
                state
                    .containers
                    .values()
                    .filter(|c| c.phase == ContainerPhase::Running)
                    .count(),
            ),
            containers: count(state.containers.len()),
            jobs_running: count(
                state
                    .jobs
                    .values()
                    .filter(|j| j.phase == JobPhase::Running)
                    .count(),
            ),
            jobs_queued: count(
                state
                    .jobs
                    .values()
                    .filter(|j| j.phase == JobPhase::Queued)
                    .count(),
            ),
            refusing: self.guard.refuses(self.ledger.journal()).map(|p| p.detail),
            raw_entries: state.raw_entries(),
        }
    }
}

/// Returns what a waiting command is answered, or nothing while the container is not where the command wants it.
fn container_reply(
    name: &ContainerName,
    container: Option<&Container>,
    waiter: &Waiter,
    busy: bool,
) -> Option<Result<Vec<u8>, Problem>> {
    let success = declaration_of(&waiter.record.noun_verb).map_or(Success::Answered, |d| d.success);
    let Some(container) = container else {
        return Some(if success == Success::ContainerGone {
            Ok(to_body(&Destroyed { name: name.clone() }))
        } else {
            Err(Problem::new(
                ProblemCode::Conflict,
                format!("container {name} was destroyed meanwhile"),
            ))
        });
    };
    if container.desired.generation > waiter.generation {
        let detail = format!(
            "something else was wanted of container {name} meanwhile: it is at generation {}",
            container.desired.generation
        );
        return Some(Err(Problem::new(ProblemCode::Conflict, detail)));
    }
    if busy || container.phase.is_moving() {
        return None;
    }
    Some(if success.is_met_by(container) {
        Ok(to_body(container))
    } else {
        let why = container.error.as_deref().unwrap_or("it is not what was wanted");
        Err(Problem::new(
            ProblemCode::Failed,
            format!("container {name}: {why}"),
        ))
    })
}

fn outcome_to_reply(outcome: &CommandOutcome) -> Result<Vec<u8>, Problem> {
    if outcome.problem {
        Err(serde_json::from_slice(&outcome.body).unwrap_or_else(|_| {
            Problem::new(
                ProblemCode::Failed,
                "the command failed; what it said can't be read any more",
            )
        }))
    } else {
        Ok(outcome.body.clone())
    }
}
