//! The commands, one file per command.

/// Declares the commands of a noun: a variant each, with its arguments, that is run with the session and the output.
macro_rules! commands {
    ($($(#[$attribute:meta])* $name:ident($arguments:ty)),* $(,)?) => {
        #[derive(Debug, clap::Subcommand)]
        pub(in crate::commands) enum Command {
            $($(#[$attribute])* $name($arguments),)*
        }

        impl Command {
            pub(super) async fn run(
                self,
                session: &$crate::session::Session,
                output: $crate::output::Output,
            ) -> Result<(), $crate::error::Error> {
                match self {
                    $(Self::$name(command) => command.run(session, output).await,)*
                }
            }
        }
    };
}

mod completions;
mod container;
mod events;
mod fleet;
mod hardware;
mod leaf;
mod nats;
mod nix;
mod schema;
mod secret;
mod session;
mod system;

use clap::{Parser, Subcommand};

use crate::error::Error;
use crate::global::Global;
use crate::output::Output;
use crate::session::Session;

/// Inspect and control leaves over NATS: hosts with hardware, containers and Nix builds.
///
/// Exit codes: 0 success; 1 unexpected error; 2 invalid command line; 3 no connection; 4 no reply; 5 not found;
/// 6 refused; 7 accepted, then failed; 8 temporarily unavailable (disk full, overloaded, stopping);
/// 9 several leaves failed, in different ways; 130 interrupted.
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
    /// Leaves: list them, show their status, label them.
    #[command(subcommand)]
    Leaf(leaf::Command),
    /// Hardware: devices with their inputs and outputs.
    #[command(subcommand)]
    Hardware(hardware::Command),
    /// Containers: create, run, inspect, remove.
    #[command(subcommand)]
    Container(container::Command),
    /// Nix: builds and their jobs.
    #[command(subcommand)]
    Nix(nix::Command),
    /// The systems of leaves: build, switch, go back.
    #[command(subcommand)]
    System(system::Command),
    /// Sessions of programs that run on a leaf: come back to one.
    #[command(subcommand)]
    Session(session::Command),
    /// Secrets of leaves: set, list, remove.
    #[command(subcommand)]
    Secret(secret::Command),
    /// The NATS server: what its users may do.
    #[command(subcommand)]
    Nats(nats::Command),
    Events(events::Events),
    Fleet(fleet::Fleet),
    /// JSON Schemas of the message types. Needs no leaf.
    #[command(subcommand)]
    Schema(schema::Command),
    Completions(completions::Completions),
}

impl Cli {
    /// Carries out the command.
    pub(crate) async fn run(self, output: &Output) -> Result<(), Error> {
        let output = *output;
        match self.command {
            Command::Schema(command) => command.run(output),
            Command::Completions(command) => command.run(output),
            Command::Leaf(command) => command.run(&Session::open(&self.global).await?, output).await,
            Command::Hardware(command) => command.run(&Session::open(&self.global).await?, output).await,
            Command::Container(command) => command.run(&Session::open(&self.global).await?, output).await,
            Command::Nix(command) => command.run(&self.global, output).await,
            Command::Session(command) => command.run(&Session::open(&self.global).await?, output).await,
            Command::Fleet(command) => command.run(&self.global, output).await,
            Command::System(command) => command.run(&Session::open(&self.global).await?, output).await,
            Command::Secret(command) => command.run(&Session::open(&self.global).await?, output).await,
            Command::Nats(command) => command.run(&self.global, output).await,
            Command::Events(command) => command.run(&Session::open(&self.global).await?, output).await,
        }
    }
}
