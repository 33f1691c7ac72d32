use std::path::PathBuf;

use clap::Args;
use leaf_core::command::{self, ReadJobLog, ShowJob};
use leaf_core::id::JobId;
use leaf_core::job::{BuiltDerivation, Job, JobPhase, JobResult, Origin};

use super::installables::installables;
use super::local::Local;
use super::out_link;
use super::place::{Placed, Placement};
use crate::error::Error;
use crate::fleet::reply_line;
use crate::leaf::Leaf;
use crate::output::{Output, name_of, size};
use crate::progress::JobBar;
use crate::session::Session;
use crate::text::fields;
use crate::view::View;

/// Run a Nix build on a leaf, and wait for the result.
#[derive(Debug, Args)]
pub(crate) struct Build {
    /// The installables: flake references such as `.#hello` or `.#hello^dev`, store paths, or with `--file` attributes.
    #[arg(required_unless_present_any = ["file", "template"])]
    installables: Vec<String>,
    /// Build from a Nix file on the leaf instead of a flake.
    #[arg(long, short, value_name = "FILE", conflicts_with = "template")]
    file: Option<String>,
    /// Build a container template of the leaf instead of a flake.
    #[arg(long, value_name = "NAME", conflicts_with = "installables")]
    template: Option<String>,
    /// The job's time limit, such as 30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<std::time::Duration>,
    /// Evaluate a flake impurely. The leaf refuses it unless nix.policy.impure in its settings has it.
    #[arg(long)]
    impure: bool,
    /// Go on after a failure with whatever does not need what failed.
    #[arg(long)]
    keep_going: bool,
    /// Link this path to the result, if the leaf runs on this machine.
    #[arg(long, short, value_name = "PATH", conflicts_with = "detach")]
    out_link: Option<PathBuf>,
    /// Print the job's id without waiting for its end.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    local: Local,
    #[command(flatten)]
    placement: Placement,
}

impl Build {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        if self.local.is_wanted() && (self.template.is_some() || self.placement.is_any()) {
            return Err(Error::Usage(
                "--local sends a flake to one leaf: it goes neither with --template nor with --any"
                    .to_owned(),
            ));
        }
        if let Some(link) = &self.out_link {
            out_link::check(link)?;
        }
        let timeout_seconds = seconds(self.time_limit)?;
        let installables = if self.local.is_wanted() {
            let leaf = session.leaf().await?;
            let (file, texts) = (self.file.as_deref(), self.installables);
            self.local.installables(&leaf, file, texts).await?
        } else {
            installables(self.file.as_deref(), self.template, self.installables)?
        };
        let build = command::Build {
            keep_going: self.keep_going,
            impure: self.impure,
            timeout_seconds,
            ..command::Build::of(installables)
        };
        let names_leaf = self.placement.is_any() && output.is_json();
        let Placed { leaf, accepted } = self.placement.send(session, build).await?;
        if self.detach {
            if names_leaf {
                return output.json_line(&reply_line(&leaf.name, &accepted));
            }
            return output.document(&accepted, |accepted| accepted.job.to_string());
        }
        let job = follow(&leaf, accepted.job, output).await?;
        if let (Some(link), Some(JobResult::Build(result))) = (&self.out_link, &job.result) {
            out_link::create(link, result).await?;
        }
        if names_leaf {
            return output.json_line(&reply_line(&leaf.name, &job));
        }
        output.document(&job, text)
    }
}

/// Returns a job's time limit in seconds.
pub(super) fn seconds(limit: Option<std::time::Duration>) -> Result<Option<u32>, Error> {
    limit
        .map(|limit| {
            u32::try_from(limit.as_secs()).map_err(|_| Error::Usage("--time-limit is too long".to_owned()))
        })
        .transpose()
}

