//! Jobs in the state: the entries `job.<id>`.

use jiff::Timestamp;

use super::{Entry, Kind, State, cause_of, same_key};
use crate::aggregate::Aggregate;
use crate::event::Event;
use crate::event::job::JobFact;
use crate::id::{Caller, JobId};
use crate::job::{Job, JobPhase, Task};
use crate::placement::demand::Demand;
use crate::placement::work::{JobWork, WorkPlace};

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
            let work = f.work.as_ref().map(|work| JobWork::new(work, WorkPlace::First));
            let job = Job {
                demand: f.demand.clone(),
                work: work.map(Box::new),
                ..accepted(f.id, &f.owner, &f.task, JobPhase::Queued, event)
            };
            state.jobs.insert(f.id, job);
            vec![Aggregate::Job(&f.id).key()]
        }
        JobFact::StoodBy(f) => {
            let job = Job {
                demand: f.demand.clone(),
                work: Some(Box::new(JobWork::new(&f.work, WorkPlace::Second))),
                ..accepted(f.id, &f.owner, &f.task, JobPhase::Standby, event)
            };
            state.jobs.insert(f.id, job);
            vec![Aggregate::Job(&f.id).key()]
        }
        JobFact::TakenOver(f) => match state.jobs.get_mut(&f.id) {
            Some(job) if job.phase == JobPhase::Standby => {
                job.phase = JobPhase::Queued;
                if let Some(work) = &mut job.work {
                    work.taken_over_at = Some(now);
                }
                vec![Aggregate::Job(&f.id).key()]
            }
            _ => Vec::new(),
        },
        JobFact::Superseded(f) => match state.jobs.get_mut(&f.id).and_then(|job| job.work.as_mut()) {
            Some(work) => {
                work.superseded_at.get_or_insert(now);
                vec![Aggregate::Job(&f.id).key()]
            }
            None => Vec::new(),
        },
        JobFact::Started(f) => match state.jobs.get_mut(&f.id) {
            Some(job) if !job.phase.is_final() && job.phase != JobPhase::Standby => {
                job.phase = JobPhase::Running;
                job.started_at = Some(now);
                vec![Aggregate::Job(&f.id).key()]
            }
            _ => Vec::new(),
        },
        JobFact::Taken(f) => match state.jobs.get_mut(&f.id).and_then(|job| job.task.session_mut()) {
            Some(session) => {
                session.key.clone_from(&f.key);
                vec![Aggregate::Job(&f.id).key()]
            }
            None => Vec::new(),
        },
        JobFact::Succeeded(f) => end_job(state, f.id, now, JobPhase::Succeeded, |job| {
            job.result = Some(f.result.clone());
        }),
        JobFact::Attested(f) => match state.jobs.get_mut(&f.id) {
            Some(job) => {
                job.attestation = Some(f.envelope.clone());
                vec![Aggregate::Job(&f.id).key()]
            }
            None => Vec::new(),
        },
        JobFact::Failed(f) => end_job(state, f.id, now, JobPhase::Failed, |job| {
            job.failure = Some(f.cause);
            job.error = Some(f.error.clone());
            job.partial.clone_from(&f.partial);
            job.explanation.clone_from(&f.explanation);
        }),
        JobFact::Cancelled(f) => end_job(state, f.id, now, JobPhase::Cancelled, |job| {
            job.error = Some(match &f.reason {
                Some(reason) => reason.clone(),
                None => format!("cancelled by {}", f.by),
            });
        }),
        JobFact::Interrupted(f) => end_job(state, f.id, now, JobPhase::Interrupted, |job| {
            job.error = Some(f.reason.clone());
        }),
    }
}

/// Returns a job that was just accepted.
fn accepted(id: JobId, owner: &Caller, task: &Task, phase: JobPhase, event: &Event) -> Job {
    Job {
        id,
        owner: owner.clone(),
        task: task.clone(),
        demand: Demand::default(),
        work: None,
        phase,
        cause: cause_of(event),
        queued_at: event.time,
        started_at: None,
        ended_at: None,
        result: None,
        failure: None,
        error: None,
        partial: Vec::new(),
        explanation: None,
        attestation: None,
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
    // This one stays, even if it was queued first, or the clock was set back: it was not shown yet.
    let mut others: Vec<(Option<Timestamp>, JobId)> = state
        .jobs
        .values()
        .filter(|job| job.phase.is_final() && job.id != id)
        .map(|job| (job.ended_at, job.id))
        .collect();
    others.sort_unstable();
    for (_, old) in others
        .iter()
        .take((others.len() + 1).saturating_sub(REMEMBERED_JOBS))
    {
        state.jobs.remove(old);
        keys.push(Aggregate::Job(old).key());
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Fact, JobInterrupted, JobQueued};
    use crate::job::{BuildTask, Installable};
    use crate::state::apply;

    #[test]
    fn the_last_jobs_to_end_are_remembered_whenever_they_were_queued() {
        let mut state = State::default();
        let mut sequence = 0;
        let mut record = |state: &mut State, fact: Fact| {
            sequence += 1;
            let event = Event {
                sequence,
                time: Timestamp::from_second(1_700_000_000 + sequence as i64).expect("a time"),
                causation: None,
                correlation: None,
                fact,
            };
            apply(state, &event);
        };
        let id = |number: usize| JobId(uuid::Uuid::from_u128(number as u128));
        let queued = |number| {
            Fact::from(JobQueued {
                demand: Demand::default(),
                work: None,
                id: id(number),
                owner: Caller::daemon(),
                task: Task::Build(BuildTask::new(
                    vec![Installable::Template {
                        name: "minimal".to_owned(),
                    }],
                    60,
                )),
            })
        };
        let ended = |number| {
            Fact::from(JobInterrupted {
                id: id(number),
                reason: "a test".to_owned(),
            })
        };
        record(&mut state, queued(0));
        for number in 1..=REMEMBERED_JOBS {
            record(&mut state, queued(number));
            record(&mut state, ended(number));
        }
        // The longest of all: it was queued before them, and ends after them.
        record(&mut state, ended(0));
        assert_eq!(state.jobs.len(), REMEMBERED_JOBS);
        assert!(state.jobs.contains_key(&id(0)));
        assert!(!state.jobs.contains_key(&id(1)));
        record(&mut state, queued(REMEMBERED_JOBS + 1));
        record(&mut state, ended(REMEMBERED_JOBS + 1));
        assert!(state.jobs.contains_key(&id(0)));
        assert!(!state.jobs.contains_key(&id(2)));
    }
}
