//! When commands are refused: before the leaf promises something that it could not keep.

use std::collections::VecDeque;

use leaf_core::problem::{Problem, ProblemCode};
use leaf_journal::{Journal, JournalHealth};

use crate::ledger::EARLIER_EVENT_BYTES;
use crate::settings::Events;

/// Watches what the leaf needs for a promise: disk space, a journal that takes commits, room in the backlog.
pub struct Guard {
    settings: Events,
    draining: bool,
    was_refusing: bool,
    backlog: Backlog,
}

/// How much waits to be published, counted in steps: what is recorded, up to which sequence number.
#[derive(Default)]
struct Backlog {
    steps: VecDeque<(u64, u64)>,
    bytes: u64,
}

/// How much may wait for the journal's disk, in bytes; the journal itself takes four times as much.
const MAX_QUEUED_BYTES: usize = 8 << 20;

/// One step of the backlog, in bytes.
const STEP_BYTES: u64 = 64 * 1024;

impl Guard {
    /// Returns the guard for these limits. All that the journal holds counts as not published until something else is
    /// known.
    #[must_use]
    pub fn new(settings: Events, journal: &Journal) -> Self {
        let held = journal.held();
        let events = (held.last_sequence + 1).saturating_sub(held.first_sequence);
        let mut guard = Self {
            settings,
            draining: false,
            was_refusing: false,
            backlog: Backlog::default(),
        };
        if events > 0 {
            guard.recorded(held.last_sequence, events * EARLIER_EVENT_BYTES);
        }
        guard
    }

    /// Counts what was recorded, up to this sequence number.
    pub fn recorded(&mut self, sequence: u64, bytes: u64) {
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

    /// Counts what the stream is known to hold, up to this sequence number.
    pub fn published(&mut self, sequence: u64) {
        let backlog = &mut self.backlog;
        while let Some((last, size)) = backlog.steps.front()
            && *last <= sequence
        {
            backlog.bytes = backlog.bytes.saturating_sub(*size);
            backlog.steps.pop_front();
        }
    }

    /// From now on the daemon ends.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Looks whether something changed that a person should see in the log.
    pub fn look(&mut self, journal: &Journal) {
        let problem = self.refuses(journal);
        match &problem {
            Some(problem) if !self.was_refusing => {
                tracing::warn!(reason = problem.detail, "commands are refused");
            }
            None if self.was_refusing => tracing::info!("commands are taken again"),
            _ => {}
        }
        self.was_refusing = problem.is_some();
    }

    /// Returns why a command that changes something is refused now, or nothing if it may be accepted.
    #[must_use]
    pub fn refuses(&self, journal: &Journal) -> Option<Problem> {
        self.refuses_all(journal).or_else(|| self.keeps_reserve(journal))
    }

    /// The same for a command that may free space on the disk: it is taken at the expense of the reserve.
    #[must_use]
    pub fn refuses_all(&self, journal: &Journal) -> Option<Problem> {
        if self.draining {
            let detail = "the daemon is stopping; send the command again when it is back";
            return Some(Problem::new(ProblemCode::Draining, detail));
        }
        if let JournalHealth::DiskFull { since } = &*journal.health().borrow() {
            let detail = format!(
                "the disk of the journal is full since {since}; free some space, and it goes on by itself"
            );
            return Some(Problem::new(ProblemCode::DiskFull, detail));
        }
        let queued = journal.queued_bytes();
        if queued > MAX_QUEUED_BYTES {
            let detail =
                format!("{queued} bytes wait for the disk of the journal, which is slow just now; try again");
            return Some(Problem::new(ProblemCode::Overloaded, detail));
        }
        let waiting = self.backlog.bytes;
        (waiting > self.settings.backlog_bytes).then(|| {
            let detail = format!(
                "{waiting} bytes of events wait to be published, and at most {} may; is NATS out of reach?",
                self.settings.backlog_bytes
            );
            Problem::new(ProblemCode::Overloaded, detail)
        })
    }

    fn keeps_reserve(&self, journal: &Journal) -> Option<Problem> {
        let detail = match journal.free_bytes() {
            Ok(free) if free < self.settings.reserve_bytes => format!(
                "the disk of the journal has {free} bytes left, and {} are kept in reserve; free some space, and it goes on by \
                 itself (containers are stopped and destroyed all the same)",
                self.settings.reserve_bytes
            ),
            Ok(_) => return None,
            Err(error) => format!("the disk of the journal can't be asked for its free space: {error}"),
        };
        Some(Problem::new(ProblemCode::DiskFull, detail))
    }
}
