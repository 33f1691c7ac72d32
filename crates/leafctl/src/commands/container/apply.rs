use std::path::PathBuf;

use clap::Args;
use leaf_core::command::ApplyContainer;
use leaf_core::id::ContainerName;

use super::settle::change;
use super::spec_file::SpecFile;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Make a container, or one that is there, what a spec says.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// The container's name, if the spec doesn't hold it.
    name: Option<ContainerName>,
    /// A spec in TOML or JSON (*.json); '-' is standard input.
    #[arg(long, short, value_name = "SPEC")]
    file: PathBuf,
    /// Do it only if the container still has this generation, as `container show` printed it; 0 if there must be none.
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
