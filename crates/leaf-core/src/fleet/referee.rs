//! The hub agent's decision whether the first leaf of a work is gone, so that the second one takes its build over. It is the only place
//! where that is decided, and [`Ruling::TakeOver`] counts only once it is a fact in the stream `FLEET`.
//!
//! A leaf that has works tells so every 3 s. One that the agent did not hear for [`SILENCE`], although it listened all the time, is gone
//! unless its server still answers: then it gets [`RESTART`].

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{Caller, LeafName, WorkId};
use crate::job::{Job, JobPhase};
use crate::placement::work::WorkPlace;

use super::work::WorkTold;

/// The time without a report after which a leaf is gone: three of them are missing.
pub const SILENCE: Duration = Duration::from_secs(10);
/// The same of a leaf whose server still answers: leafd may be starting again.
pub const RESTART: Duration = Duration::from_secs(60);
/// The time after its start in which an agent takes no leaf for gone.
pub const FIRST_LOOK: Duration = Duration::from_secs(20);
/// The time without a report after which a leaf's server is asked.
pub const DOUBT: Duration = Duration::from_millis(3500);
/// The longest pause between two looks of an agent that listens. After a longer one it has missed reports.
const ATTENTION: Duration = Duration::from_secs(3);
/// The time after which what is not asked for any more is forgotten.
const FORGET: Duration = Duration::from_secs(3600);

/// The first leaf's job of a work, as the agent's copy of that leaf's state has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstJob {
    /// The second leaf, as the first one's command named it.
    pub second: LeafName,
    /// The caller of the command.
    pub caller: Caller,
    /// The job's phase.
    pub phase: JobPhase,
}

impl FirstJob {
    /// Returns what a job of a leaf says of the work whose first attempt it is, if it is one.
    #[must_use]
    pub fn of(job: &Job) -> Option<(WorkId, Self)> {
        let work = job.work.as_ref().filter(|work| work.place == WorkPlace::First)?;
        let first = Self {
            second: work.second.clone(),
            caller: job.owner.clone(),
            phase: job.phase,
        };
        Some((work.id, first))
    }
}

/// The agent's ruling for the second leaf of a work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    /// The first leaf has it, or may have it.
    Held,
    /// Its job has ended.
    Ended,
    /// It has no such job, or one with another second leaf or caller.
    Unknown,
    /// It is gone, for this reason: the second leaf takes it over as soon as that is recorded.
    TakeOver(String),
}

/// What the agent has heard of leaves with works. All times are of its own clock, since its start.
#[derive(Debug, Clone, Default)]
pub struct Referee {
    /// When something was told last.
    looked: Duration,
    /// Since when it has listened without a pause.
    listens_since: Duration,
    /// When a leaf was heard last.
    heard: BTreeMap<LeafName, Duration>,
    /// Whether a leaf's server answered, and when it was asked.
    servers: BTreeMap<LeafName, (Duration, bool)>,
    /// Since when the first leaf's job is known, and when it was asked about last.
    known: BTreeMap<(LeafName, WorkId), (Duration, Duration)>,
}

impl Referee {
    /// Notes that the agent listens at this time. It has to be called at least every second, and before each of the others.
    pub fn look(&mut self, now: Duration) {
        if now.saturating_sub(self.looked) > ATTENTION {
            self.listens_since = now;
        }
        self.looked = now;
    }

    /// Notes that the agent's connection was lost or is made anew: reports may have been missed.
    pub fn missed(&mut self, now: Duration) {
        self.look(now);
        self.listens_since = now;
    }

    /// Notes a report of the instance that holds the name of a leaf.
    pub fn heard(&mut self, leaf: &LeafName, now: Duration) {
        self.look(now);
        self.heard.insert(leaf.clone(), now);
        self.servers.remove(leaf);
        self.heard.retain(|_, at| now.saturating_sub(*at) < FORGET);
        self.known.retain(|_, (_, at)| now.saturating_sub(*at) < FORGET);
        self.servers.retain(|_, (at, _)| now.saturating_sub(*at) < FORGET);
    }

    /// Returns how long a leaf was not heard although the agent listened.
    #[must_use]
    pub fn silence(&self, leaf: &LeafName, now: Duration) -> Duration {
        let heard = self.heard.get(leaf).copied().unwrap_or_default();
        now.saturating_sub(heard.max(self.listens_since))
    }

    /// Returns whether it has to be asked whether the server of a leaf answers.
    #[must_use]
    pub fn doubts(&self, leaf: &LeafName, now: Duration) -> bool {
        self.silence(leaf, now) >= DOUBT
    }

    /// Notes whether the server of a leaf answered a question that was put at this time.
    pub fn server(&mut self, leaf: &LeafName, asked_at: Duration, answered: bool) {
        // A report that came meanwhile says more.
        if self.heard.get(leaf).is_none_or(|heard| *heard < asked_at) {
            self.servers.insert(leaf.clone(), (asked_at, answered));
        }
    }

    /// Decides about a work that its second leaf tells of. `first` is what the copy of the first leaf's state has of it.
    pub fn judge(
        &mut self,
        second: &LeafName,
        told: &WorkTold,
        first: Option<&FirstJob>,
        now: Duration,
    ) -> Ruling {
        self.look(now);
        let Some(job) = first.filter(|job| job.second == *second && job.caller == told.caller) else {
            return Ruling::Unknown;
        };
        match job.phase {
            JobPhase::Succeeded | JobPhase::Failed | JobPhase::Cancelled => return Ruling::Ended,
            JobPhase::Interrupted => {
                return Ruling::TakeOver(format!("the job was interrupted at {}", told.other));
            }
            // The first leaf's is never in standby.
            JobPhase::Standby | JobPhase::Queued | JobPhase::Running => {}
        }
        let known = self
            .known
            .entry((told.other.clone(), told.id))
            .or_insert((now, now));
        known.1 = now;
        let known_for = now.saturating_sub(known.0);
        let silence = self.silence(&told.other, now).min(known_for);
        if now < FIRST_LOOK || silence < SILENCE {
            return Ruling::Held;
        }
        match self.servers.get(&told.other) {
            Some((_, false)) => {}
            Some((_, true)) if silence >= RESTART => {}
            Some((_, true)) | None => return Ruling::Held,
        }
        let why = format!("nothing was heard of {} for {} s", told.other, silence.as_secs());
        Ruling::TakeOver(why)
    }
}
