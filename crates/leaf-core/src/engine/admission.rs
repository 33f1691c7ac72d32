//! Admission: which commands are refused just now, because the leaf could not keep what it would promise.

use std::collections::VecDeque;

use crate::command::{Command, CommandKind, Declaration, Disk, Need, WhileStuck};
use crate::problem::{Problem, ProblemCode};

use super::input::{Conditions, FreeSpace};

/// How much may wait for the journal's disk, in bytes; the journal itself takes four times as much.
const MAX_QUEUED_BYTES: u64 = 8 << 20;

/// One step of the backlog, in bytes.
const STEP_BYTES: u64 = 64 * 1024;

/// What the leaf needs for a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How much may wait to be published, in bytes.
    pub backlog_bytes: u64,
    /// How much disk space is kept free, in bytes.
    pub reserve_bytes: u64,
}

/// What this leaf can do, by what its host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Containers, or why there are none.
    pub containers: Result<(), String>,
    /// Nix, or why it can't be used.
    pub nix: Result<(), String>,
}

/// Decides whether commands are admitted.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    limits: Limits,
    capabilities: Capabilities,
    draining: bool,
    backlog: Backlog,
}

/// The events that are recorded and not published: how much, counted in steps, each up to a sequence number.
#[derive(Debug, Clone, Default)]
struct Backlog {
    steps: VecDeque<(u64, u64)>,
    bytes: u64,
}

impl Admission {
    pub(super) fn new(limits: Limits, capabilities: Capabilities) -> Self {
        Self {
            limits,
            capabilities,
            draining: false,
            backlog: Backlog::default(),
        }
    }

    /// Counts what was recorded, up to this sequence number.
    pub(super) fn recorded(&mut self, sequence: u64, bytes: u64) {
        let backlog = &mut self.backlog;
        backlog.bytes += bytes;
        match backlog.steps.back_mut() {
            Some((last, size)) if *size < STEP_BYTES => {
                *last = sequence;
                *size += bytes;
            }
            _ => backlog.steps.push_back((sequence, bytes)),
        }
    }

    /// Counts what the stream holds, up to this sequence number.
    pub(super) fn published(&mut self, sequence: u64) {
        let backlog = &mut self.backlog;
        while let Some((last, size)) = backlog.steps.front()
            && *last <= sequence
        {
            backlog.bytes = backlog.bytes.saturating_sub(*size);
            backlog.steps.pop_front();
        }
    }

    /// From now on the daemon drains.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Returns why a command is refused, or nothing if it is admitted.
    pub(super) fn refuses(
        &self,
        command: &Command,
        conditions: &Conditions,
        is_stuck: bool,
    ) -> Option<Problem> {
        let declaration = command.declaration();
        let refused = match (declaration.kind, declaration.disk) {
            // The state in memory is ahead of a disk that takes nothing.
            (CommandKind::Query, _) if is_stuck && declaration.while_stuck == WhileStuck::Refused => {
                self.refuses_changes(conditions)
            }
            (CommandKind::Query, _) => None,
            (CommandKind::Change | CommandKind::Job, Disk::Frees) => self.refuses_all(conditions),
            (CommandKind::Change | CommandKind::Job, Disk::Untouched | Disk::Takes) => {
                self.refuses_changes(conditions)
            }
        };
        refused.or_else(|| self.lacks(declaration))
    }

    /// Returns what the command needs and this leaf lacks.
    fn lacks(&self, declaration: &Declaration) -> Option<Problem> {
        let need = match declaration.need {
            Need::Nothing => return None,
            Need::Containers => &self.capabilities.containers,
            Need::Nix => &self.capabilities.nix,
        };
        let why = need.as_ref().err()?;
        Some(Problem::new(ProblemCode::Unsupported, why.clone()))
    }

    /// Returns why commands that change something are refused, or nothing if they are admitted.
    pub(super) fn refuses_changes(&self, conditions: &Conditions) -> Option<Problem> {
        self.refuses_all(conditions)
            .or_else(|| self.keeps_reserve(conditions))
    }

    /// The same for commands that may free disk space: they are admitted at the expense of the reserve.
    fn refuses_all(&self, conditions: &Conditions) -> Option<Problem> {
        if self.draining {
            let detail = "the daemon is stopping; send the command again when it is back";
            return Some(Problem::new(ProblemCode::Draining, detail));
        }
        if let Some(since) = conditions.full_since {
            let detail = format!(
                "the disk of the journal is full since {since}; free some space, and it goes on by itself"
            );
            return Some(Problem::new(ProblemCode::DiskFull, detail));
        }
        let queued = conditions.queued_bytes;
        if queued > MAX_QUEUED_BYTES {
            let detail =
                format!("{queued} bytes wait for the disk of the journal, which is slow just now; try again");
            return Some(Problem::new(ProblemCode::Overloaded, detail));
        }
        let waiting = self.backlog.bytes;
        (waiting > self.limits.backlog_bytes).then(|| {
            let detail = format!(
                "{waiting} bytes of events wait to be published, and at most {} may; is NATS out of reach?",
                self.limits.backlog_bytes
            );
            Problem::new(ProblemCode::Overloaded, detail)
        })
    }

    fn keeps_reserve(&self, conditions: &Conditions) -> Option<Problem> {
        let reserve = self.limits.reserve_bytes;
        let detail = match &conditions.free_bytes {
            FreeSpace::Bytes(free) if *free >= reserve => return None,
            FreeSpace::Bytes(free) => format!(
                "the disk of the journal has {free} bytes left, and {reserve} are kept in reserve; free some space, and it goes on by \
                 itself (containers are stopped and destroyed all the same)"
            ),
            FreeSpace::Unknown(why) => {
                format!("the disk of the journal can't be asked for its free space: {why}")
            }
        };
        Some(Problem::new(ProblemCode::DiskFull, detail))
    }
}
