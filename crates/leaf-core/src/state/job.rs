//! Jobs in the state: the entries `job.<id>`.

use jiff::Timestamp;

use super::{Entry, Kind, State, cause_of, same_key};
use crate::aggregate::Aggregate;
use crate::event::Event;
use crate::event::job::JobFact;
use crate::id::JobId;
use crate::job::{Job, JobPhase};

/// The number of ended jobs that are remembered.
pub const REMEMBERED_JOBS: usize = 200;

pub(super) const KIND: Kind = Kind {
    name: "job",
    keys: |state| state.jobs.keys().map(|id| Aggregate::Job(id).key()).collect(),
    find: |state, id| state.jobs.get(&id.parse().ok()?).map(Entry::Job),
    put: |state, key, value| {
        let job: Job = serde_json::from_value(value)?;
        same_key(key, &Aggregate::Job(&job.id).key())?;
        state.jobs.insert(job.id, job);
        Ok(())
    },
    remove: |state, id| {
        let id = id.parse().ok();
        id.and_then(|id: JobId| state.jobs.remove(&id));
    },
    renewed: false,
};

pub(super) fn apply(state: &mut State, fact: &JobFact, event: &Event) -> Vec<String> {
    let now = event.time;
    match fact {
        JobFact::Queued(f) => {
            state.jobs.insert(
                f.id,
                Job {
                    id: f.id,
                    owner: f.owner.clone(),
                    task: f.task.clone(),
                    phase: JobPhase::Queued,
                    cause: cause_of(event),
                    queued_at: now,
                    started_at: None,
                    ended_at: None,
                    result: None,
                    failure: None,
                    error: None,
                },
            );
            vec![Aggregate::Job(&f.id).key()]
        }
        JobFact::Started(f) => match state.jobs.get_mut(&f.id) {
            Some(job) if !job.phase.is_final() => {
                job.phase = JobPhase::Running;
                job.started_at = Some(now);
                vec![Aggregate::Job(&f.id).key()]
            }
            _ => Vec::new(),
        },
        JobFact::Succeeded(f) => end_job(state, f.id, now, JobPhase::Succeeded, |job| {
            job.result = Some(f.result.clone());
        }),
        JobFact::Failed(f) => end_job(state, f.id, now, JobPhase::Failed, |job| {
            job.failure = Some(f.cause);
            job.error = Some(f.error.clone());
        }),
        JobFact::Cancelled(f) => end_job(state, f.id, now, JobPhase::Cancelled, |job| {
            job.error = Some(format!("cancelled by {}", f.by));
        }),
        JobFact::Interrupted(f) => end_job(state, f.id, now, JobPhase::Interrupted, |job| {
            job.error = Some(f.reason.clone());
        }),
    }
}

fn end_job(
    state: &mut State,
    id: JobId,
    now: Timestamp,
    phase: JobPhase,
    with: impl FnOnce(&mut Job),
) -> Vec<String> {
    let Some(job) = state.jobs.get_mut(&id) else {
        return Vec::new();
    };
    if job.phase.is_final() {
        return Vec::new();
    }
    job.phase = phase;
    job.ended_at = Some(now);
    with(job);
    let mut keys = vec![Aggregate::Job(&id).key()];
    let ended: Vec<JobId> = state
        .jobs
        .values()
        .filter(|job| job.phase.is_final())
        .map(|job| job.id)
        .collect();
    for old in ended.iter().take(ended.len().saturating_sub(REMEMBERED_JOBS)) {
        state.jobs.remove(old);
        keys.push(Aggregate::Job(old).key());
    }
    keys
}
