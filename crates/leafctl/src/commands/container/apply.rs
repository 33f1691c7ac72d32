use std::path::PathBuf;

use clap::Args;
use leaf_core::command::ApplyContainer;
use leaf_core::id::ContainerName;

use super::settle::change;
use super::spec_file::SpecFile;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Create a container from a spec, or change an existing one to match it.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// The container's name, if the spec doesn't contain it.
    name: Option<ContainerName>,
    /// A spec in TOML or JSON (*.json); '-' is standard input.
    #[arg(long, short, value_name = "SPEC")]
    file: PathBuf,
    /// Apply only if the container still has this generation, as printed by `container show`; 0: only if it doesn't
    /// exist.
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
}

impl Apply {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let file = SpecFile::read(&self.file)?;
        let request = ApplyContainer {
            name: file.name(self.name)?,
            spec: file.spec,
            if_generation: self.if_generation,
        };
        change(session, &request, "applying the spec", output).await
    }
}
