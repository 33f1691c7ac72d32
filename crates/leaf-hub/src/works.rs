//! Answers the leaves' reports on their works: whether the first leaf of one is gone ([`Referee`]). `docs/protocol/placement.md`, part 4, is
//! the contract.
//!
//! What is believed of a work is the copy of the first leaf's state, and that it was taken over is a fact in the stream `FLEET` before
//! anybody is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use leaf_bus::hub::RemoteError;
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::fleet::referee::{FirstJob, Ruling};
use leaf_core::fleet::work::{
    MOST_TOLD, WorkAnswer, WorkReply, WorkReport, WorkTakenOver, WorkTold, WorkVerdict,
};
use leaf_core::id::{InstanceId, LeafName, WorkId};
use leaf_core::job::{Job, JobPhase};
use leaf_core::placement::work::WorkPlace;
use tokio::task::JoinSet;

use crate::heard::Answering;
use crate::shared::Shared;

/// How long the server of a leaf may take to answer.
const SERVER_WITHIN: Duration = Duration::from_secs(2);
/// How many works are remembered: as many as 1,000 leaves may have. What is forgotten is read again.
const MOST_REMEMBERED: usize = MOST_TOLD * 1000;

/// Answers a report. `firsts` are the instances that hold the names of the first leaves in it.
pub(crate) async fn answer(
    shared: Shared,
    answering: Answering,
    report: WorkReport,
    firsts: BTreeMap<LeafName, InstanceId>,
) -> WorkReply {
    let leaf = &answering.leaf;
    let mut reply = WorkReply::default();
    doubt(&shared, &report, &firsts).await;
    for told in report.works.into_iter().take(MOST_TOLD) {
        // A leaf that was never here has no work.
        let is_known = told.place == WorkPlace::First || firsts.contains_key(&told.other);
        match verdict(&shared, leaf, &told, is_known).await {
            Ok(None) => {}
            Ok(Some((answer, why))) => reply.answers.push(WorkAnswer {
                job: told.job,
                answer,
                why,
            }),
            Err(error) => {
                tracing::warn!(%leaf, work = %told.id, error = chain(&error), "can't say who has a build");
            }
        }
    }
    shared.works.change(|kept| {
        if kept.recorded.len() > MOST_REMEMBERED {
            kept.recorded.clear();
        }
    });
    reply
}

/// Asks the servers of those first leaves that were not heard for a while.
async fn doubt(shared: &Shared, report: &WorkReport, firsts: &BTreeMap<LeafName, InstanceId>) {
    let now = shared.now();
    let seconds = report.works.iter().filter(|told| told.place == WorkPlace::Second);
    let others: BTreeSet<&LeafName> = seconds.map(|told| &told.other).collect();
    let doubted = shared.works.change(|kept| {
        let doubted = others.into_iter().filter(|first| kept.referee.doubts(first, now));
        doubted.cloned().collect::<Vec<LeafName>>()
    });
    let mut asked = JoinSet::new();
    for first in doubted {
        let (shared, instance) = (shared.clone(), firsts.get(&first).copied());
        asked.spawn(async move {
            let answered = match instance {
                Some(instance) => answers(&shared, &first, instance).await,
                None => Some(false),
            };
            match answered {
                Some(answered) => shared
                    .works
                    .change(|kept| kept.referee.server(&first, now, answered)),
                None => shared.works.missed(shared.now()),
            }
        });
    }
    while asked.join_next().await.is_some() {}
}

/// Returns whether the server of an instance answers; `None` if the agent can't ask.
async fn answers(shared: &Shared, leaf: &LeafName, instance: InstanceId) -> Option<bool> {
    let mut remote = shared.hub.leaf(leaf);
    remote.is_held_by(instance);
    match tokio::time::timeout(SERVER_WITHIN, remote.extent()).await {
        Ok(Err(RemoteError::Disconnected)) => None,
        Ok(Err(RemoteError::NotLinked { .. })) | Err(_) => Some(false),
        Ok(_) => Some(true),
    }
}

/// What the agent says about a work, and why; `None` as long as it can't say it.
type Verdict = Option<(WorkVerdict, Option<String>)>;

