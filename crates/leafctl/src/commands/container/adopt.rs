use clap::Args;
use leaf_core::command::AdoptContainer;
use leaf_core::id::ContainerName;

use super::settle::change;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Take over a foreign container on the host, with its files. A running one is restarted.
#[derive(Debug, Args)]
pub(crate) struct Adopt {
    /// The container's name, as `container list` shows it below FOREIGN.
    name: ContainerName,
}

impl Adopt {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = AdoptContainer { name: self.name };
        change(session, &request, "adopting the container", output).await
    }
}
