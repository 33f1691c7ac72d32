use clap::Args;
use leaf_core::command::RollbackContainer;
use leaf_core::id::ContainerName;

use super::settle::settle;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Go back to what was wanted of a container before; whether it runs stays as it is.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The container's name.
    name: ContainerName,
    /// The generation to go back to, as `container history` lists it; the last one that differs if not given.
    #[arg(long, value_name = "N")]
    to: Option<u64>,
    /// Do it only if the container still has this generation, as `container show` printed it.
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
}

impl Rollback {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = RollbackContainer {
            name: self.name,
            generation: self.to,
            if_generation: self.if_generation,
        };
        let leaf = session.leaf().await?;
        let container = session.call_to(&leaf, &request).await?;
        settle(session, &leaf, container, "going back", output).await
    }
}
