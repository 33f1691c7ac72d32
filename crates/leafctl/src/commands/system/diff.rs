use std::time::Duration;

use clap::Args;
use leaf_core::command::ListGenerations;
use leaf_core::id::StorePath;
use leaf_core::job::diff::DiffResult;
use serde::Serialize;

use super::toplevel::built;
use crate::commands::nix::diff::{compared, view};
use crate::error::Error;
use crate::leaf::Leaf;
use crate::output::Output;
use crate::session::Session;
use crate::text::fields;
use crate::view::View;

/// Show what a switch to another system would change: packages, sizes, and units. The leaf builds the system.
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The system: a flake with NixOS configurations, `FLAKE#NAME` for one of another name than the leaf's, or a store path.
    #[arg(required_unless_present = "to_generation")]
    installable: Option<String>,
    /// Compare with this generation of the leaf's profile instead.
    #[arg(long, value_name = "NUMBER", conflicts_with = "installable")]
    to_generation: Option<u64>,
    /// The time limit of the build, such as 30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    time_limit: Option<Duration>,
}

/// What a switch of a leaf would change.
#[derive(Debug, Serialize)]
struct Compared {
    /// The system that runs.
    from: StorePath,
    /// The other one.
    to: StorePath,
    #[serde(flatten)]
    diff: DiffResult,
}

impl Diff {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let compare = async |leaf: &Leaf| {
            let report = leaf.call(&ListGenerations {}).await?;
            let from = report
                .running
                .ok_or_else(|| Error::NotFound(format!("leaf {} runs no NixOS system", leaf.name)))?;
            let to = match (&self.installable, self.to_generation) {
                (Some(text), _) => built(leaf, text, self.time_limit, output).await?,
                (None, number) => {
                    let mut generations = report.generations.into_iter();
                    let found = generations.find(|generation| Some(generation.number) == number);
                    found.map(|generation| generation.toplevel).ok_or_else(|| {
                        Error::NotFound(format!("leaf {} has no such generation", leaf.name))
                    })?
                }
            };
            let diff = compared(leaf, from.clone(), to.clone(), None, output).await?;
            Ok(Compared { from, to, diff })
        };
        session
            .each(output, compare, |compared| {
                let systems = fields(&[
                    ("runs", compared.from.to_string()),
                    ("other", compared.to.to_string()),
                ]);
                View::from(systems).and(view(&compared.diff, output))
            })
            .await
    }
}
