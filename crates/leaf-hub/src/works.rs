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
use leaf_core::job::Job;
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
        let verdict = match told.place {
            WorkPlace::Second if !firsts.contains_key(&told.other) => Ok((WorkVerdict::Unknown, None)),
            _ => verdict(&shared, leaf, &told).await,
        };
        match verdict {
            Ok((answer, why)) => reply.answers.push(WorkAnswer {
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

/// Returns what the agent says to a leaf about a work.
async fn verdict(
    shared: &Shared,
    leaf: &LeafName,
    told: &WorkTold,
) -> Result<(WorkVerdict, Option<String>), StreamError> {
    let (first, second) = match told.place {
        WorkPlace::First => (leaf, &told.other),
        WorkPlace::Second => (&told.other, leaf),
    };
    let recorded = recorded(shared, first, told.id).await?;
    if told.place == WorkPlace::First {
        let is_taken_over = recorded.is_some();
        return Ok((
            if is_taken_over {
                WorkVerdict::TakenOver
            } else {
                WorkVerdict::Held
            },
            None,
        ));
    }
    if let Some(by) = recorded {
        let is_own = by == *second;
        return Ok((
            if is_own {
                WorkVerdict::Yours
            } else {
                WorkVerdict::Ended
            },
            None,
        ));
    }
    let job = first_job(shared, first, told.id).await?;
    let now = shared.now();
    let ruling = shared
        .works
        .change(|kept| kept.referee.judge(second, told, job.as_ref(), now));
    let why = match ruling {
        Ruling::Held => return Ok((WorkVerdict::Held, None)),
        Ruling::Ended => return Ok((WorkVerdict::Ended, None)),
        Ruling::Unknown => return Ok((WorkVerdict::Unknown, None)),
        Ruling::TakeOver(why) => why,
    };
    let fact = WorkTakenOver {
        id: told.id,
        first: first.clone(),
        second: second.clone(),
        caller: told.caller.clone(),
        job: told.job,
        why: why.clone(),
    };
    match shared.registry.put_taken_over(&fact).await {
        Ok(()) => {
            tracing::info!(work = %told.id, %first, %second, why, "a build is taken over");
            let key = (first.clone(), told.id);
            shared
                .works
                .change(|kept| kept.recorded.insert(key, Some(second.clone())));
            Ok((WorkVerdict::Yours, Some(why)))
        }
        // The answer to the one that was stored was lost: the next report gets it.
        Err(StreamError::WrongLastSequence { .. }) => {
            shared
                .works
                .change(|kept| kept.recorded.remove(&(first.clone(), told.id)));
            Ok((WorkVerdict::Held, None))
        }
        Err(error) => {
            // It may have been stored.
            shared
                .works
                .change(|kept| kept.recorded.remove(&(first.clone(), told.id)));
            Err(error)
        }
    }
}

/// Returns which leaf has taken over a work, if one has.
async fn recorded(shared: &Shared, first: &LeafName, work: WorkId) -> Result<Option<LeafName>, StreamError> {
    let key = (first.clone(), work);
    if let Some(known) = shared.works.kept.borrow().recorded.get(&key) {
        return Ok(known.clone());
    }
    let found = shared.registry.taken_over(first, work).await?;
    let by = found.map(|fact| fact.second);
    shared.works.change(|kept| kept.recorded.insert(key, by.clone()));
    Ok(by)
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
