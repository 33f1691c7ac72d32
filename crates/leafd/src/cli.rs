//! The command line of `leafd`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use leaf_core::id::LeafName;

/// The daemon of a leaf: discovers hardware, keeps events, runs containers and Nix, and speaks through NATS.
#[derive(Debug, Parser)]
#[command(name = "leafd", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon until SIGTERM or SIGINT.
    Run(Run),
    /// Check a settings file, and say what is wrong with it.
    CheckConfig {
        /// The file.
        file: PathBuf,
    },
    /// Show the hardware that a leaf sees here, or in a nixos-facter report. Needs no NATS.
    Inventory(Inventory),
    /// Run one process job. The daemon or the helper starts this, so that a job outlives the daemon; both know it by this
    /// name, which is older than jobs of other kinds.
    #[command(hide = true)]
    NixJob {
        /// The job's directory.
        directory: PathBuf,
    },
}

/// The flags of `leafd run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The settings file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run a NATS server of the leaf's own.
    #[arg(long)]
    pub embedded_nats: bool,
    /// The port of that server; 0 takes a free one and keeps it.
    #[arg(long, value_name = "PORT")]
    pub nats_port: Option<u16>,
    /// Where all is that must not be lost.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The leaf's name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<LeafName>,
}

/// The flags of `leafd inventory`.
#[derive(Debug, Args)]
pub struct Inventory {
    /// Read this nixos-facter report instead of looking at the host.
    #[arg(long, value_name = "FILE")]
    pub facter: Option<PathBuf>,
    /// Print JSON: `{"devices":[{"id",…}]}`.
    #[arg(long)]
    pub json: bool,
}
