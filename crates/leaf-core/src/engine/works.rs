//! Works at this leaf: builds that a second leaf takes over if the first is gone (`docs/protocol/placement.md`, part 4).
//!
//! The shell tells the hub agent of the works every 3 s ([`Effect::TellWorks`]), and gives back its answers
//! ([`Input::WorksHeard`](super::Input::WorksHeard)).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::SignedDuration;

use crate::cause::Cause;
use crate::decide::not_allowed_now;
use crate::event::{Fact, JobCancelled, JobFailed, JobSuperseded, JobTakenOver};
use crate::fleet::work::{WorkAnswer, WorkTold, WorkVerdict};
use crate::id::{Caller, JobId};
use crate::job::{Explanation, FailureKind, Job, JobFailureCause, JobPhase};
use crate::moment::Moment;
use crate::placement::work::WorkPlace;

use super::Engine;
use super::output::Effect;
use super::turn::Turn;

/// How long after a report that the agent answered a queued job starts without another one: less than the silence after which the agent
/// takes the leaf for gone.
const LEASE: Duration = Duration::from_secs(8);
/// How long a job waits for the agent before it starts, where the agent can't be asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// The same where the agent answers, and says nothing of this job.
const ASKED_FOR: Duration = Duration::from_secs(5);
/// How long a standby waits for a job of which the agent knows nothing.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);
/// How long it waits for the job of the first leaf to start, beside the time limit of the job.
const STANDBY_FOR: SignedDuration = SignedDuration::from_hours(24);

/// The works of this leaf in memory, beside the state: leases, questions and answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Works {
    /// Since when the agent does not know the first leaf's job, of standbys.
    unknown_since: BTreeMap<JobId, Moment>,
    /// Since when the agent says that this leaf has a job which was interrupted.
    interrupted_since: BTreeMap<JobId, Moment>,
    /// Until when a queued job of the first place may start.
    may_start_until: BTreeMap<JobId, Moment>,
    /// Those for which the agent was asked before they start, and when.
    asked: BTreeMap<JobId, Moment>,
    /// The jobs of the first place of which the agent does not know yet that they have ended, or that were taken over.
    unsettled: BTreeSet<JobId>,
    /// The works of the report that the shell sends to the agent.
    told: Vec<WorkTold>,
}

impl Works {
    /// Notes that this leaf has accepted the first attempt of a work. Nobody can have taken it over yet.
    pub(super) fn accepted(&mut self, id: JobId, now: Moment) {
        self.unsettled.insert(id);
        self.may_start_until.insert(id, now.after(LEASE));
    }

    /// Notes that the agent has nothing more to hear of a job.
    fn settle(&mut self, id: JobId) {
        self.unsettled.remove(&id);
        self.forget(id);
    }

    /// Keeps only those that may start as things are.
    pub(super) fn startable(&mut self, startable: &[JobId]) {
        self.asked.retain(|id, _| startable.contains(id));
    }

    fn forget(&mut self, id: JobId) {
        self.interrupted_since.remove(&id);
        self.unknown_since.remove(&id);
        self.may_start_until.remove(&id);
        self.asked.remove(&id);
    }
}

impl Engine {
    /// Returns whether the hub agent says when a leaf is gone.
    pub(super) fn has_referee(&self) -> bool {
        self.hub.as_ref().is_some_and(|hub| hub.connected && hub.works)
    }

    /// Tells the agent of the works that the last instance left.
    pub(super) fn resume_works(&mut self, turn: &mut Turn) {
        let is_first = |job: &&Job| {
            let work = job.work.as_ref();
            work.is_some_and(|work| work.place == WorkPlace::First && work.superseded_at.is_none())
        };
        let first = self.state().jobs.values().filter(is_first).map(|job| job.id);
        let first: Vec<JobId> = first.collect();
        self.works.unsettled.extend(first);
        turn.may_tell_works = true;
    }

