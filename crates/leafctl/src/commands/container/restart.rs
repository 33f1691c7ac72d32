use clap::Args;
use leaf_core::command::{StartContainer, StopContainer};
use leaf_core::id::ContainerName;

use super::show::text;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Stop a container and start it again.
#[derive(Debug, Args)]
pub(crate) struct Restart {
    /// The container's name.
    name: ContainerName,
}

impl Restart {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let stop = StopContainer {
            name: self.name.clone(),
            if_generation: None,
        };
        session
            .each(
                output,
                async |leaf| {
                    let stopped = leaf
                        .waiting("stopping the container", leaf.call_slow(&stop))
                        .await?;
                    let start = StartContainer {
                        name: self.name.clone(),
                        // Fails if another caller changed the desired state in between.
                        if_generation: Some(stopped.desired.generation),
                    };
                    leaf.waiting("starting the container", leaf.call_slow(&start))
                        .await
                },
                text,
            )
            .await
    }
}
