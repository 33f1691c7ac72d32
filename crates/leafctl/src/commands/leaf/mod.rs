//! The commands about leaves.

mod list;
mod show;

use clap::Subcommand;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    List(list::List),
    Show(show::Show),
}

impl Command {
    pub(super) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        match self {
            Self::List(command) => command.run(session, output).await,
            Self::Show(command) => command.run(session, output).await,
        }
    }
}