/// Follows a job to its end, with a progress bar on a terminal.
pub(crate) async fn follow(leaf: &Leaf, id: JobId, output: Output) -> Result<Job, Error> {
    // Subscribes before the first query, so that the job's end can't be missed in between.
    let mut hints = leaf.client.job_hints(&leaf.name, id).await?;
    let mut bar = JobBar::new(leaf.is_alone() && !output.is_json());
    let until_its_end = async {
        let mut offset = 0;
        loop {
            let report = leaf.call(&ShowJob { id }).await?;
            // After the state: the log of a job that has ended is complete.
            if bar.shows_log() {
                print_log(leaf, id, &mut offset, &mut bar).await?;
            }
            if report.job.phase.is_final() {
                return Ok(report.job);
            }
            if let Some(progress) = &report.progress {
                bar.progress(progress);
            }
            hints.next(leaf.look_again_after()).await;
        }
    };
    let job: Result<Job, Error> = tokio::select! {
        // First, so that the signal is handled from the beginning.
        biased;
        _ = tokio::signal::ctrl_c() => Err(Error::Interrupted {
            note: Some(format!(
                "job {id} continues; `leafctl nix log --follow {id}` shows it, `leafctl nix cancel {id}` ends it"
            )),
        }),
        job = until_its_end => job,
    };
    bar.finish();
    let job = job?;
    match job.phase {
        JobPhase::Succeeded => Ok(job),
        phase => Err(Error::Job {
            job: id,
            phase: name_of(&phase),
            reason: format!(
                "{}{}\n`leafctl nix why {id}` explains it, `leafctl nix log {id}` prints the whole log",
                job.error.as_deref().unwrap_or("the reason is unknown"),
                partial(&job)
            ),
        }),
    }
}

/// Returns a line for each derivation that was built all the same, each with a line feed before it.
fn partial(job: &Job) -> String {
    let lines = job.partial.iter().flat_map(|derivation| built(derivation, ""));
    lines
        .map(|(_, line)| format!("\nbuilt all the same: {line}"))
        .collect()
}

/// Prints what a job's log has from this offset on.
async fn print_log(leaf: &Leaf, id: JobId, offset: &mut u64, bar: &mut JobBar) -> Result<(), Error> {
    loop {
        let request = ReadJobLog { id, offset: *offset };
        let chunk = leaf.call(&request).await?;
        if !chunk.text.is_empty() {
            bar.log(&chunk.text);
        }
        let moved = chunk.next_offset > *offset;
        *offset = chunk.next_offset;
        if chunk.complete || !moved {
            return Ok(());
        }
    }
}

fn text(job: &Job) -> View {
    let Some(JobResult::Build(result)) = &job.result else {
        return format!("job {} {}", job.id, name_of(&job.phase)).into();
    };
    let seconds = std::time::Duration::from_millis(result.build_time_ms).as_secs_f64();
    let mut lines = vec![
        ("store path", result.store_path.to_string()),
        ("job", job.id.to_string()),
    ];
    lines.extend(
        result
            .origin
            .map(|origin| ("origin", origin_of(origin).to_owned())),
    );
    lines.extend([
        (
            "built",
            match result.built {
                0 => "nothing".to_owned(),
                1 => "1 derivation".to_owned(),
                more => format!("{more} derivations"),
            },
        ),
        ("time", format!("{seconds:.2} s")),
        ("closure", size(result.closure_size_bytes)),
    ]);
    lines.extend(result.nar_size_bytes.map(|bytes| ("size", size(bytes))));
    lines.extend(
        result
            .outputs
            .iter()
            .filter(|_| result.outputs.len() > 1)
            .map(|(name, path)| (name.as_str(), path.to_string())),
    );
    lines.extend(result.others.iter().flat_map(|other| built(other, "and")));
    lines.extend(
        result
            .references
            .iter()
            .map(|path| ("reference", path.to_string())),
    );
    let left_out = [
        ("further derivations", result.others_left_out),
        ("further references", result.references_left_out),
    ];
    lines.extend(
        left_out
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(what, count)| (what, format!("{count}, not listed"))),
    );
    fields(&lines).into()
}

/// Returns a line for each output of a derivation.
pub(super) fn built<'a>(derivation: &BuiltDerivation, label: &'a str) -> Vec<(&'a str, String)> {
    let origin = derivation.origin.map_or("", origin_of);
    let closure = derivation.closure_size_bytes.map(size).unwrap_or_default();
    derivation
        .outputs
        .values()
        .map(|path| {
            (
                label,
                format!("{path}  {origin}  {closure}").trim_end().to_owned(),
            )
        })
        .collect()
}

fn origin_of(origin: Origin) -> &'static str {
    match origin {
        Origin::Built => "built",
        Origin::Substituted => "substituted",
        Origin::Present => "it was in the store",
    }
}
