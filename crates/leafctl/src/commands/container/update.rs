use clap::Args;
use leaf_core::command::UpdateContainer;

use super::create::System;
use super::settle::change;
use super::verb::Named;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Update a container to another system, or build its flake or template again.
///
/// The container switches to the new system in place if it can, and is restarted otherwise; `update` (`last_update` with
/// --json) says which units the switch restarted, or why the container was restarted. If the new system does not
/// become ready, the container is reverted to the previous one, and this command fails.
#[derive(Debug, Args)]
pub(crate) struct Update {
    #[command(flatten)]
    container: Named,
    #[command(flatten)]
    system: System,
}

impl Update {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = UpdateContainer {
            name: self.container.name,
            source: self.system.source()?,
            if_generation: self.container.if_generation,
        };
        change(session, &request, "updating the container", output).await
    }
}
