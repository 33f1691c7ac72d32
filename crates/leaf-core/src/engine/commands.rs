//! Handles commands: repeated, refused, decided or accepted.

use std::sync::Arc;

use crate::cause::Cause;
use crate::command::{Command, CommandKind, CommandOutcome, CommandRecord, JobReport};
use crate::container::{Container, ForeignContainer};
use crate::decide::{self, Context, Decision, Reply, Target, decide};
use crate::event::{Fact, LeafSignatureRefused};
use crate::id::{Caller, CommandId, ContainerName};
use crate::json::to_json;
use crate::problem::{Problem, ProblemCode};
use crate::signed::{Provenance, RefusedSignature};
use crate::text::shorten_text;

use super::Engine;
use super::admission::Admission;
use super::input::{Request, RequestId, Seen};
use super::output::{Answer, Effect, Immediate};
use super::turn::Turn;
use super::waiting::Accepted;

/// No event of a command is larger, in bytes: a spec has at most 32 KiB, and a flake reference or an installable 4 KiB.
const LARGEST_OF_A_COMMAND: usize = 48 * 1024;

/// The longest reason of a refused signature that is recorded, in bytes.
const MAX_REASON_BYTES: usize = 512;

impl Engine {
    pub(super) fn command(&mut self, turn: &mut Turn, request: Request) {
        let Request {
            id: to,
            caller,
            command_id,
            correlation,
            command,
            provenance,
            is_local,
            seen,
        } = request;
        let is_given = command_id.is_some();
        let id = command_id.unwrap_or_else(|| CommandId::from(turn.at.ids.next_id()));
        let command = match command {
            Ok(command) => command,
            Err(problem) => return turn.refuse([to], &id, problem),
        };
        let declaration = command.declaration();
        if let Some(problem) = self
            .settings
            .rules
            .refuse(declaration, &caller, &provenance, is_local)
        {
            if let Provenance::Refused(refused) = provenance {
                let cause = Cause {
                    command: Some(id.clone()),
                    correlation,
                };
                self.signature_refused(turn, &cause, caller, declaration.noun_verb, refused);
            }
            return turn.refuse([to], &id, problem);
        }
        let is_change = command.kind() != CommandKind::Query;
        let needs_signature = self
            .settings
            .rules
            .needs_signature(declaration, &caller, is_local);
        let signer = match provenance {
            Provenance::Signed { signer } => Some(signer),
            Provenance::Unsigned | Provenance::Refused(_) => None,
        };
        let accepted = Accepted {
            cause: Cause {
                command: Some(id.clone()),
                correlation,
            },
            record: CommandRecord {
                caller,
                id,
                noun_verb: command.declaration().noun_verb.to_owned(),
                // Only a recorded command's fingerprint is compared.
                fingerprint: if is_change || signer.is_some() {
                    command.fingerprint()
                } else {
                    String::new()
                },
                accepted_at: turn.time(),
                target: None,
                signer,
                outcome: None,
            },
            is_change,
            to: vec![to],
        };
        let mut is_id_kept = false;
        if !is_change && accepted.record.signer.is_some() {
            is_id_kept = match check_once(turn, &accepted.record, &seen, needs_signature) {
                Ok(is_kept) => is_kept,
                Err(problem) => return turn.refuse([to], &accepted.record.id, problem),
            };
        }
        let is_again = is_change && is_given && !self.secrets.takes_again(&accepted.record);
        if is_again && self.is_repeated(turn, to, &accepted.record, seen) {
            return;
        }
        if let Some(problem) = self.refuses_command(turn, &command) {
            return turn.refuse([to], &accepted.record.id, problem);
        }
        if is_id_kept {
            turn.keep(CommandRecord {
                outcome: Some(answered_once(&accepted.record.id)),
                ..accepted.record.clone()
            });
        }
        let context = self.context(turn, accepted.record.caller.clone());
        let decision = decide(self.state(), &command, &context);
        self.decided(turn, accepted, decision);
    }

