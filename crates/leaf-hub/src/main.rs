//! `leaf-hub`, the agent of a hub: grants leaves their names, and keeps copies of their events and state. `docs/fleet.md` is
//! the contract.
//!
//! Start at [`agent::run`]. One task for each leaf ([`leaf`]) owns what is known of it; what it does is decided by
//! `leaf_core::fleet`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

mod active;
mod agent;
mod commands;
mod heard;
mod leaf;
mod panics;
mod process;
mod settings;
mod shared;
mod shown;
mod state;
mod witness;
mod work;
mod works;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use leaf_core::error::chain;
use leaf_core::id::LeafName;
use leaf_core::printable::printable;
use leaf_host::signals::Termination;

use crate::settings::Settings;

/// Where the settings file is if no other is named.
const SETTINGS: &str = "/etc/cim-hub/leaf-hub.toml";

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
        #[arg(long, value_name = "FILE", default_value = SETTINGS)]
        config: PathBuf,
    },
    /// Check a settings file, and report what is wrong with it.
    CheckConfig {
        /// Look at the files that it names as well: credentials, certificates and keys. To be run as the agent's user, on the hub.
        #[arg(long)]
        files: bool,
        /// The settings file.
        file: PathBuf,
    },
    /// Print the public key of a user of the hub. If the file is not there, makes the NKEY first and writes its seed into it.
    Key {
        /// The file.
        file: PathBuf,
    },
    /// Print the hub's accounts, for the agent and for the leaves and people of the settings file: a part of nats-server's
    /// configuration.
    Accounts {
        /// The settings file.
        #[arg(long, value_name = "FILE", default_value = SETTINGS)]
        config: PathBuf,
        /// Print the commands of `nsc` instead, for a hub with a NATS operator.
        #[arg(long)]
        nsc: bool,
    },
    /// Show which agent is active, and the state of the copy of each leaf.
    Status {
        /// The settings file.
        #[arg(long, value_name = "FILE", default_value = SETTINGS)]
        config: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Delete the copy of a leaf's events. The agent then begins a new one where the leaf's own stream begins.
    Reset {
        /// The settings file.
        #[arg(long, value_name = "FILE", default_value = SETTINGS)]
        config: PathBuf,
        /// Don't ask for confirmation.
        #[arg(long)]
        yes: bool,
        /// The leaf's name.
        leaf: LeafName,
    },
    /// Remove a leaf that is lost for good from the lists: its place in the registry, its state and the state of its copy. The copy
    /// of its events stays readable unless --events is given.
    Forget {
        /// The settings file.
        #[arg(long, value_name = "FILE", default_value = SETTINGS)]
        config: PathBuf,
        /// Delete the copy of its events as well.
        #[arg(long)]
        events: bool,
        /// Don't ask for confirmation.
        #[arg(long)]
        yes: bool,
        /// The leaf's name.
        leaf: LeafName,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { config } => load(&config).and_then(|settings| {
            leaf_host::process::write_no_core()?;
            // Before there are threads.
            let termination = Termination::receive()?;
            tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()?
                .block_on(agent::run(settings, termination))
        }),
        Command::CheckConfig { files, file } => check_config(&file, files),
        Command::Key { file } => commands::key(&file),
        Command::Accounts { config, nsc } => {
            load(&config).and_then(|settings| commands::accounts(&settings, nsc))
        }
        Command::Status { config, json } => {
            load(&config).and_then(|settings| briefly(commands::status(&settings, json)))
        }
        Command::Reset { config, yes, leaf } => {
            load(&config).and_then(|settings| briefly(commands::reset(&settings, &leaf, yes)))
        }
        Command::Forget {
            config,
            events,
            yes,
            leaf,
        } => load(&config).and_then(|settings| briefly(commands::forget(&settings, &leaf, events, yes))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leaf-hub: {}", printable(&chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

fn check_config(file: &Path, looks_at_files: bool) -> anyhow::Result<()> {
    let settings = load(file)?;
    if looks_at_files {
        let problems = settings.problems_of_files();
        anyhow::ensure!(problems.is_empty(), "{}", problems.join("\n"));
    }
    println!("{} is valid", printable(&file.to_string_lossy()));
    Ok(())
}

fn load(file: &Path) -> anyhow::Result<Settings> {
    Ok(Settings::load(file)?)
}

/// Runs a command that ends.
fn briefly(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}
