//! The commands, one file each.

mod completions;
mod container;
mod events;
mod hardware;
mod leaf;
mod nix;
mod schema;

use clap::{Parser, Subcommand};

use crate::error::Error;
use crate::global::Global;
use crate::output::Output;
use crate::session::Session;

/// Show and command leaves: hosts with hardware, containers and Nix builds, reached over NATS.
///
/// Exit codes: 0 it worked; 1 unexpected; 2 unusable command line; 3 no connection; 4 no answer; 5 not found;
/// 6 refused; 7 accepted, and did not work; 8 the leaf can't just now (disk full, overloaded, stopping);
/// 130 interrupted by Ctrl-C.
#[derive(Debug, Parser)]
#[command(name = "leafctl", version, max_term_width = 100)]
pub(crate) struct Cli {
    /// The flags that every command has.
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Leaves: which there are, and how one does.
    #[command(subcommand)]
    Leaf(leaf::Command),
    /// Hardware: devices with their inputs and outputs.
    #[command(subcommand)]
    Hardware(hardware::Command),
    /// Containers: make, run, look at, remove.
    #[command(subcommand)]
    Container(container::Command),
    /// Nix: build, and look after jobs.
    #[command(subcommand)]
    Nix(nix::Command),
    Events(events::Events),
    /// Message types: their JSON Schemas. Needs no leaf.
    #[command(subcommand)]
    Schema(schema::Command),
    Completions(completions::Completions),
}

impl Cli {
    /// Carries the command out.
    pub(crate) async fn run(self, output: &Output) -> Result<(), Error> {
        let output = *output;
        match self.command {
            Command::Schema(command) => command.run(output),
            Command::Completions(command) => command.run(output),
            Command::Leaf(command) => command.run(&Session::open(&self.global).await?, output).await,
            Command::Hardware(command) => command.run(&Session::open(&self.global).await?, output).await,
            Command::Container(command) => command.run(&Session::open(&self.global).await?, output).await,
            Command::Nix(command) => command.run(&Session::open(&self.global).await?, output).await,
            Command::Events(command) => command.run(&Session::open(&self.global).await?, output).await,
        }
    }
}
