//! The commands about the keys of a fleet. They need no leaf, and no hub but to push.

mod add_leaf;
mod add_operator;
mod init;
mod push;
mod revoke;
mod rotate;
mod shared;
mod show;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::error::Error;
use crate::global::Global;
use crate::output::Output;

/// Keys of a fleet: make them, give them to leaves and people, revoke them. docs/keys.md is the guide.
#[derive(Debug, Args)]
pub(super) struct Fleet {
    /// The directory of the fleet's keys. Without this flag and LEAFCTL_FLEET: the current directory.
    #[arg(long, global = true, value_name = "DIR", env = "LEAFCTL_FLEET")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Init),
    AddLeaf(add_leaf::AddLeaf),
    AddOperator(add_operator::AddOperator),
    Show(show::Show),
    Revoke(revoke::Revoke),
    Rotate(rotate::Rotate),
    Push(push::Push),
}

impl Fleet {
    pub(super) async fn run(self, global: &Global, output: Output) -> Result<(), Error> {
        let dir = self.dir.unwrap_or_else(|| PathBuf::from("."));
        match self.command {
            Command::Init(command) => command.run(output),
            Command::AddLeaf(command) => command.run(&dir, output),
            Command::AddOperator(command) => command.run(&dir, output),
            Command::Show(command) => command.run(&dir, output),
            Command::Revoke(command) => command.run(&dir, global, output).await,
            Command::Rotate(command) => command.run(&dir, global, output).await,
            Command::Push(command) => command.run(&dir, global, output).await,
        }
    }
}
