use clap::Args;
use leaf_core::command::StopContainer;
use leaf_core::id::ContainerName;

use super::show::text;
use crate::error::Error;
use crate::output::Output;
use crate::progress::waiting;
use crate::session::Session;

/// Stop a container, and wait until it has ended.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// The container's name.
    name: ContainerName,
    /// Do it only if the container still has this generation, as `container show` printed it.
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
}

impl Stop {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        let request = StopContainer {
            name: self.name,
            if_generation: self.if_generation,
        };
        let container = waiting("stopping the container", session.call_slow(&leaf, &request)).await?;
        output.document(&container, text)
    }
}