/// Returns what the agent says to a leaf about a work. `is_known` says whether the first leaf was ever here.
async fn verdict(
    shared: &Shared,
    leaf: &LeafName,
    told: &WorkTold,
    is_known: bool,
) -> Result<Verdict, StreamError> {
    let first = match told.place {
        WorkPlace::First => leaf,
        WorkPlace::Second => &told.other,
    };
    let key = (first.clone(), told.id);
    let deciding = shared.works.kept.borrow().deciding.get(&key).cloned();
    if let Some(fact) = deciding {
        // Whether it was stored is not known: the first leaf gets no answer, and the second one has it stored again.
        return match told.place {
            WorkPlace::First => Ok(None),
            WorkPlace::Second => record(shared, told, leaf, fact).await,
        };
    }
    let recorded = recorded(shared, first, told.id).await?;
    if told.place == WorkPlace::First {
        if recorded.is_some() {
            return Ok(Some((WorkVerdict::TakenOver, None)));
        }
        let job = first_job(shared, first, told.id).await?;
        // While this was read, it may have been decided.
        let is_deciding = shared.works.kept.borrow().deciding.contains_key(&key);
        return Ok(to_first(is_deciding, job.as_ref()));
    }
    if let Some(fact) = recorded {
        return Ok(Some(by_fact(&fact, leaf, told)));
    }
    if !is_known {
        return Ok(Some((WorkVerdict::Unknown, None)));
    }
    let job = first_job(shared, first, told.id).await?;
    let now = shared.now();
    let ruling = shared.works.change(|kept| {
        let ruling = kept.referee.judge(leaf, told, job.as_ref(), now);
        let Ruling::TakeOver(why) = &ruling else {
            return Err(ruling);
        };
        let fact = WorkTakenOver {
            id: told.id,
            first: first.clone(),
            second: leaf.clone(),
            caller: told.caller.clone(),
            job: told.job,
            why: why.clone(),
        };
        kept.deciding.insert(key.clone(), fact.clone());
        Ok(fact)
    });
    match ruling {
        Ok(fact) => record(shared, told, leaf, fact).await,
        Err(Ruling::Ended) => Ok(Some((WorkVerdict::Ended, None))),
        Err(Ruling::Unknown) => Ok(Some((WorkVerdict::Unknown, None))),
        Err(Ruling::Held | Ruling::TakeOver(_)) => Ok(Some((WorkVerdict::Held, None))),
    }
}

/// Returns what the agent says to a first leaf of whose work no take-over is stored: nothing, if one may be stored right now.
fn to_first(is_deciding: bool, job: Option<&FirstJob>) -> Verdict {
    if is_deciding {
        return None;
    }
    let has_ended = job.is_some_and(|job| {
        matches!(
            job.phase,
            JobPhase::Succeeded | JobPhase::Failed | JobPhase::Cancelled
        )
    });
    let answer = if has_ended {
        WorkVerdict::Ended
    } else {
        WorkVerdict::Held
    };
    Some((answer, None))
}

/// Returns what a fact says to a second leaf: that it is its own, if it is this very job.
fn by_fact(fact: &WorkTakenOver, leaf: &LeafName, told: &WorkTold) -> (WorkVerdict, Option<String>) {
    if fact.second == *leaf && fact.job == told.job && fact.caller == told.caller {
        (WorkVerdict::Yours, Some(fact.why.clone()))
    } else {
        (WorkVerdict::Ended, None)
    }
}

/// Stores a fact, or finds the one that is stored, and returns what that says to the second leaf.
///
/// # Errors
/// The [`StreamError`]: then it may be stored, and the next report of the second leaf tries it again.
async fn record(
    shared: &Shared,
    told: &WorkTold,
    leaf: &LeafName,
    fact: WorkTakenOver,
) -> Result<Verdict, StreamError> {
    let stored = match shared.registry.put_taken_over(&fact).await {
        Ok(()) => {
            tracing::info!(work = %fact.id, first = %fact.first, second = %fact.second, why = fact.why, "a build is taken over");
            fact
        }
        // One is there: the answer to it was lost, or an earlier agent stored it.
        Err(StreamError::WrongLastSequence { .. }) => {
            match shared.registry.taken_over(&fact.first, fact.id).await? {
                Some(stored) => stored,
                None => return Ok(None),
            }
        }
        Err(error) => return Err(error),
    };
    let verdict = by_fact(&stored, leaf, told);
    let key = (stored.first.clone(), stored.id);
    shared.works.change(|kept| {
        kept.deciding.remove(&key);
        kept.recorded.insert(key, Some(stored));
    });
    Ok(Some(verdict))
}

