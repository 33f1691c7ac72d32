//! Builds with a second leaf that takes them over: docs/protocol/placement.md, part 4.

use std::time::{Duration, Instant};

use clap::Args;
use futures::future::join_all;
use leaf_core::command::{CancelJob, ListJobs, ShowJob};
use leaf_core::error::chain;
use leaf_core::id::{JobId, LeafName, WorkId};
use leaf_core::job::{Job, JobPhase};
use leaf_core::placement::work::{WorkPlace, counts};
use leaf_core::printable::printable_line;
use serde_json::json;

use super::follow::follow;
use crate::error::Error;
use crate::leaf::{Leaf, away_since};
use crate::output::{Output, ago, first_line, name_of, tell};
use crate::session::Session;

/// How long a leaf may take to say what it has of a work.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// How often the second leaf is asked.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long the second leaf may be silent when the first one's job has ended, until it is named.
const UNDECIDED_FOR: Duration = Duration::from_secs(10);
/// How long both leaves may be silent before the command gives up.
const BOTH_SILENT: u32 = 60;

/// The leaf that takes a build over if the first one is lost.
pub(super) struct Standby {
    /// The leaf.
    pub leaf: Leaf,
    /// Its job.
    pub job: JobId,
}

impl Standby {
    /// Waits until the job stands by no more, and returns whether it has taken the build over. With `gives_up`, a leaf that does not answer
    /// for long is an error; without it, it is asked for ever.
    async fn decided(&self, gives_up: bool) -> Result<bool, Error> {
        let mut silent = 0;
        loop {
            match self
                .leaf
                .call_briefly(&ShowJob { id: self.job }, ASK_WITHIN)
                .await
            {
                Ok(report) => {
                    silent = 0;
                    if report.job.phase != JobPhase::Standby {
                        let work = report.job.work;
                        return Ok(work.is_some_and(|work| work.taken_over_at.is_some()));
                    }
                }
                Err(error) => {
                    silent += 1;
                    if gives_up && silent >= BOTH_SILENT {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Follows a build to its end, at whichever of the two leaves counts.
pub(super) async fn follow_work(
    first: Leaf,
    job: JobId,
    standby: Standby,
    output: Output,
) -> Result<(Leaf, Job), Error> {
    let followed = tokio::select! {
        biased;
        followed = follow(&first, job, output) => Some(followed),
        decided = standby.decided(false) => decided.is_ok_and(|is_taken_over| !is_taken_over).then_some(Err(Error::NoLeaf(String::new()))),
    };
    let is_taken_over = match followed {
        None => true,
        Some(Ok(ended)) => {
            // Only a job that nobody has taken over counts.
            if !is_superseded(&standby).await {
                return Ok((first, ended));
            }
            true
        }
        Some(Err(error @ Error::Interrupted { .. })) => return Err(error),
        Some(Err(error @ Error::Job { .. })) => {
            let was_interrupted =
                matches!(&error, Error::Job { phase, .. } if *phase == name_of(&JobPhase::Interrupted));
            let is_taken_over = if was_interrupted {
                decided_or_interrupted(&standby).await?
            } else {
                is_superseded(&standby).await
            };
            if !is_taken_over {
                return Err(error);
            }
            true
        }
        // The first leaf does not answer, or nobody stands by any more.
        Some(Err(_)) => decided_or_interrupted(&standby).await?,
    };
    if !is_taken_over {
        let ended = follow(&first, job, output).await?;
        return Ok((first, ended));
    }
    tell(format!(
        "leaf {} is gone: leaf {} has taken the build over, with job {}",
        first.name, standby.leaf.name, standby.job
    ));
    let ended = follow(&standby.leaf, standby.job, output).await?;
    Ok((standby.leaf, ended))
}

/// Waits until it is decided who has the build.
async fn decided_or_interrupted(standby: &Standby) -> Result<bool, Error> {
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted {
            note: Some(format!("job {} at leaf {} may take the build over", standby.job, standby.leaf.name)),
        }),
        decided = standby.decided(true) => decided,
    }
}

/// Returns whether the second leaf has taken the build over. One that does not answer is asked for some seconds, and then named: its job may
/// count.
async fn is_superseded(standby: &Standby) -> bool {
    let until = Instant::now() + UNDECIDED_FOR;
    loop {
        let report = standby
            .leaf
            .call_briefly(&ShowJob { id: standby.job }, ASK_WITHIN)
            .await;
        match report {
            Ok(report) => {
                return report.job.work.is_some_and(|work| work.taken_over_at.is_some());
            }
            Err(error) if Instant::now() >= until => {
                tell(format!(
                    "leaf {} does not say whether it has taken the build over with job {}, which would count in the place of this one: {}",
                    standby.leaf.name,
                    standby.job,
                    printable_line(&chain(&error))
                ));
                return false;
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Cancels the other job of a work, that of the second leaf before that of the first one. A leaf that does not answer is named.
pub(super) async fn cancel_both(session: &Session, leaf: &Leaf, job: Job) -> Result<Job, Error> {
    let Some(work) = job.work.clone() else {
        return leaf.call_slow(&CancelJob { id: job.id }).await;
    };
    let other = session.alone(work.other().clone());
    let cancel_other = async {
        let jobs = other.call_briefly(&ListJobs {}, ASK_WITHIN).await?.jobs;
        let is_it = |job: &&Job| job.work.as_ref().is_some_and(|of_job| of_job.id == work.id);
        match jobs.iter().find(is_it).filter(|job| !job.phase.is_final()) {
            Some(job) => other.call_slow(&CancelJob { id: job.id }).await.map(drop),
            None => Ok(()),
        }
    };
    let say = |result: Result<(), Error>| {
        if let Err(error) = result {
            tell(format!(
                "the job of the same work at leaf {} was not cancelled: {}",
                other.name,
                printable_line(&chain(&error))
            ));
        }
    };
    match work.place {
        WorkPlace::First => {
            say(cancel_other.await);
            leaf.call_slow(&CancelJob { id: job.id }).await
        }
        WorkPlace::Second => {
            let cancelled = leaf.call_slow(&CancelJob { id: job.id }).await?;
            say(cancel_other.await);
            Ok(cancelled)
        }
    }
}

/// Show both jobs of a build that a second leaf takes over if the first one is lost, and which of them counts.
#[derive(Debug, Args)]
pub(crate) struct ShowWork {
    /// The work's id, as `nix build --any` prints it.
    work: WorkId,
}

/// A job of a work.
struct Found {
    leaf: LeafName,
    job: Job,
}

impl ShowWork {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let listed = session.selected_or_all().await?;
        let heard = listed.into_iter().filter_map(|selected| selected.heard);
        let online = heard.filter(|heard| away_since(heard).is_none());
        let leaves: Vec<Leaf> = online.map(|heard| session.alone(heard.beat.leaf)).collect();
        let asked = leaves.iter().map(async |leaf| {
            let jobs = leaf.call_briefly(&ListJobs {}, ASK_WITHIN).await.ok()?.jobs;
            let is_it = |job: &Job| job.work.as_ref().is_some_and(|work| work.id == self.work);
            let job = jobs.into_iter().find(is_it)?;
            Some(Found {
                leaf: leaf.name.clone(),
                job,
            })
        });
        let mut found: Vec<Found> = join_all(asked).await.into_iter().flatten().collect();
        let works: Vec<_> = found
            .iter()
            .filter_map(|found| found.job.work.as_deref())
            .collect();
        let Some(work) = works.first().copied().cloned() else {
            return Err(Error::NotFound(format!(
                "no leaf that answers has a job of the work {}",
                self.work
            )));
        };
        let counting = counts(&works);
        found.sort_by_key(|found| found.job.work.as_ref().map(|work| work.place));
        let jobs: Vec<_> = [(WorkPlace::First, &work.first), (WorkPlace::Second, &work.second)]
            .into_iter()
            .map(|(place, leaf)| (place, leaf, found.iter().find(|found| found.leaf == *leaf)))
            .collect();
        let document = json!({
            "work": self.work,
            "jobs": jobs.iter().map(|(place, leaf, found)| json!({
                "leaf": leaf,
                "place": place,
                "state": state(*place, counting),
                "job": found.map(|found| &found.job),
            })).collect::<Vec<_>>(),
        });
        output.document(&document, |_| {
            let mut table = output.table(&["LEAF", "JOB", "PHASE", "QUEUED", "", "RESULT"]);
            for (place, leaf, found) in &jobs {
                let state = state(*place, counting).to_owned();
                match found {
                    Some(Found { job, .. }) => table.add_row([
                        leaf.to_string(),
                        job.id.to_string(),
                        name_of(&job.phase),
                        ago(job.queued_at),
                        state,
                        first_line(job.error.as_deref()),
                    ]),
                    None => table.add_row([
                        leaf.to_string(),
                        String::new(),
                        "does not answer".to_owned(),
                        String::new(),
                        state,
                        String::new(),
                    ]),
                };
            }
            table
        })
    }
}

/// Returns what a job of a work is, when that of this place counts.
fn state(place: WorkPlace, counting: WorkPlace) -> &'static str {
    match (place, counting) {
        (WorkPlace::First, WorkPlace::First) | (WorkPlace::Second, WorkPlace::Second) => "counts",
        (WorkPlace::First, WorkPlace::Second) => "superseded",
        (WorkPlace::Second, WorkPlace::First) => "stands by",
    }
}
