use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::Args;
use leaf_core::command;
use leaf_core::id::StorePath;
use leaf_core::job::{BuildResult, Job, JobResult};

pub(super) use super::follow::built;
pub(crate) use super::follow::follow;
use super::follow::origin_of;
use super::get::Unsigned;
use super::installables::installables;
use super::local::Local;
use super::out_link;
use super::place::{Placed, Placement};
use super::work::follow_work;
use crate::error::Error;
use crate::fleet::reply_line;
use crate::output::{Output, name_of, size};
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
    /// Bring the result, with all that it needs, into the store of this machine.
    #[arg(long, conflicts_with = "detach")]
    get: bool,
    #[command(flatten)]
    unsigned: Unsigned,
    /// Link this path to the result, if the leaf runs on this machine, or with --get.
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
        if self.unsigned.is_wanted() && !self.get {
            return Err(Error::Usage("--no-check-sigs is about --get".to_owned()));
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
        let Placed {
            leaf,
            accepted,
            standby,
        } = self.placement.send(session, build).await?;
        if self.detach {
            if names_leaf {
                return output.json_line(&reply_line(&leaf.name, &accepted));
            }
            return output.document(&accepted, |accepted| accepted.job.to_string());
        }
        let (leaf, job) = match standby {
            Some(standby) => follow_work(leaf, accepted.job, standby, output).await?,
            None => {
                let job = follow(&leaf, accepted.job, output).await?;
                (leaf, job)
            }
        };
        if let (true, Some(JobResult::Build(result))) = (self.get, &job.result) {
            self.unsigned.get(&leaf, &outputs(result)).await?;
        }
        if let (Some(link), Some(JobResult::Build(result))) = (&self.out_link, &job.result) {
            out_link::create(link, result).await?;
        }
        if names_leaf {
            return output.json_line(&reply_line(&leaf.name, &job));
        }
        output.document(&job, text)
    }
}

/// Returns the outputs that a result lists, each once.
fn outputs(result: &BuildResult) -> Vec<StorePath> {
    let all = std::iter::once(&result.outputs).chain(result.others.iter().map(|other| &other.outputs));
    let all: BTreeSet<&StorePath> = all.flat_map(BTreeMap::values).collect();
    all.into_iter().cloned().collect()
}

/// Returns a job's time limit in seconds.
pub(crate) fn seconds(limit: Option<std::time::Duration>) -> Result<Option<u32>, Error> {
    limit
        .map(|limit| {
            u32::try_from(limit.as_secs()).map_err(|_| Error::Usage("--time-limit is too long".to_owned()))
        })
        .transpose()
}

/// Returns the result of a build, for a person.
pub(super) fn text(job: &Job) -> View {
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
