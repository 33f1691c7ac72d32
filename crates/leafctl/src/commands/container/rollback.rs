use clap::Args;
use leaf_core::command::RollbackContainer;

use super::settle::change;
use super::verb::Named;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Go back to what was wanted of a container before; whether it runs stays as it is.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    #[command(flatten)]
    container: Named,
    /// The generation to go back to, as `container history` lists it; the last one that differs if not given.
    #[arg(long, value_name = "N")]
    to: Option<u64>,
}

impl Rollback {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = RollbackContainer {
            name: self.container.name,
            generation: self.to,
            if_generation: self.container.if_generation,
        };
        change(session, &request, "going back", output).await
    }
}
