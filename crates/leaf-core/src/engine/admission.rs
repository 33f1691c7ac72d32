//! Admission: refuses commands while the leaf could not keep the promise that it would make by accepting them.

use std::collections::VecDeque;

use crate::command::{Command, CommandKind, Declaration, Disk, Need, WhileStuck};
use crate::event::{LeafFact, LeafStoreFilled, LeafStoreHasRoom};
use crate::problem::{Problem, ProblemCode};

use super::input::{Conditions, FreeSpace};

/// The limit of data that waits for the journal's disk, in bytes; the journal itself accepts four times as much.
const MAX_QUEUED_BYTES: u64 = 8 << 20;

/// The granularity of the backlog's count, in bytes.
const STEP_BYTES: u64 = 64 * 1024;

/// The limits at which commands are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The maximum size of the backlog, in bytes.
    pub backlog_bytes: u64,
    /// The disk space kept in reserve, in bytes.
    pub reserve_bytes: u64,
    /// The space of the Nix store's disk that is kept free, in bytes: with less, builds are refused.
    pub store_kept_bytes: u64,
}

/// The capabilities of this leaf, which depend on its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether it can run containers, or the reason why not.
    pub containers: Result<(), String>,
    /// Whether it can use Nix, or the reason why not.
    pub nix: Result<(), String>,
    /// Whether it can keep secrets, or the reason why not.
    pub secrets: Result<(), String>,
}

/// Decides whether commands are admitted.
#[derive(Debug, Clone)]
pub(super) struct Admission {
    limits: Limits,
    capabilities: Capabilities,
    draining: bool,
    backlog: Backlog,
}

/// The size of recorded, unpublished events, counted in steps, each up to a sequence number.
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

    pub(super) fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Adds recorded events, up to this sequence number.
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

    /// Removes published events, up to this sequence number.
    pub(super) fn published(&mut self, sequence: u64) {
        let backlog = &mut self.backlog;
        while let Some((last, size)) = backlog.steps.front()
            && *last <= sequence
        {
            backlog.bytes = backlog.bytes.saturating_sub(*size);
            backlog.steps.pop_front();
        }
    }

    /// Begins to drain.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// Returns the problem for which a command is refused; `None` if it is admitted.
    pub(super) fn refuses(
        &self,
        command: &Command,
        conditions: &Conditions,
        is_stuck: bool,
    ) -> Option<Problem> {
        let declaration = command.declaration();
        let refused = match (declaration.kind, declaration.disk) {
            // The disk is full, so the state in memory is ahead of it.
            (CommandKind::Query, _) if is_stuck && declaration.while_stuck == WhileStuck::Refused => {
                self.refuses_changes(conditions)
            }
            (CommandKind::Query, _) => None,
            (CommandKind::Change | CommandKind::Job, Disk::Frees) => self.refuses_all(conditions),
            (CommandKind::Change | CommandKind::Job, Disk::Untouched | Disk::Takes) => {
                self.refuses_changes(conditions)
            }
        };
        let of_store = || {
            let builds = declaration.need == Need::Nix && declaration.disk == Disk::Takes;
            self.store_is_full(conditions).filter(|_| builds)
        };
        refused.or_else(|| self.lacks(declaration)).or_else(of_store)
    }

    /// Returns the problem for which builds are refused if the disk of the store is too full.
    pub(super) fn store_is_full(&self, conditions: &Conditions) -> Option<Problem> {
        let (kept, free) = (self.limits.store_kept_bytes, conditions.store_free_bytes?);
        (free < kept).then(|| {
            let detail = format!(
                "the disk of the Nix store has {free} bytes left, and nix.min_free_bytes keeps {kept} of them; free some, such as with \
                 `leafctl nix gc`, then the leaf continues by itself"
            );
            Problem::new(ProblemCode::DiskFull, detail)
        })
    }

    /// Returns what there is to say of the store's disk, if it was said last whether it is full: it is so below what is kept,
    /// and has room again an eighth above that.
    pub(super) fn news_of_store(&self, conditions: &Conditions, was_full: bool) -> Option<LeafFact> {
        let (kept_bytes, free_bytes) = (self.limits.store_kept_bytes, conditions.store_free_bytes?);
        if !was_full && free_bytes < kept_bytes {
            return Some(LeafFact::StoreFilled(LeafStoreFilled {
                free_bytes,
                kept_bytes,
            }));
        }
        let has_room = free_bytes >= kept_bytes.saturating_add(kept_bytes / 8);
        (was_full && has_room).then_some(LeafFact::StoreHasRoom(LeafStoreHasRoom {
            free_bytes,
            kept_bytes,
        }))
    }

    /// Returns the problem if this leaf lacks what the command needs.
    fn lacks(&self, declaration: &Declaration) -> Option<Problem> {
        let need = match declaration.need {
            Need::Nothing => return None,
            Need::Containers => &self.capabilities.containers,
            Need::Nix => &self.capabilities.nix,
            Need::Secrets => &self.capabilities.secrets,
        };
        let why = need.as_ref().err()?;
        Some(Problem::new(ProblemCode::Unsupported, why.clone()))
    }

    /// Returns the problem for which changes are refused; `None` if they are admitted.
    pub(super) fn refuses_changes(&self, conditions: &Conditions) -> Option<Problem> {
        self.refuses_all(conditions)
            .or_else(|| self.keeps_reserve(conditions))
    }

    /// Like [`Self::refuses_changes`], for commands that free disk space: they may use the reserve.
    fn refuses_all(&self, conditions: &Conditions) -> Option<Problem> {
        if self.draining {
            let detail = "the daemon is stopping; send the command again after its restart";
            return Some(Problem::new(ProblemCode::Draining, detail));
        }
        if let Some(problem) = Self::cannot_keep(conditions) {
            return Some(problem);
        }
        let waiting = self.backlog.bytes;
        (waiting > self.limits.backlog_bytes).then(|| {
            let detail = format!(
                "{waiting} bytes of events wait to be published, more than the limit of {}; is NATS unreachable?",
                self.limits.backlog_bytes
            );
            Problem::new(ProblemCode::Overloaded, detail)
        })
    }

    /// Returns the problem for which nothing more can be kept in the journal; `None` if it can.
    pub(super) fn cannot_keep(conditions: &Conditions) -> Option<Problem> {
        if let Some(since) = conditions.full_since {
            let detail = format!(
                "the disk of the journal has been full since {since}; free some space, then the leaf continues by itself"
            );
            return Some(Problem::new(ProblemCode::DiskFull, detail));
        }
        let queued = conditions.queued_bytes;
        (queued > MAX_QUEUED_BYTES).then(|| {
            let detail = format!(
                "{queued} bytes wait for the disk of the journal, which is slow at the moment; try again"
            );
            Problem::new(ProblemCode::Overloaded, detail)
        })
    }

    fn keeps_reserve(&self, conditions: &Conditions) -> Option<Problem> {
        let reserve = self.limits.reserve_bytes;
        let detail = match &conditions.free_bytes {
            FreeSpace::Bytes(free) if *free >= reserve => return None,
            FreeSpace::Bytes(free) => format!(
                "the disk of the journal has {free} bytes left, and {reserve} are kept in reserve; free some space, then the leaf \
                continues by itself (stopping and destroying containers is still possible)"
            ),
            FreeSpace::Unknown(why) => {
                format!("can't read the free space of the journal's disk: {why}")
            }
        };
        Some(Problem::new(ProblemCode::DiskFull, detail))
    }
}
