use clap::Args;
use leaf_core::command;
use leaf_core::job::{Job, JobResult};

use super::build::{follow, seconds};
use super::local::Local;
use crate::error::Error;
use crate::output::{Output, name_of};
use crate::session::Session;
use crate::text::Text;

/// Print the environment in which a derivation is built, as JSON: bash's variables and functions.
#[derive(Debug, Args)]
pub(crate) struct PrintEnv {
    /// The installable: a flake reference such as `.#hello`, a derivation, or with `--file` an attribute.
    #[arg(required_unless_present = "file")]
    installable: Option<String>,
    /// Take the derivation from a Nix file on the leaf instead of a flake.
    #[arg(long, short, value_name = "FILE")]
    file: Option<String>,
    #[command(flatten)]
    local: Local,
    /// Evaluate a flake impurely. The leaf refuses it unless nix.policy.impure in its settings has it.
    #[arg(long)]
    impure: bool,
    /// The job's time limit, such as 5m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<std::time::Duration>,
}

impl PrintEnv {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let texts = self.installable.into_iter().collect();
        let leaf = session.leaf().await?;
        let installable = self
            .local
            .installables(&leaf, self.file.as_deref(), texts)
            .await?;
        let [installable] = <[_; 1]>::try_from(installable)
            .map_err(|_| Error::Usage("no derivation is named: give an installable or --file".to_owned()))?;
        let accepted = leaf
            .call(&command::PrintEnv {
                installable,
                impure: self.impure,
                timeout_seconds: seconds(self.time_limit)?,
            })
            .await?;
        let job = follow(&leaf, accepted.job, output).await?;
        output.document(&job, text)
    }
}

fn text(job: &Job) -> Text {
    match &job.result {
        Some(JobResult::PrintEnv(result)) => match result.environment_left_out_bytes {
            None => {
                let json = serde_json::to_string_pretty(&result.environment);
                Text::from(json.expect("an environment has string keys only"))
            }
            Some(bytes) => Text::from(format!(
                "the environment has {bytes} bytes, and the NATS server accepts only smaller messages"
            )),
        },
        _ => Text::from(format!("job {} {}", job.id, name_of(&job.phase))),
    }
}
