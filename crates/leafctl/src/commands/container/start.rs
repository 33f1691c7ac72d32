use clap::Args;
use leaf_core::command::StartContainer;
use leaf_core::id::ContainerName;

use super::show::text;
use crate::error::Error;
use crate::output::Output;
use crate::progress::waiting;
use crate::session::Session;

/// Start a container, and wait until it says that it is ready.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// The container's name.
    name: ContainerName,
    /// Do it only if the container still has this generation, as `container show` printed it.
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
}

impl Start {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        let request = StartContainer {
            name: self.name,
            if_generation: self.if_generation,
        };
        let container = waiting("starting the container", session.call_slow(&leaf, &request)).await?;
        output.document(&container, text)
    }
}
