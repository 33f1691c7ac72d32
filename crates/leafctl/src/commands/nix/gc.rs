use std::time::Duration;

use clap::{Args, Subcommand};
use leaf_core::command;
use leaf_core::id::StorePath;
use leaf_core::job::{Job, JobResult};

use super::build::{follow, seconds};
use crate::error::Error;
use crate::output::{Output, name_of, size};
use crate::session::Session;
use crate::text::fields;
use crate::view::View;

/// Delete what nothing needs from a leaf's Nix store, or find what holds a path there.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Gc {
    #[command(subcommand)]
    about: Option<About>,
    /// Only find out what would be deleted.
    #[arg(long)]
    dry_run: bool,
    /// Give up the results and logs of jobs that ended longer ago than this, such as 7d.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Delete no more once this many bytes are freed.
    #[arg(long, value_name = "BYTES")]
    free: Option<u64>,
    /// The job's time limit, such as 30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<Duration>,
}

#[derive(Debug, Subcommand)]
enum About {
    /// Find what keeps a store path from being deleted.
    Why {
        /// The store path.
        path: String,
    },
    /// List all GC roots.
    Roots,
}

impl Gc {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let path = match &self.about {
            Some(About::Why { path }) => Some(StorePath::new(path).map_err(|e| Error::Usage(e.to_string()))?),
            Some(About::Roots) | None => None,
        };
        let timeout_seconds = seconds(self.time_limit)?;
        let leaf = session.leaf().await?;
        let accepted = if self.about.is_some() {
            leaf.call(&command::Roots {
                path,
                timeout_seconds,
            })
            .await?
        } else {
            let gc = command::Gc {
                dry_run: self.dry_run,
                older_than_seconds: self.older_than.map(|age| age.as_secs()),
                free_bytes: self.free,
                timeout_seconds,
            };
            leaf.call(&gc).await?
        };
        let job = follow(&leaf, accepted.job, output).await?;
        output.document(&job, text)
    }
}

fn text(job: &Job) -> View {
    match &job.result {
        Some(JobResult::Gc(result)) => {
            let paths = |count| match count {
                1 => "1 store path".to_owned(),
                more => format!("{more} store paths"),
            };
            let mut lines = vec![match result.nar_bytes {
                Some(bytes) => (
                    "would delete",
                    format!("{} of {}", paths(result.paths), size(bytes)),
                ),
                None => ("deleted", paths(result.paths)),
            }];
            if result.given_up_jobs > 0 {
                let what = format!("the results of {} jobs", result.given_up_jobs);
                let label = if result.dry_run {
                    "would give up"
                } else {
                    "gave up"
                };
                lines.push((label, what));
            }
            lines.push(("free", size(result.free_bytes_after)));
            if !result.dry_run {
                lines.push(("free before", size(result.free_bytes_before)));
            }
            lines.extend(result.largest.iter().map(|path| ("", path.to_string())));
            fields(&lines).into()
        }
        Some(JobResult::Roots(result)) if result.roots.is_empty() => {
            "nothing holds it: the next garbage collection deletes it"
                .to_owned()
                .into()
        }
        Some(JobResult::Roots(result)) => {
            let of = |root: &leaf_core::job::gc::Root| match root.job {
                Some(job) => format!("{}  (the result of job {job})", root.link),
                None => root.link.clone(),
            };
            let roots: Vec<(String, String)> = result
                .roots
                .iter()
                .map(|root| (root.path.to_string(), of(root)))
                .collect();
            let mut lines: Vec<(&str, String)> = roots
                .iter()
                .map(|(path, link)| (path.as_str(), link.clone()))
                .collect();
            if result.roots_left_out > 0 {
                lines.push(("further roots", format!("{}, not listed", result.roots_left_out)));
            }
            fields(&lines).into()
        }
        _ => format!("job {} {}", job.id, name_of(&job.phase)).into(),
    }
}
