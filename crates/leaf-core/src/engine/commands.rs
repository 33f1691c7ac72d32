//! Commands: seen before, refused, decided, accepted.

use crate::accepted::{CommandOutcome, CommandRecord};
use crate::cause::Cause;
use crate::command::{Command, CommandKind, JobReport};
use crate::container::ForeignContainer;
use crate::decide::{self, Context, Decision, Next, decide, job_accepted};
use crate::id::{Caller, CommandId, ContainerName};
use crate::problem::{Problem, ProblemCode};

use super::input::{Request, RequestId, Seen};
use super::output::{Answer, Effect, Immediate, Question};
use super::turn::Turn;
use super::waiting::{Accepted, Target};
use super::{Engine, to_body};

impl Engine {
    pub(super) fn command(&mut self, turn: &mut Turn, request: Request) {
        let Request {
            id: to,
            caller,
            command_id,
            correlation,
            command,
            seen,
        } = request;
        let is_given = command_id.is_some();
        let id = command_id.unwrap_or_else(|| CommandId::from(turn.at.ids.next_id()));
        let command = match command {
            Ok(command) => command,
            Err(problem) => return turn.refuse([to], &id, problem),
        };
        if command.kind() == CommandKind::Query {
            return self.query(turn, to, caller, &id, &command);
        }
        let accepted = Accepted {
            cause: Cause {
                command: Some(id.clone()),
                correlation,
            },
            record: CommandRecord {
                caller,
                id,
                noun_verb: command.declaration().noun_verb.to_owned(),
                fingerprint: command.fingerprint(),
                accepted_at: turn.time(),
                target: None,
                outcome: None,
            },
            to: vec![to],
        };
        if is_given && self.is_repeated(turn, to, &accepted.record, seen) {
            return;
        }
        if let Some(problem) = self.refuses_command(turn, &command) {
            return turn.refuse([to], &accepted.record.id, problem);
        }
        let context = self.context(turn, accepted.record.caller.clone());
        let decision = decide(self.state(), &command, &context);
        self.decided(turn, accepted, decision);
    }

    fn refuses_command(&self, turn: &Turn, command: &Command) -> Option<Problem> {
        let conditions = &turn.at.conditions;
        self.admission
            .refuses(command, conditions, self.is_stuck(conditions))
    }

    /// Returns what a decision needs to know beside the state.
    fn context(&self, turn: &mut Turn, caller: Caller) -> Context {
        Context {
            caller,
            now: turn.time(),
            fresh_id: turn.at.ids.next_id(),
            runtime: self.settings.runtime,
            pool: self.settings.pool,
            max_queued_jobs: self.settings.max_queued_jobs,
            job_timeout_seconds: self.settings.job_timeout_seconds,
        }
    }

    /// Answers a command that changes nothing.
    fn query(&mut self, turn: &mut Turn, to: RequestId, caller: Caller, id: &CommandId, command: &Command) {
        if let Some(problem) = self.refuses_command(turn, command) {
            return turn.refuse([to], id, problem);
        }
        let context = self.context(turn, caller);
        let next = match decide(self.state(), command, &context) {
            Ok(decision) => decision.next,
            Err(problem) => return turn.answer([to], id, &Err(problem.about(id))),
        };
        let mut ask = |question| {
            turn.effects.push(Effect::Ask {
                to,
                id: id.clone(),
                question,
            });
        };
        let body = match next {
            Next::Reply(value) => to_body(&value),
            Next::ShowLeaf => {
                let body = to_body(&self.report(&turn.at.conditions));
                if self.is_stuck(&turn.at.conditions) {
                    turn.now.push(Immediate::Answer(Answer {
                        to,
                        id: id.clone(),
                        reply: Ok(body),
                    }));
                    return;
                }
                body
            }
            Next::ShowJob(job) => {
                let progress = self.jobs.progress(job).cloned();
                let Some(job) = self.state().jobs.get(&job).cloned() else {
                    unreachable!("the decision has found the job")
                };
                to_body(&JobReport { job, progress })
            }
            Next::ReadJobLog(job, offset) => {
                let known = self.state().jobs.get(&job);
                let ended = known.is_none_or(|job| job.phase.is_final());
                return ask(Question::JobLog { job, offset, ended });
            }
            Next::ReadContainerLog(query) => return ask(Question::ContainerLog(query)),
            Next::ReadContainerStats(name) => return ask(Question::ContainerStats(name)),
            Next::ListContainers(containers) => return ask(Question::Containers(containers)),
            Next::Rescan
            | Next::Reconcile(_)
            | Next::Create(_)
            | Next::Queue(_)
            | Next::Cancel(_)
            | Next::Adopt(_) => unreachable!("a query changes nothing"),
        };
        turn.answer([to], id, &Ok(body));
    }

