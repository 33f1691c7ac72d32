//! The commands about Nix and its jobs.

pub(super) mod build;
mod cancel;
mod jobs;
mod log;

use clap::Subcommand;

use crate::error::Error;
use crate::output::Output;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Build(build::Build),
    Jobs(jobs::Jobs),
    Log(log::Log),
    Cancel(cancel::Cancel),
}

impl Command {
    pub(super) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        match self {
            Self::Build(command) => command.run(session, output).await,
            Self::Jobs(command) => command.run(session, output).await,
            Self::Log(command) => command.run(session, output).await,
            Self::Cancel(command) => command.run(session, output).await,
        }
    }
}