    /// Records that a signature was refused, unless that was recorded a moment ago or the disk is too full.
    fn signature_refused(
        &mut self,
        turn: &mut Turn,
        cause: &Cause,
        caller: Caller,
        noun_verb: &str,
        refused: RefusedSignature,
    ) {
        let Some(counted) = self.refusals.count(&caller, refused.is_named, turn.at.moment) else {
            return;
        };
        if self.refuses(&turn.at.conditions).is_some() {
            return self.refusals.not_recorded(counted);
        }
        let mut reason = refused.reason;
        shorten_text(&mut reason, MAX_REASON_BYTES);
        let fact = LeafSignatureRefused {
            caller,
            command: noun_verb.to_owned(),
            signer: refused.signer,
            reason,
            refused: counted.refused,
            others: counted.others,
        };
        self.record(turn, cause, [fact.into()]);
    }

    fn refuses_command(&self, turn: &Turn, command: &Command) -> Option<Problem> {
        let conditions = &turn.at.conditions;
        self.admission
            .refuses(command, conditions, self.is_stuck(conditions))
    }

    /// Returns the context of a decision.
    fn context(&self, turn: &mut Turn, caller: Caller) -> Context {
        Context {
            caller,
            leaf: self.history.leaf().clone(),
            works: self.has_referee(),
            labels: self.settings.labels.clone(),
            now: turn.time(),
            fresh_id: turn.at.ids.next_id(),
            runtime: self.settings.runtime,
            pool: self.settings.pool,
            in_use: turn.at.in_use.clone(),
            jobs: Arc::clone(&self.settings.jobs),
            pressure: turn.at.conditions.pressure,
            refusing: self
                .refuses(&turn.at.conditions)
                .or_else(|| self.admission.store_is_full(&turn.at.conditions)),
            in_places: self.jobs.in_places(),
            nix_policy: self.settings.nix_policy.clone(),
        }
    }

    /// Continues with a command after its decision, or answers with the problem.
    fn decided(&mut self, turn: &mut Turn, accepted: Accepted, decision: Result<Decision, Problem>) {
        let id = &accepted.record.id;
        let Decision { facts, reply } = match decision {
            Ok(decision) => decision,
            Err(problem) => {
                // The reply reports the state, which may be ahead of the disk.
                return turn.answer(accepted.to.iter().copied(), id, &Err(problem.about(id)));
            }
        };
        if let Some(problem) = self.too_large(turn, &accepted, &facts) {
            return turn.answer(accepted.to.iter().copied(), id, &Err(problem.about(id)));
        }
        self.record(turn, &accepted.cause, facts);
        match reply {
            Reply::Known(value) => self.accept(turn, accepted, to_json(&value)),
            Reply::LeafReport => {
                let report = self.report(&turn.at);
                self.accept(turn, accepted, to_json(&report));
            }
            Reply::JobReport(id) => {
                let job = self.state().jobs.get(&id).cloned();
                let job = job.expect("the decision found it");
                let progress = self.jobs.progress(id).cloned();
                self.accept(turn, accepted, to_json(&JobReport { job, progress }));
            }
            Reply::Container(name) => {
                let container = self.state().containers.get(&name);
                let body = to_json(container.expect("the decision found it, or its facts created it"));
                self.accept(turn, accepted, body);
            }
            Reply::ContainerReport(name) => {
                let container = self.state().containers.get(&name).cloned();
                let report = Container {
                    credentials_until: self.renewals.seen_until(&name),
                    ..container.expect("the decision found it")
                };
                self.accept(turn, accepted, to_json(&report));
            }
            Reply::FromHost(question) => turn.effects.extend(accepted.to.iter().map(|to| Effect::Ask {
                to: *to,
                id: id.clone(),
                question: question.clone(),
            })),
            Reply::When(target) => {
                match &target {
                    Target::Container(_) => {}
                    Target::Job(job) => self.cancel_job(turn, *job, accepted.record.caller.clone()),
                    Target::Hardware => {
                        self.rescan += 1;
                        turn.effects.push(Effect::ScanHardware { rescan: self.rescan });
                    }
                }
                self.wait(turn, target, accepted);
            }
            Reply::AfterSearch(name) => {
                turn.effects.push(Effect::FindForeign(name.clone()));
                self.waiting.adopt(name, accepted);
            }
            Reply::WhenChanged(step) => self.change(turn, step, accepted),
            Reply::WhenMade(change) => self.change_secret(turn, change, accepted),
        }
    }

