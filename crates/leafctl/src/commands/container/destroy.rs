use clap::Args;
use leaf_core::command::DestroyContainer;
use leaf_core::id::ContainerName;

use crate::error::Error;
use crate::output::Output;
use crate::progress::waiting;
use crate::session::Session;

/// Stop a container if it runs, and remove it with all its files.
#[derive(Debug, Args)]
pub(crate) struct Destroy {
    /// The container's name.
    name: ContainerName,
    /// Do it only if the container still has this generation, as `container show` printed it.
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
}

impl Destroy {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let leaf = session.leaf().await?;
        let request = DestroyContainer {
            name: self.name,
            if_generation: self.if_generation,
        };
        let gone = waiting("destroying the container", session.call_slow(&leaf, &request)).await?;
        output.document(&gone, |gone| format!("container {} is gone", gone.name))
    }
}
