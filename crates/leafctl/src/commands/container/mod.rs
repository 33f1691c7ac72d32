//! The commands about containers.

mod adopt;
mod apply;
mod create;
mod diff;
mod health;
mod history;
mod list;
mod logs;
mod restart;
mod rollback;
mod set;
mod settle;
mod show;
mod spec_file;
mod stats;
mod update;
mod verb;

use clap::Subcommand;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Create(create::Create),
    Apply(apply::Apply),
    #[command(flatten)]
    Verb(verb::Verb),
    Restart(restart::Restart),
    Update(update::Update),
    Set(set::Set),
    Diff(diff::Diff),
    History(history::History),
    Rollback(rollback::Rollback),
    Adopt(adopt::Adopt),
    List(list::List),
    Show(show::Show),
    Health(health::Health),
    Logs(logs::Logs),
    Stats(stats::Stats),
}

impl Command {
    pub(super) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        match self {
            Self::Create(command) => command.run(session, output).await,
            Self::Apply(command) => command.run(session, output).await,
            Self::Verb(command) => command.run(session, output).await,
            Self::Restart(command) => command.run(session, output).await,
            Self::Update(command) => command.run(session, output).await,
            Self::Set(command) => command.run(session, output).await,
            Self::Diff(command) => command.run(session, output).await,
            Self::History(command) => command.run(session, output).await,
            Self::Rollback(command) => command.run(session, output).await,
            Self::Adopt(command) => command.run(session, output).await,
            Self::List(command) => command.run(session, output).await,
            Self::Show(command) => command.run(session, output).await,
            Self::Health(command) => command.run(session, output).await,
            Self::Logs(command) => command.run(session, output).await,
            Self::Stats(command) => command.run(session, output).await,
        }
    }
}
