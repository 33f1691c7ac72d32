use clap::Args;
use leaf_core::command::RollbackContainer;

use super::settle::change;
use super::verb::Named;
use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

/// Restore an earlier desired state of a container. Whether it runs is not changed.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    #[command(flatten)]
    container: Named,
    /// The generation to restore, as listed by `container history`; by default the latest that differs.
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
        change(session, &request, "rolling back", output).await
    }
}