/// Returns the fact that a work was taken over, if it was.
async fn recorded(
    shared: &Shared,
    first: &LeafName,
    work: WorkId,
) -> Result<Option<WorkTakenOver>, StreamError> {
    let key = (first.clone(), work);
    if let Some(known) = shared.works.kept.borrow().recorded.get(&key) {
        return Ok(known.clone());
    }
    let found = match shared.registry.taken_over(first, work).await {
        // It is made anew with the next fact, and not known to lack this one for good.
        Err(StreamError::NoStream { .. }) => return Ok(None),
        other => other?,
    };
    // What was stored meanwhile says more than what was read before.
    let known = shared
        .works
        .change(|kept| kept.recorded.entry(key).or_insert(found).clone());
    Ok(known)
}

/// Returns what the copy of the first leaf's state has of a work.
async fn first_job(shared: &Shared, first: &LeafName, work: WorkId) -> Result<Option<FirstJob>, StreamError> {
    let changes = {
        let kept = shared.works.kept.borrow();
        let changes = kept.changes.get(first).copied().unwrap_or_default();
        if let Some((read_after, jobs)) = kept.jobs.get(first)
            && *read_after == changes
        {
            return Ok(jobs.get(&work).cloned());
        }
        changes
    };
    let entries = shared.states.entries(first).await?;
    let jobs = entries.iter().filter(|(key, _)| key.starts_with("job."));
    let jobs: BTreeMap<WorkId, FirstJob> = jobs
        .filter_map(|(_, value)| FirstJob::of(&serde_json::from_slice::<Job>(value).ok()?))
        .collect();
    let job = jobs.get(&work).cloned();
    shared
        .works
        .change(|kept| kept.jobs.insert(first.clone(), (changes, jobs)));
    Ok(job)
}

#[cfg(test)]
mod tests {
    use leaf_core::id::{Caller, JobId};
    use uuid::Uuid;

    use super::*;

    fn leaf(name: &str) -> LeafName {
        LeafName::new(name).expect("a leaf's name")
    }

    fn caller(name: &str) -> Caller {
        Caller::new(name).expect("a caller")
    }

    #[test]
    fn a_first_leaf_gets_no_answer_while_a_take_over_may_be_stored() {
        let in_phase = |phase| FirstJob {
            second: leaf("second"),
            caller: caller("ann"),
            phase,
        };
        let says = |job: Option<&FirstJob>| to_first(false, job).map(|(answer, _)| answer);
        for phase in [JobPhase::Succeeded, JobPhase::Failed, JobPhase::Cancelled] {
            assert_eq!(
                says(Some(&in_phase(phase))),
                Some(WorkVerdict::Ended),
                "{phase:?}"
            );
        }
        for phase in [JobPhase::Queued, JobPhase::Running, JobPhase::Interrupted] {
            assert_eq!(says(Some(&in_phase(phase))), Some(WorkVerdict::Held), "{phase:?}");
            assert_eq!(to_first(true, Some(&in_phase(phase))), None, "{phase:?}");
        }
        assert_eq!(says(None), Some(WorkVerdict::Held));
        assert_eq!(to_first(true, None), None);
    }

    #[test]
    fn a_work_is_only_that_of_the_second_leaf_of_its_job_and_of_its_caller() {
        let (work, job) = (WorkId(Uuid::from_u128(1)), JobId(Uuid::from_u128(2)));
        let fact = WorkTakenOver {
            id: work,
            first: leaf("first"),
            second: leaf("second"),
            caller: caller("ann"),
            job,
            why: "it is gone".to_owned(),
        };
        let told = |job, by: &str| WorkTold {
            job,
            id: work,
            place: WorkPlace::Second,
            other: leaf("first"),
            caller: caller(by),
        };
        let second = leaf("second");
        let yours = by_fact(&fact, &second, &told(job, "ann"));
        assert_eq!(yours, (WorkVerdict::Yours, Some("it is gone".to_owned())));
        let another_job = JobId(Uuid::from_u128(3));
        for (to, told) in [
            (&second, told(another_job, "ann")),
            (&second, told(job, "ben")),
            (&leaf("third"), told(job, "ann")),
        ] {
            assert_eq!(
                by_fact(&fact, to, &told),
                (WorkVerdict::Ended, None),
                "{to} {told:?}"
            );
        }
    }
}