    /// Returns whether the agent has to be asked before a queued job starts, which another leaf may have taken over, and asks it.
    pub(super) fn asks_before_start(&mut self, turn: &mut Turn, id: JobId) -> bool {
        let is_first = self.state().jobs.get(&id).is_some_and(|job| {
            let work = job.work.as_ref();
            work.is_some_and(|work| work.place == WorkPlace::First)
        });
        let has_no_referee = self.hub.as_ref().is_some_and(|hub| hub.connected && !hub.works);
        if !is_first || has_no_referee {
            return false;
        }
        let now = turn.at.moment;
        let is_due = |until: &Moment| now <= *until;
        if self.works.may_start_until.get(&id).is_some_and(is_due) {
            return false;
        }
        if let Some(since) = self.works.asked.get(&id) {
            return now.since(*since) < ASKED_FOR;
        }
        self.works.asked.insert(id, now);
        turn.asks_for_works = true;
        true
    }

    /// Takes what the agent answered to a report that was sent then; `None` if there is no answer.
    pub(super) fn works_heard(&mut self, turn: &mut Turn, told_at: Moment, answers: Option<Vec<WorkAnswer>>) {
        let now = turn.at.moment;
        match answers {
            None => {
                // A leaf that is cut off goes on.
                let is_over = |since: Moment| since <= told_at && now.since(since) >= ANSWER_WITHIN;
                let over = self.works.asked.extract_if(.., |_, since| is_over(*since));
                let go_on: Vec<JobId> = over.map(|(id, _)| id).collect();
                let until = now.after(LEASE);
                self.works
                    .may_start_until
                    .extend(go_on.into_iter().map(|id| (id, until)));
            }
            Some(answers) => {
                for answer in answers {
                    self.work_answered(turn, told_at, answer);
                }
            }
        }
        self.give_up_standbys(turn);
        turn.may_start_jobs = true;
        turn.may_tell_works = true;
    }

    fn work_answered(&mut self, turn: &mut Turn, told_at: Moment, answer: WorkAnswer) {
        let WorkAnswer { job: id, answer, why } = answer;
        let Some(job) = self.state().jobs.get(&id) else {
            return;
        };
        let Some(work) = &job.work else { return };
        let (phase, cause) = (job.phase, job.cause.clone());
        let (other, is_told) = (work.other().clone(), work.superseded_at.is_some());
        match (work.place, answer) {
            (WorkPlace::First, WorkVerdict::Held) => {
                self.works.asked.remove(&id);
                self.works.may_start_until.insert(id, told_at.after(LEASE));
                // What has ended is told of until the agent knows that it has: until then it may say that this leaf is gone. An interrupted
                // job is the second leaf's to take.
                if phase == JobPhase::Interrupted {
                    let now = turn.at.moment;
                    let since = *self.works.interrupted_since.entry(id).or_insert(now);
                    if now.since(since) >= UNKNOWN_FOR {
                        self.works.settle(id);
                    }
                }
            }
            (WorkPlace::First, WorkVerdict::Ended) => {
                if phase.is_final() {
                    self.works.settle(id);
                }
            }
            (WorkPlace::First, WorkVerdict::TakenOver) => {
                let mut facts = Vec::new();
                if !is_told {
                    let by = other.clone();
                    facts.push(Fact::from(JobSuperseded { id, by }));
                }
                if phase == JobPhase::Queued {
                    let why =
                        format!("leaf {other} has taken the build over, since this one was taken for gone");
                    facts.push(cancelled(id, why));
                }
                if phase.is_final() || phase == JobPhase::Queued {
                    self.works.settle(id);
                }
                self.record(turn, &cause, facts);
            }
            (WorkPlace::Second, _) if phase != JobPhase::Standby => {}
            (WorkPlace::Second, WorkVerdict::Held) => {
                self.works.unknown_since.remove(&id);
            }
            (WorkPlace::Second, WorkVerdict::Ended) => {
                let why = format!("the build has ended at leaf {other}, and needs nobody who stands by");
                self.end_standby(turn, &cause, id, why);
            }
            (WorkPlace::Second, WorkVerdict::Unknown) => {
                let now = turn.at.moment;
                let since = *self.works.unknown_since.entry(id).or_insert(now);
                if now.since(since) >= UNKNOWN_FOR {
                    let seconds = UNKNOWN_FOR.as_secs();
                    let why = format!("the hub knew of no such build at leaf {other} for {seconds} s");
                    self.end_standby(turn, &cause, id, why);
                }
            }
            (WorkPlace::Second, WorkVerdict::Yours) => self.take_over(turn, &cause, id, why),
            (WorkPlace::First, WorkVerdict::Yours | WorkVerdict::Unknown)
            | (WorkPlace::Second, WorkVerdict::TakenOver)
            | (_, WorkVerdict::Other) => {}
        }
    }

