//! The commands about the NATS server itself.

mod check;

use crate::error::Error;
use crate::global::Global;
use crate::output::Output;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    Check(check::Check),
}

impl Command {
    /// They connect by themselves: with rights that are missing, a session may not come about.
    pub(super) async fn run(self, global: &Global, output: Output) -> Result<(), Error> {
        match self {
            Self::Check(check) => check.run(global, output).await,
        }
    }
}
