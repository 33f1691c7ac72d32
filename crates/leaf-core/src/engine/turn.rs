//! The consequences of one input, while they are being determined.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::command::CommandRecord;
use crate::decide::Target;
use crate::id::{Caller, CommandId};
use crate::problem::Problem;

use super::history::Draft;
use super::input::{At, RequestId};
use super::output::{Answer, Effect, Immediate};

/// The consequences of one input, while they are being determined. It becomes the engine's [`Outputs`](super::Outputs).
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) at: At,
    /// The number of the record that the turn becomes.
    pub(super) record: u64,
    pub(super) now: Vec<Immediate>,
    pub(super) draft: Draft,
    pub(super) commands: Vec<CommandRecord>,
    pub(super) effects: Vec<Effect>,
    /// The targets that may have settled, or may need to be reconciled.
    pub(super) touched: BTreeSet<Target>,
    /// The caller that changed the desired state of a container, which may make builds needless.
    pub(super) desired_by: Option<Caller>,
    /// Whether another job may be started now.
    pub(super) may_start_jobs: bool,
    /// Whether the works may have changed that the hub agent is told of.
    pub(super) may_tell_works: bool,
    /// Whether the agent is asked before a job starts.
    pub(super) asks_for_works: bool,
}

impl Turn {
    pub(super) fn new(at: At, record: u64) -> Self {
        Self {
            at,
            record,
            now: Vec::new(),
            draft: Draft::default(),
            commands: Vec::new(),
            effects: Vec::new(),
            touched: BTreeSet::new(),
            desired_by: None,
            may_start_jobs: false,
            may_tell_works: false,
            asks_for_works: false,
        }
    }

    pub(super) fn time(&self) -> Timestamp {
        self.at.time
    }

    /// Refuses a command at once, without recording it.
    pub(super) fn refuse(
        &mut self,
        to: impl IntoIterator<Item = RequestId>,
        id: &CommandId,
        problem: Problem,
    ) {
        let reply = Err(problem.about(id));
        let answers = to.into_iter().map(|to| Answer {
            to,
            id: id.clone(),
            reply: reply.clone(),
        });
        self.now.extend(answers.map(Immediate::Answer));
    }

    /// Answers a request once everything recorded so far is durable, since the reply may depend on it.
    pub(super) fn answer(
        &mut self,
        to: impl IntoIterator<Item = RequestId>,
        id: &CommandId,
        reply: &Result<Vec<u8>, Problem>,
    ) {
        let answers = to.into_iter().map(|to| Answer {
            to,
            id: id.clone(),
            reply: reply.clone(),
        });
        self.effects.extend(answers.map(Effect::Answer));
    }

    /// Adds a command's record to the turn's batch. An earlier record of the same command is replaced.
    pub(super) fn keep(&mut self, record: CommandRecord) {
        let same = |kept: &&mut CommandRecord| kept.caller == record.caller && kept.id == record.id;
        match self.commands.iter_mut().find(same) {
            Some(kept) => *kept = record,
            None => self.commands.push(record),
        }
    }
}