    /// Queues a build that this leaf stood by for, unless its settings don't allow it any more.
    fn take_over(&mut self, turn: &mut Turn, cause: &Cause, id: JobId, why: Option<String>) {
        self.works.forget(id);
        let refused = self
            .state()
            .jobs
            .get(&id)
            .and_then(|job| not_allowed_now(job, &self.settings.jobs, &self.settings.nix_policy));
        let mut facts = vec![Fact::from(JobTakenOver { id, why })];
        if let Some(error) = refused {
            facts.push(Fact::from(JobFailed {
                id,
                cause: JobFailureCause::Failed,
                explanation: Some(Explanation::new(FailureKind::Policy, error.clone())),
                error,
                partial: Vec::new(),
            }));
        }
        self.record(turn, cause, facts);
    }

    fn end_standby(&mut self, turn: &mut Turn, cause: &Cause, id: JobId, why: String) {
        self.works.forget(id);
        self.record(turn, cause, [cancelled(id, why)]);
    }

    /// Cancels the standbys that have waited for too long.
    fn give_up_standbys(&mut self, turn: &mut Turn) {
        let now = turn.time();
        let is_late = |job: &&Job| {
            let limit = SignedDuration::from_secs(i64::from(job.task.timeout_seconds()));
            job.phase == JobPhase::Standby && now.duration_since(job.queued_at) > STANDBY_FOR + limit
        };
        let late = self.state().jobs.values().filter(is_late);
        let late: Vec<(JobId, Cause)> = late.map(|job| (job.id, job.cause.clone())).collect();
        for (id, cause) in late {
            let why = "it has stood by for longer than its time limit and a day".to_owned();
            self.end_standby(turn, &cause, id, why);
        }
    }

    /// Has the shell tell the agent of the works, if they have changed or are asked about.
    pub(super) fn tell_works(&mut self, turn: &mut Turn) {
        let asks = std::mem::take(&mut turn.asks_for_works);
        if !asks && !std::mem::take(&mut turn.may_tell_works) {
            return;
        }
        let Self { history, works, .. } = self;
        let jobs = &history.state().jobs;
        works.unsettled.retain(|id| jobs.contains_key(id));
        works.may_start_until.retain(|id, _| jobs.contains_key(id));
        works.asked.retain(|id, _| jobs.contains_key(id));
        works.unknown_since.retain(|id, _| jobs.contains_key(id));
        works.interrupted_since.retain(|id, _| jobs.contains_key(id));
        let is_told = |job: &&Job| job.phase == JobPhase::Standby || works.unsettled.contains(&job.id);
        let told: Vec<WorkTold> = jobs.values().filter(is_told).filter_map(told).collect();
        if asks || told != works.told {
            turn.effects.push(Effect::TellWorks(told.clone()));
            works.told = told;
        }
    }
}

fn cancelled(id: JobId, reason: String) -> Fact {
    Fact::from(JobCancelled {
        id,
        by: Caller::daemon(),
        reason: Some(reason),
    })
}

fn told(job: &Job) -> Option<WorkTold> {
    let work = job.work.as_ref()?;
    Some(WorkTold {
        job: job.id,
        id: work.id,
        place: work.place,
        other: work.other().clone(),
        caller: job.owner.clone(),
    })
}
