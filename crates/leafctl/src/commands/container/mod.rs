//! Containers.

mod create;
mod destroy;
mod health;
mod list;
mod logs;
mod show;
mod start;
mod stop;

use clap::Subcommand;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Create(create::Create),
    Start(start::Start),
    Stop(stop::Stop),
    Destroy(destroy::Destroy),
    List(list::List),
    Show(show::Show),
    Health(health::Health),
    Logs(logs::Logs),
}

impl Command {
    pub(super) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        match self {
            Self::Create(command) => command.run(session, output).await,
            Self::Start(command) => command.run(session, output).await,
            Self::Stop(command) => command.run(session, output).await,
            Self::Destroy(command) => command.run(session, output).await,
            Self::List(command) => command.run(session, output).await,
            Self::Show(command) => command.run(session, output).await,
            Self::Health(command) => command.run(session, output).await,
            Self::Logs(command) => command.run(session, output).await,
        }
    }
}
