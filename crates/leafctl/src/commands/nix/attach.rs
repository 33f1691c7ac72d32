use std::collections::BTreeSet;
use std::time::Duration;

use clap::Args;
use leaf_core::command::{JobActivities, ShowActivities, ShowJob};
use leaf_core::id::JobId;
use leaf_core::job::activities::{Activities, BuildState};
use leaf_core::job::{Job, JobPhase, Progress};

use super::build::text;
use super::follow::outcome;
use super::tree::{build_line, lines, summary, transfer_line};
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::{Output, tell};
use crate::progress::Picture;
use crate::session::Session;
use crate::text::Text;

/// The longest and the shortest time between two looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);

/// Show what a running job builds and fetches, as a tree, until it ends, and then its outcome. Ctrl-C leaves the job alone.
#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The job's id, as `nix jobs` lists it.
    job: JobId,
}

impl Attach {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        let id = self.job;
        let mut watch = Watch {
            picture: Picture::new(!output.is_json()),
            speaks: !output.is_json(),
            said: BTreeSet::new(),
            asks: true,
        };
        let job = tokio::select! {
            // First, so that the signal is handled from the beginning.
            biased;
            _ = tokio::signal::ctrl_c() => Err(Error::Interrupted {
                note: Some(format!(
                    "job {id} continues; `leafctl nix attach {id}` shows it again, `leafctl nix cancel {id}` ends it"
                )),
            }),
            job = watch.until_its_end(&leaf, id) => job,
        };
        watch.picture.finish();
        output.document(&outcome(job?)?, text)
    }
}

struct Watch {
    picture: Picture,
    /// Whether lines are printed, where there is no terminal.
    speaks: bool,
    /// The lines that were printed, without their times.
    said: BTreeSet<String>,
    /// Whether the leaf is asked for activities: an older one does not know them.
    asks: bool,
}

impl Watch {
    async fn until_its_end(&mut self, leaf: &Leaf, id: JobId) -> Result<Job, Error> {
        // Subscribes before the first query, so that the job's end can't be missed in between.
        let mut hints = leaf.client.job_hints(&leaf.name, id).await?;
        loop {
            let report = leaf.call(&ShowJob { id }).await?;
            if report.job.phase.is_final() {
                return Ok(report.job);
            }
            let seen = if self.asks && report.job.phase == JobPhase::Running {
                leaf.call(&ShowActivities { id }).await
            } else {
                Ok(JobActivities {
                    now: report.job.queued_at,
                    activities: None,
                })
            };
            // An older leaf has no such command; one that is gone is found out by the next look at the job.
            self.asks &= seen.is_ok();
            match seen {
                Ok(JobActivities {
                    now,
                    activities: Some(seen),
                }) => {
                    if self.picture.is_shown() {
                        let (columns, rows) = Picture::size();
                        self.picture.show(&lines(&seen, now, columns, rows));
                    } else if self.speaks {
                        self.say(&seen, now);
                    }
                }
                _ => self.show_line(&without(&report.job, report.progress.as_ref())),
            }
            tokio::time::sleep(PAUSE).await;
            hints.next(LOOK_AGAIN).await;
        }
    }

    /// Shows a line, or prints it if it was not the last.
    fn show_line(&mut self, line: &str) {
        let line = Text::line(line);
        if self.picture.is_shown() {
            self.picture.show(&[line.as_str().to_owned()]);
        } else if self.speaks && self.said.insert(line.as_str().to_owned()) {
            tell(line);
        }
    }

    /// Prints a line for each build and transfer that began or ended since the last look.
    fn say(&mut self, seen: &Activities, now: jiff::Timestamp) {
        for build in seen.builds.iter().rev() {
            if self.said.insert(format!("{} began", build.derivation)) && build.state == BuildState::Running {
                tell(Text::line(&build_line(build, now)));
            }
            if build.state != BuildState::Running && self.said.insert(format!("{} ended", build.derivation)) {
                tell(Text::line(&build_line(build, now)));
            }
        }
        for transfer in &seen.transfers {
            if self.said.insert(format!("{} moves", transfer.what)) {
                tell(Text::line(&transfer_line(transfer, now)));
            }
        }
        if seen.builds.is_empty() && seen.transfers.is_empty() {
            self.show_line(&summary(seen));
        }
    }
}

/// Returns what is known of a job whose activities are not.
fn without(job: &Job, progress: Option<&Progress>) -> String {
    match (job.phase, progress) {
        (JobPhase::Queued, _) => "queued".to_owned(),
        (_, Some(progress)) if progress.expected > 0 => {
            let activity = progress.activity.as_deref().unwrap_or_default();
            format!("[{}/{}] {activity}", progress.done, progress.expected)
        }
        _ if job.task.session().is_some() => {
            format!("running; `leafctl session attach {}` goes to its program", job.id)
        }
        _ => "running".to_owned(),
    }
}
