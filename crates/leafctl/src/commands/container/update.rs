use clap::Args;
use leaf_core::command::UpdateContainer;
use leaf_core::id::ContainerName;

use super::create::System;
use super::settle::settle;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Give a container another system, or build that of its flake or template anew.
///
/// It switches in place where it can, else it is restarted. If the new system does not become ready, it goes back to
/// the one before, and this command fails.
#[derive(Debug, Args)]
pub(crate) struct Update {
    /// The container's name.
    name: ContainerName,
    #[command(flatten)]
    system: System,
    /// Do it only if the container still has this generation, as `container show` printed it.
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
}

impl Update {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = UpdateContainer {
            name: self.name,
            source: self.system.source()?,
            if_generation: self.if_generation,
        };
        let leaf = session.leaf().await?;
        let container = session.call_to(&leaf, &request).await?;
        settle(session, &leaf, container, "updating the container", output).await
    }
}
