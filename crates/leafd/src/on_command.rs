//! The loop's part that takes commands: decode, seen before, refused, decide, accept; and the answers of those that wait.

use jiff::Timestamp;
use leaf_bus::serve::{Incoming, Responder};
use leaf_core::command::{Command, CommandKind, Destroyed, JobReport, LeafReport};
use leaf_core::container::{Container, ContainerPhase};
use leaf_core::decide::{self, Context, Next, decide, job_accepted};
use leaf_core::event::Fact;
use leaf_core::hardware::DeviceStatus;
use leaf_core::id::{Caller, CommandId, ContainerName};
use leaf_core::job::JobPhase;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_journal::{CommandRecord, Outcome as CommandOutcome};
use uuid::Uuid;

use crate::input::Effect;
use crate::ledger::Cause;
use crate::main_loop::{MainLoop, Target, Waiter, to_body};

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
        let fingerprint = command.fingerprint();
        let responder = if changes && given {
            match self.seen_before(&caller, &id, &fingerprint, responder) {
                Some(responder) => responder,
                None => return,
            }
        } else {
            responder
        };
        let context = Context {
            caller: caller.clone(),
            now: Timestamp::now(),
            fresh_id: Uuid::now_v7(),
            pool: self.settings.containers.address_pool,
            max_queued_jobs: self.settings.nix.max_queued_jobs,
            job_timeout_seconds: self.settings.nix.timeout_seconds,
        };
        let refused = if changes {
            self.guard.refuses(self.ledger.journal())
        } else {
            None
        };
        let decision = match refused {
            Some(problem) => Err(problem),
            None => self
                .workers
                .can_do(&command)
                .and_then(|()| decide(self.ledger.state(), &command, &context)),
        };
        let decision = match decision {
            Ok(decision) => decision,
            Err(problem) => return self.refuse(responder, id, problem),
        };
        let record = CommandRecord {
            caller,
            id: id.clone(),
            noun_verb: format!("{noun}.{verb}"),
            fingerprint,
            accepted_at: context.now,
            target: None,
            outcome: None,
        };
        let cause = Cause {
            command: Some(id.clone()),
            correlation,
        };
        self.carry_on(decision, record, &cause, responder, changes);
    }

    /// Records an accepted command, and what comes next.
    fn carry_on(
        &mut self,
        decision: decide::Decision,
        record: CommandRecord,
        cause: &Cause,
        responder: Responder,
        changes: bool,
    ) {
        let id = record.id.clone();
        let facts = decision.facts;
        match decision.next {
            Next::Reply(value) => self.answer_now(facts, record, cause, responder, changes, to_body(&value)),
            Next::ShowLeaf => {
                let body = to_body(&self.report());
                self.answer_now(facts, record, cause, responder, changes, body);
            }
            Next::ShowJob(job) => {
                let found = self.ledger.state().jobs.get(&job).cloned();
                let progress = self.running.get(&job).cloned().flatten();
                if let Some(job) = found {
                    let body = to_body(&JobReport { job, progress });
                    self.answer_now(facts, record, cause, responder, changes, body);
                }
            }
            Next::Queue(job) => {
                self.accept_and_answer(
                    facts,
                    record,
                    cause,
                    responder,
                    vec![Effect::StartJobs],
                    to_body(&job_accepted(job)),
                );
            }
            Next::Build(name) => {
                // The answer is the container as the facts make it, so they are applied first.
                let record = CommandRecord {
                    target: Some(Target::Container(name.clone()).key()),
                    ..record
                };
                self.record(cause, facts, vec![record.clone()], vec![Effect::StartJobs]);
                if let Some(container) = self.ledger.state().containers.get(&name) {
                    let body = to_body(container);
                    self.finish(record, vec![responder], Ok(body));
                }
            }
            Next::Reconcile(name) => {
                let target = Target::Container(name.clone());
                let record = CommandRecord {
                    target: Some(target.key()),
                    ..record
                };
                let moved = !facts.is_empty();
                self.record(
                    cause,
                    facts,
                    vec![record.clone()],
                    if moved {
                        vec![Effect::Reconcile(name.clone())]
                    } else {
                        Vec::new()
                    },
                );
                let generation = self
                    .ledger
                    .state()
                    .containers
                    .get(&name)
                    .map_or(0, |c| c.desired.generation);
                let waiter = Waiter {
                    record,
                    responders: vec![responder],
                    generation,
                };
                self.waiting.entry(target.clone()).or_default().push(waiter);
                self.settle(&target);
            }
            Next::Cancel(job) => {
                let target = Target::Job(job);
                let record = CommandRecord {
                    target: Some(target.key()),
                    ..record
                };
                let running = self.running.contains_key(&job);
                if running {
                    self.cancelling.insert(job, record.caller.clone());
                }
                let effects = if running {
                    vec![Effect::CancelJob(job)]
                } else {
                    Vec::new()
                };
                self.record(cause, facts, vec![record.clone()], effects);
                let waiter = Waiter {
                    record,
                    responders: vec![responder],
                    generation: 0,
                };
                self.waiting.entry(target.clone()).or_default().push(waiter);
                self.settle(&target);
                self.settle_containers();
            }
            Next::Rescan => {
                let number = self.next_rescan;
                self.next_rescan += 1;
                self.rescans.insert(number, (responder, id));
                self.ledger.after(vec![Effect::LookAtHardware(number)]);
            }
            Next::ReadJobLog(job, offset) => {
                self.ledger.after(vec![Effect::ReplyJobLog {
                    responder,
                    id,
                    job,
                    offset,
                }]);
            }
            Next::ReadContainerLog(name, lines) => {
                self.ledger.after(vec![Effect::ReplyContainerLog {
                    responder,
                    id,
                    name,
                    lines,
                }]);
            }
        }
    }

    /// Answers a query at once; a command that changes nothing more is recorded as done, so that its id stays known.
    fn answer_now(
        &mut self,
        facts: Vec<Fact>,
        record: CommandRecord,
        cause: &Cause,
        responder: Responder,
        changes: bool,
        body: Vec<u8>,
    ) {
        if changes {
            self.accept_and_answer(facts, record, cause, responder, Vec::new(), body);
        } else {
            self.ledger.after(vec![Effect::Reply {
                responder,
                id: record.id,
                reply: Ok(body),
            }]);
        }
    }

    fn accept_and_answer(
        &mut self,
        facts: Vec<Fact>,
        record: CommandRecord,
        cause: &Cause,
        responder: Responder,
        mut effects: Vec<Effect>,
        body: Vec<u8>,
    ) {
        effects.push(Effect::Reply {
            responder,
            id: record.id.clone(),
            reply: Ok(body.clone()),
        });
        let record = CommandRecord {
            outcome: Some(CommandOutcome { body, problem: false }),
            ..record
        };
        self.record(cause, facts, vec![record], effects);
    }

    /// Answers a command that can't be accepted. Nothing is recorded of it.
    fn refuse(&mut self, responder: Responder, id: CommandId, problem: Problem) {
        let reply = Err(problem.about(&id));
        self.ledger.after(vec![Effect::Reply { responder, id, reply }]);
    }

    /// Answers a command that was sent before, or gives the responder back if it was not.
    fn seen_before(
        &mut self,
        caller: &Caller,
        id: &CommandId,
        fingerprint: &str,
        responder: Responder,
    ) -> Option<Responder> {
        let reused = || {
            let detail = format!(
                "the command id {id} was used for another command in the last 24 hours; choose a new one"
            );
            Err(Problem::new(ProblemCode::CommandIdReused, detail).about(id))
        };
        let same = |record: &CommandRecord| record.caller == *caller && record.id == *id;
        let waiter = self
            .waiting
            .values_mut()
            .flatten()
            .find(|waiter| same(&waiter.record));
        let reply = match waiter {
            Some(waiter) if waiter.record.fingerprint == fingerprint => {
                waiter.responders.push(responder);
                return None;
            }
            Some(_) => reused(),
            None => match self.ledger.journal().command(caller, id) {
                Ok(None) => return Some(responder),
                Ok(Some(record)) if record.fingerprint != fingerprint => reused(),
                Ok(Some(CommandRecord { outcome: Some(outcome), .. })) => outcome_to_reply(&outcome),
                Ok(Some(CommandRecord { outcome: None, .. })) => Err(Problem::new(
                    ProblemCode::Conflict,
                    "this command was accepted before, and nothing is known of its end; look at what it was about",
                )
                .about(id)),
                Err(error) => {
                    tracing::error!(error = &error as &dyn std::error::Error, "the journal can't be read");
                    Err(Problem::new(ProblemCode::Failed, "the journal can't be read: see the leaf's log").about(id))
                }
            },
        };
        self.ledger.after(vec![Effect::Reply {
            responder,
            id: id.clone(),
            reply,
        }]);
        None
    }

    /// Records the end of a command and answers it.
    fn finish(&mut self, record: CommandRecord, responders: Vec<Responder>, reply: Result<Vec<u8>, Problem>) {
        let id = record.id.clone();
        let reply = reply.map_err(|problem| problem.about(&id));
        let outcome = match &reply {
            Ok(body) => CommandOutcome {
                body: body.clone(),
                problem: false,
            },
            Err(problem) => CommandOutcome {
                body: to_body(problem),
                problem: true,
            },
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
            &Cause::default(),
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
                    self.reconciling.contains(name),
                ),
                Target::Job(id) => match self.ledger.state().jobs.get(id) {
                    Some(job) if !job.phase.is_final() => None,
                    Some(job) => Some(Ok(to_body(job))),
                    None => Some(Err(Problem::new(
                        ProblemCode::NotFound,
                        format!("job {id} is forgotten"),
                    ))),
                },
            };
            match reply {
                Some(reply) => self.finish(waiter.record, waiter.responders, reply),
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
            sequence: state.sequence,
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
    let Some(container) = container else {
        return Some(if waiter.record.noun_verb == "container.destroy" {
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
    Some(match (container.phase, &container.error) {
        (ContainerPhase::Failed, error) => {
            let detail = format!("container {name}: {}", error.as_deref().unwrap_or("it failed"));
            Err(Problem::new(ProblemCode::Failed, detail))
        }
        _ => Ok(to_body(container)),
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
