use clap::Args;
use leaf_core::command::{StartContainer, StopContainer};
use leaf_core::id::ContainerName;

use super::show::text;
use crate::error::Error;
use crate::output::Output;
use crate::progress::waiting;
use crate::session::Session;

/// Stop a container and start it again.
#[derive(Debug, Args)]
pub(crate) struct Restart {
    /// The container's name.
    name: ContainerName,
}

impl Restart {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        let stop = StopContainer {
            name: self.name.clone(),
            if_generation: None,
        };
        let stopped = waiting("stopping the container", session.call_slow(&leaf, &stop)).await?;
        let start = StartContainer {
            name: self.name,
            // Fails if another caller changed the desired state in between.
            if_generation: Some(stopped.desired.generation),
        };
        session
            .show_slow("starting the container", &start, output, text)
            .await
    }
}
