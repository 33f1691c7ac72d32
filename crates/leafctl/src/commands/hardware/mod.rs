//! The commands about hardware.

mod list;
mod rescan;
mod show;
mod watch;

use clap::Subcommand;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    List(list::List),
    Show(show::Show),
    Watch(watch::Watch),
    Rescan(rescan::Rescan),
}

impl Command {
    pub(super) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        match self {
            Self::List(command) => command.run(session, output).await,
            Self::Show(command) => command.run(session, output).await,
            Self::Watch(command) => command.run(session, output).await,
            Self::Rescan(command) => command.run(session, output).await,
        }
    }
}
