use clap::Args;
use leaf_core::command;
use leaf_core::job::{Job, JobResult};

use super::build::{follow, seconds};
use super::local::Local;
use crate::error::Error;
use crate::output::{Output, name_of};
use crate::session::Session;
use crate::text::Text;

/// Evaluate a Nix expression on a leaf, and print its value as JSON.
#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// The installable: a flake reference such as `.#version`, or with `--file` an attribute.
    #[arg(required_unless_present = "file")]
    installable: Option<String>,
    /// Evaluate a Nix file on the leaf instead of a flake. Such a file is not evaluated purely.
    #[arg(long, short, value_name = "FILE")]
    file: Option<String>,
    /// A function in the Nix language, such as builtins.attrNames: its result is the value.
    #[arg(long, value_name = "FUNCTION", allow_hyphen_values = true)]
    apply: Option<String>,
    #[command(flatten)]
    local: Local,
    /// Evaluate a flake impurely. The leaf refuses it unless nix.policy.impure in its settings has it.
    #[arg(long)]
    impure: bool,
    /// The job's time limit, such as 5m; by default 1m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<std::time::Duration>,
}

impl Eval {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let texts = self.installable.into_iter().collect();
        let leaf = session.leaf().await?;
        let installable = self
            .local
            .installables(&leaf, self.file.as_deref(), texts)
            .await?;
        let [installable] = <[_; 1]>::try_from(installable)
            .map_err(|_| Error::Usage("nothing to evaluate: give an installable or --file".to_owned()))?;
        let accepted = leaf
            .call(&command::Eval {
                installable,
                apply: self.apply,
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
        Some(JobResult::Eval(result)) => match result.value_left_out_bytes {
            None => {
                let json = serde_json::to_string_pretty(&result.value).expect("a value has string keys only");
                Text::from(json)
            }
            Some(bytes) => Text::from(format!(
                "the value has {bytes} bytes, and the NATS server accepts only smaller messages: take a part of it with --apply"
            )),
        },
        _ => Text::from(format!("job {} {}", job.id, name_of(&job.phase))),
    }
}
