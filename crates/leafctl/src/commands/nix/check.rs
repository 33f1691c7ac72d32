use clap::Args;
use leaf_core::command;
use leaf_core::job::{Job, JobResult};

use super::build::{built, follow, seconds};
use super::local::Local;
use crate::error::Error;
use crate::output::{Output, name_of};
use crate::session::Session;
use crate::text::fields;
use crate::view::View;

/// Build something a second time on a leaf, and fail if that gives other bytes.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The installable: a flake reference such as `.#hello`, a derivation, or with `--file` an attribute.
    #[arg(required_unless_present = "file")]
    installable: Option<String>,
    /// Build from a Nix file on the leaf instead of a flake.
    #[arg(long, short, value_name = "FILE")]
    file: Option<String>,
    #[command(flatten)]
    local: Local,
    /// Evaluate a flake impurely. The leaf refuses it unless nix.policy.impure in its settings has it.
    #[arg(long)]
    impure: bool,
    /// The time limit of the job, both builds together, such as 30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<std::time::Duration>,
    /// Print the job's id without waiting for its end.
    #[arg(long)]
    detach: bool,
}

impl Check {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let texts = self.installable.into_iter().collect();
        let leaf = session.leaf().await?;
        let installable = self
            .local
            .installables(&leaf, self.file.as_deref(), texts)
            .await?;
        let [installable] = <[_; 1]>::try_from(installable)
            .map_err(|_| Error::Usage("nothing to build: give an installable or --file".to_owned()))?;
        let accepted = leaf
            .call(&command::Check {
                installable,
                impure: self.impure,
                timeout_seconds: seconds(self.time_limit)?,
            })
            .await?;
        if self.detach {
            return output.document(&accepted, |accepted| accepted.job.to_string());
        }
        let job = follow(&leaf, accepted.job, output).await?;
        output.document(&job, text)
    }
}

fn text(job: &Job) -> View {
    let Some(JobResult::Check(result)) = &job.result else {
        return format!("job {} {}", job.id, name_of(&job.phase)).into();
    };
    let all = result.derivations.iter();
    let mut lines: Vec<_> = all.flat_map(|one| built(one, "reproducible")).collect();
    let seconds = std::time::Duration::from_millis(result.check_time_ms).as_secs_f64();
    lines.push(("time", format!("{seconds:.2} s for the second build")));
    fields(&lines).into()
}
