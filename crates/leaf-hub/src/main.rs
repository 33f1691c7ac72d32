//! `leaf-hub`, the agent of a hub: grants leaves their names, and keeps copies of their events and state. `docs/fleet.md` is
//! the contract.
//!
//! Start at [`agent::run`]. One task for each leaf ([`leaf`]) owns what is known of it; what it does is decided by
//! `leaf_core::fleet`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod agent;
mod commands;
mod leaf;
mod notify;
mod settings;
mod shown;
mod state;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use leaf_core::error::chain;
use leaf_core::id::LeafName;
use leaf_core::printable::printable;

use crate::settings::Settings;

/// The agent of a hub: grants leaves their names, and keeps copies of their events and state.
#[derive(Debug, Parser)]
#[command(name = "leaf-hub", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until SIGTERM or SIGINT.
    Run {
        /// The settings file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Check a settings file, and report what is wrong with it.
    CheckConfig {
        /// The settings file.
        file: PathBuf,
    },
    /// Show the state of the copy of each leaf.
    Status {
        /// The settings file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Delete the copy of a leaf's events. The agent then begins a new one where the leaf's own stream begins.
    Reset {
        /// The settings file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// The leaf's name.
        leaf: LeafName,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { config } => load(&config).and_then(|settings| {
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?
                .block_on(agent::run(settings))
        }),
        Command::CheckConfig { file } => load(&file).map(|_| {
            println!("{} is valid", printable(&file.to_string_lossy()));
        }),
        Command::Status { config, json } => {
            load(&config).and_then(|settings| briefly(commands::status(&settings, json)))
        }
        Command::Reset { config, leaf } => {
            load(&config).and_then(|settings| briefly(commands::reset(&settings, &leaf)))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leaf-hub: {}", printable(&chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

fn load(file: &std::path::Path) -> anyhow::Result<Settings> {
    Ok(Settings::load(file)?)
}

/// Runs a command that ends.
fn briefly(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}