    /// Carries on with a command that was decided, or answers why it is not accepted.
    fn decided(&mut self, turn: &mut Turn, accepted: Accepted, decision: Result<Decision, Problem>) {
        let Decision { facts, next } = match decision {
            Ok(decision) => decision,
            Err(problem) => {
                let id = &accepted.record.id;
                // It tells of the state, which may be ahead of the disk.
                return turn.answer(accepted.to.iter().copied(), id, &Err(problem.about(id)));
            }
        };
        self.record(turn, &accepted.cause, facts);
        match next {
            Next::Reply(value) => self.accept(turn, accepted, to_body(&value)),
            Next::Queue(job) => self.accept(turn, accepted, to_body(&job_accepted(job))),
            Next::Create(name) => {
                let container = self.state().containers.get(&name);
                let body = to_body(container.expect("the decision has found it, or its facts have made it"));
                self.accept(turn, accepted, body);
            }
            Next::Reconcile(name) => self.wait(turn, Target::Container(name), accepted),
            Next::Cancel(job) => {
                self.cancel_job(turn, job, accepted.record.caller.clone());
                self.wait(turn, Target::Job(job), accepted);
            }
            Next::Rescan => {
                self.rescan += 1;
                turn.effects.push(Effect::ScanHardware { rescan: self.rescan });
                self.wait(turn, Target::Hardware, accepted);
            }
            Next::Adopt(name) => {
                turn.effects.push(Effect::FindForeign(name.clone()));
                self.waiting.adopt(name, accepted);
            }
            Next::ShowLeaf
            | Next::ShowJob(_)
            | Next::ReadJobLog(..)
            | Next::ReadContainerLog(_)
            | Next::ListContainers(_)
            | Next::ReadContainerStats(_) => unreachable!("these are queries"),
        }
    }

    /// Records an accepted command along with its reply, which is known.
    fn accept(&mut self, turn: &mut Turn, accepted: Accepted, body: Vec<u8>) {
        let Accepted { record, to, .. } = accepted;
        let reply = Ok(body.clone());
        turn.answer(to, &record.id, &reply);
        turn.keep(CommandRecord {
            outcome: Some(CommandOutcome { body, problem: false }),
            ..record
        });
    }

    /// Decides the commands that waited for the search for a foreign container.
    pub(super) fn foreign_observed(
        &mut self,
        turn: &mut Turn,
        name: &ContainerName,
        found: &Result<Option<ForeignContainer>, Problem>,
    ) {
        for accepted in self.waiting.take_adopting(name) {
            let context = self.context(turn, accepted.record.caller.clone());
            let decision = match found {
                Ok(found) => decide::adopt(self.state(), name, found.as_ref(), &context),
                Err(problem) => Err(problem.clone()),
            };
            self.decided(turn, accepted, decision);
        }
    }

    /// Answers a command whose id its sender has used before, or returns false.
    fn is_repeated(&mut self, turn: &mut Turn, to: RequestId, record: &CommandRecord, seen: Seen) -> bool {
        let id = &record.id;
        let reused = || {
            let detail = format!(
                "the command id {id} was used for another command in the last 24 hours; choose a new one"
            );
            Err(Problem::new(ProblemCode::CommandIdReused, detail))
        };
        let reply = match self.waiting.find(&record.caller, id) {
            Some(waiting) if waiting.record.fingerprint == record.fingerprint => {
                waiting.to.push(to);
                return true;
            }
            Some(_) => reused(),
            None => match seen {
                Seen::No => return false,
                Seen::Before(before) if before.fingerprint != record.fingerprint => reused(),
                Seen::Before(before) => first_reply(before.outcome),
                Seen::Unreadable => {
                    let problem = self.refuses(&turn.at.conditions).unwrap_or_else(|| {
                        let detail = "the journal can't be read just now: see the leaf's log";
                        Problem::new(ProblemCode::Failed, detail)
                    });
                    turn.refuse([to], id, problem);
                    return true;
                }
            },
        };
        turn.answer([to], id, &reply.map_err(|problem| problem.about(id)));
        true
    }
}

/// Returns the reply that a command got when it was sent first.
fn first_reply(outcome: Option<CommandOutcome>) -> Result<Vec<u8>, Problem> {
    let failed = |detail: &str| Err(Problem::new(ProblemCode::Failed, detail));
    match outcome {
        Some(outcome) if outcome.problem => serde_json::from_slice(&outcome.body)
            .map_or_else(|_| failed("the command failed; why can't be read any more"), Err),
        Some(outcome) => Ok(outcome.body),
        None => Err(Problem::new(
            ProblemCode::Conflict,
            "this command was accepted before, and nothing is known of its end; look at what it was about",
        )),
    }
}