    /// Returns the problem of a command whose event would be larger than the NATS server accepts: it could never be
    /// published, nor any event after it.
    fn too_large(&self, turn: &Turn, accepted: &Accepted, facts: &[Fact]) -> Option<Problem> {
        let allowed = self.history.max_event_bytes();
        if allowed >= LARGEST_OF_A_COMMAND {
            return None;
        }
        let sizes = facts
            .iter()
            .map(|fact| self.history.size_of(turn.time(), &accepted.cause, fact));
        let bytes = sizes.max().filter(|bytes| *bytes > allowed)?;
        let detail = format!(
            "the event of this command would have {bytes} bytes, and the leaf's NATS server accepts {allowed}: raise its \
             `max_payload`, or put large values into files and secrets"
        );
        Some(Problem::new(ProblemCode::TooLarge, detail))
    }

    /// Answers an accepted command whose reply is known. A change's record is kept with it.
    pub(super) fn accept(&mut self, turn: &mut Turn, accepted: Accepted, body: Vec<u8>) {
        let Accepted {
            record,
            is_change,
            to,
            ..
        } = accepted;
        if !is_change && self.is_stuck(&turn.at.conditions) {
            // The queries that are not refused then report nothing that may be missing on the disk.
            let answers = to.into_iter().map(|to| Answer {
                to,
                id: record.id.clone(),
                reply: Ok(body.clone()),
            });
            return turn.now.extend(answers.map(Immediate::Answer));
        }
        let reply = Ok(body);
        turn.answer(to, &record.id, &reply);
        if let (true, Ok(body)) = (is_change, reply) {
            turn.keep(CommandRecord {
                outcome: Some(CommandOutcome { body, problem: false }),
                ..record
            });
        }
    }

    /// Decides the commands that waited for a search for a foreign container.
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

    /// Answers a command whose id its caller has used before; returns false for any other.
    fn is_repeated(&mut self, turn: &mut Turn, to: RequestId, record: &CommandRecord, seen: Seen) -> bool {
        let id = &record.id;
        let reused = || {
            let detail = format!(
                "the command id {id} was used for another command in the last 24 hours; choose a new one"
            );
            Err(Problem::new(ProblemCode::CommandIdReused, detail))
        };
        let waiting = self.waiting.find(&record.caller, id);
        let waiting = waiting.or_else(|| self.secrets.find(&record.caller, id));
        let waiting = waiting.or_else(|| self.changes.find(&record.caller, id));
        let reply = match waiting {
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
                        let detail = "can't read the journal at the moment: see the leaf's log";
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

/// Checks that a signed query was not answered before, and returns whether its id is to be kept. Where that can't be known or kept, a query
/// that needs a signature is refused; any other is answered as it would be without one. A record is small and no event, so
/// one may use the reserve, and is kept also while the leaf stops.
fn check_once(
    turn: &Turn,
    record: &CommandRecord,
    seen: &Seen,
    needs_signature: bool,
) -> Result<bool, Problem> {
    let problem = match seen {
        Seen::Before(_) => return Err(used_before(&record.id)),
        Seen::Unreadable => {
            let detail = "can't read the journal at the moment, and so not tell whether this signature was used: see the leaf's log";
            Some(Problem::new(ProblemCode::Failed, detail))
        }
        Seen::No => Admission::cannot_keep(&turn.at.conditions),
    };
    match problem {
        None => Ok(true),
        Some(_) if !needs_signature => Ok(false),
        Some(problem) => Err(problem),
    }
}

/// Returns the problem of a signed query whose id was used before.
fn used_before(id: &CommandId) -> Problem {
    let detail = format!(
        "the command id {id} was used in the last 24 hours, and a signed query is answered once: sign it again with a new id"
    );
    Problem::new(ProblemCode::SignatureInvalid, detail)
}

/// Returns what the record of a signed query has as its outcome: the reply itself is not kept.
fn answered_once(id: &CommandId) -> CommandOutcome {
    CommandOutcome {
        body: to_json(&used_before(id).about(id)),
        problem: true,
    }
}

/// Returns the first reply to a command.
fn first_reply(outcome: Option<CommandOutcome>) -> Result<Vec<u8>, Problem> {
    let failed = |detail: &str| Err(Problem::new(ProblemCode::Failed, detail));
    match outcome {
        Some(outcome) if outcome.problem => serde_json::from_slice(&outcome.body).map_or_else(
            |_| failed("the command failed; the reason can't be read any more"),
            Err,
        ),
        Some(outcome) => Ok(outcome.body),
        None => Err(Problem::new(
            ProblemCode::Conflict,
            "this command was accepted before, and its outcome is unknown; check the state of its target",
        )),
    }
}
