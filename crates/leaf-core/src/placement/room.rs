//! What a leaf has for jobs, what is left of it, and which queued jobs start.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::Timestamp;

use super::JobKey;
use super::demand::{Demand, Features};
use super::offer::{Offer, Verdict};
use super::pressure::{Pressure, PressureLimits};
use crate::id::JobId;
use crate::job::{Installable, Job, JobPhase};
use crate::state::State;

/// What a leaf has for jobs, and its rules: constant for an instance of leafd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobRules {
    /// The maximum number of running jobs.
    pub max_running: usize,
    /// The maximum number of queued jobs.
    pub max_queued: usize,
    /// The time limit of a job whose command sets none, in seconds.
    pub timeout_seconds: u32,
    /// What the leaf has of each feature.
    pub features: Features,
    /// The limits of pressure.
    pub limits: PressureLimits,
    /// The system of its Nix, such as `x86_64-linux`; empty if it is not known.
    pub system: String,
    /// The further systems that its Nix builds for.
    pub more_systems: BTreeSet<String>,
}

impl JobRules {
    /// Returns the reason why the leaf never has enough for this demand, if it hasn't.
    #[must_use]
    pub fn lacks(&self, demand: &Demand) -> Option<String> {
        let lacking =
            |(name, count): &(&String, &u16)| self.features.get(*name).is_none_or(|has| has < *count);
        let (name, count) = demand.features.iter().find(lacking)?;
        Some(match self.features.get(name) {
            Some(has) => {
                format!("the job takes {count} of the feature {name}, and the leaf has {has} (nix.features)")
            }
            None => format!("the leaf has no feature {name} (nix.features)"),
        })
    }

    /// Returns the reason why the leaf builds these installables for none of the systems, if that is so. What Nix evaluates, it
    /// evaluates for its own system.
    #[must_use]
    pub fn lacks_system<'a>(
        &self,
        systems: &BTreeSet<String>,
        mut installables: impl Iterator<Item = &'a Installable>,
    ) -> Option<String> {
        let is_evaluated = |installable: &Installable| match installable {
            Installable::Flake { .. } | Installable::File { .. } | Installable::Template { .. } => true,
            Installable::StorePath { .. } | Installable::Derivation { .. } => false,
        };
        let by_own = installables.any(is_evaluated);
        if systems.is_empty()
            || systems.contains(&self.system)
            || (!by_own && !systems.is_disjoint(&self.more_systems))
        {
            return None;
        }
        let wanted: Vec<&str> = systems.iter().map(String::as_str).collect();
        let own = if self.system.is_empty() {
            "an unknown system"
        } else {
            &self.system
        };
        let more: Vec<&str> = self.more_systems.iter().map(String::as_str).collect();
        Some(if by_own || more.is_empty() {
            format!("the leaf evaluates for {own}, not for {}", wanted.join(" or "))
        } else {
            format!(
                "the leaf builds for {own}, {}, not for {}",
                more.join(", "),
                wanted.join(" or ")
            )
        })
    }

    /// Returns the queued jobs that start now, in their order: by priority and age, as far as there is room beside the running jobs
    /// that take a place.
    #[must_use]
    pub fn startable(&self, state: &State, in_places: usize, now: Timestamp) -> Vec<JobId> {
        let (started, _) = self.walk(queue(state, now), in_places, state);
        started
    }

    /// Returns the reason why a job that comes now would not start at once, if it would not.
    #[must_use]
    pub fn waits_for(&self, state: &State, job: &Job, in_places: usize, now: Timestamp) -> Option<String> {
        let mut queue = queue(state, now);
        queue.push(job);
        sort(&mut queue, now);
        let (started, left) = self.walk(queue, in_places, state);
        if started.contains(&job.id) {
            return None;
        }
        Some(match left.lacks(&job.demand.features) {
            Some(name) => format!("other jobs have, or wait for, what the leaf has of the feature {name}"),
            None => {
                let open = open(state).count();
                format!(
                    "{open} jobs are open, and at most {} run at once",
                    self.max_running
                )
            }
        })
    }

    /// Goes through the queue. Returns the jobs that start, and what is left then.
    fn walk(&self, queue: Vec<&Job>, in_places: usize, state: &State) -> (Vec<JobId>, Left) {
        let running: Vec<&Job> = open(state).filter(|job| job.phase == JobPhase::Running).collect();
        let mut room = self.max_running.saturating_sub(in_places);
        let mut left = Left::of(self, &running);
        let mut busy: BTreeSet<JobKey> = running.iter().filter_map(|job| JobKey::of(&job.task)).collect();
        let mut started = Vec::new();
        for job in queue {
            if room == 0 {
                break;
            }
            let key = JobKey::of(&job.task);
            if key.as_ref().is_some_and(|key| busy.contains(key)) {
                // Nix would have it wait for its lock.
                continue;
            }
            if left.lacks(&job.demand.features).is_some() {
                left.hold(&job.demand.features);
                continue;
            }
            left.take(&job.demand.features);
            started.push(job.id);
            busy.extend(key);
            room -= 1;
        }
        (started, left)
    }

    /// Returns the leaf's offer with this verdict.
    #[must_use]
    pub fn offer(
        &self,
        state: &State,
        verdict: Verdict,
        why: Option<String>,
        pressure: Option<Pressure>,
    ) -> Offer {
        let in_phase = |phase| open(state).filter(move |job| job.phase == phase);
        let running: Vec<&Job> = in_phase(JobPhase::Running).collect();
        Offer {
            verdict,
            why,
            running: running.len() as u64,
            queued: in_phase(JobPhase::Queued).count() as u64,
            max_jobs: self.max_running as u64,
            features_free: Left::of(self, &running).free,
            pressure,
            works: false,
        }
    }
}

