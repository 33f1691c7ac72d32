//! What one input leads to, while it is being worked out.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::accepted::CommandRecord;
use crate::decide::Target;
use crate::id::{Caller, CommandId};
use crate::problem::Problem;

use super::history::Draft;
use super::input::{At, RequestId};
use super::output::{Answer, Effect, Immediate};

/// What one input leads to, while it is being worked out. It becomes the engine's [`Outputs`](super::Outputs).
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) at: At,
    /// The number of the record that the turn becomes.
    pub(super) record: u64,
    pub(super) now: Vec<Immediate>,
    pub(super) draft: Draft,
    pub(super) commands: Vec<CommandRecord>,
    pub(super) effects: Vec<Effect>,
    /// What may have settled, or may have to be reconciled now.
    pub(super) touched: BTreeSet<Target>,
    /// The caller that changed the desired state of a container: builds may be needless by that.
    pub(super) desired_by: Option<Caller>,
    /// Whether a job may be started that could not be before.
    pub(super) may_start_jobs: bool,
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
        }
    }

    pub(super) fn time(&self) -> Timestamp {
        self.at.time
    }

    /// Refuses a command at once. Nothing is recorded of it.
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

    /// Answers once all that is recorded is durable: the answer may tell of it.
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

    /// Makes a command's record durable with the turn. One of the same command is replaced.
    pub(super) fn keep(&mut self, record: CommandRecord) {
        let same = |kept: &&mut CommandRecord| kept.caller == record.caller && kept.id == record.id;
        match self.commands.iter_mut().find(same) {
            Some(kept) => *kept = record,
            None => self.commands.push(record),
        }
    }
}