/// Returns whether a job about the same is open.
#[must_use]
pub fn works_on(state: &State, key: &JobKey) -> bool {
    open(state).any(|job| JobKey::of(&job.task).as_ref() == Some(key))
}

/// The jobs that have not ended, and that no other leaf carries out.
fn open(state: &State) -> impl Iterator<Item = &Job> {
    let is_open = |job: &&Job| !job.phase.is_final() && job.phase != JobPhase::Standby;
    state.jobs.values().filter(is_open)
}

/// The queued jobs in the order in which they start.
fn queue(state: &State, now: Timestamp) -> Vec<&Job> {
    let mut queued: Vec<&Job> = open(state).filter(|job| job.phase == JobPhase::Queued).collect();
    sort(&mut queued, now);
    queued
}

/// Sorts by priority, those first that were taken over from another leaf. The sort is stable, and the ids of jobs sort by their age.
fn sort(queue: &mut [&Job], now: Timestamp) {
    queue.sort_by_key(|job| {
        let waited_seconds = now.duration_since(job.queued_at).as_secs();
        let is_taken_over = job.work.as_ref().is_some_and(|work| work.taken_over_at.is_some());
        Reverse((is_taken_over, job.demand.priority.after(waited_seconds)))
    });
}

/// What is left of a leaf's features.
struct Left {
    free: Features,
    /// Those that a job before takes, which waits.
    held: BTreeSet<String>,
}

impl Left {
    /// Returns what the running jobs leave.
    fn of(rules: &JobRules, running: &[&Job]) -> Self {
        let mut left = Self {
            free: rules.features.clone(),
            held: BTreeSet::new(),
        };
        for job in running {
            left.take(&job.demand.features);
        }
        left
    }

    fn take(&mut self, features: &Features) {
        for (name, count) in features {
            if let Some(free) = self.free.get_mut(name) {
                *free = free.saturating_sub(*count);
            }
        }
    }

    fn hold(&mut self, features: &Features) {
        self.held.extend(features.keys().cloned());
    }

    /// Returns a feature of which there is not enough.
    fn lacks<'a>(&self, features: &'a Features) -> Option<&'a String> {
        let is_enough = |name: &String, count: &u16| {
            !self.held.contains(name) && self.free.get(name).is_some_and(|free| free >= count)
        };
        let mut features = features.iter();
        features.find_map(|(name, count)| (!is_enough(name, count)).then_some(name))
    }
}
