//! The command line of `leafd`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use leaf_core::id::LeafName;

/// The daemon of a leaf: discovers hardware, records events, runs containers and Nix builds, and is commanded over
/// NATS.
#[derive(Debug, Parser)]
#[command(name = "leafd", version, max_term_width = 100)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommand.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon until SIGTERM or SIGINT.
    Run(Run),
    /// Check a settings file, and report what is wrong with it.
    CheckConfig {
        /// Look at the files of `[nats]` and `[trust]` as well: credentials, certificates, keys, and who may sign. To be run as leafd's user, on the leaf.
        #[arg(long)]
        files: bool,
        /// The settings file.
        file: PathBuf,
    },
    /// Try the rights of the leaf's NATS users on a given server: each that they must have, and each that they must not
    /// have. Changes nothing. Fails where one is not as it must be.
    CheckNats(CheckNats),
    /// Show the hardware inventory of this host, or of a nixos-facter report. Needs no NATS.
    Inventory(Inventory),
    /// Ask the hub, over a new connection, to confirm the open change that can cut the leaf off. Started by leaf-change-witness.service.
    #[command(hide = true)]
    Witness(Witness),
    /// Become the program of a job that runs one. Started by its runner.
    #[command(hide = true)]
    JobProgram {
        /// The file that says which.
        file: PathBuf,
    },
    /// Run one process job. Started by the daemon or the helper, so that a job outlives the daemon. The name is older
    /// than jobs of other kinds, and both use it.
    #[command(hide = true)]
    NixJob {
        /// The job's directory.
        directory: PathBuf,
    },
    /// Print the differences of two files or directories, as a NAR has them, as JSON. Started by a job that builds something a
    /// second time.
    #[command(hide = true)]
    NixCompare {
        /// The one.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
}

/// The flags of `leafd run`.
#[derive(Debug, Args)]
pub struct Run {
    /// The settings file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run an embedded NATS server.
    #[arg(long)]
    pub embedded_nats: bool,
    /// The embedded server's port; 0 chooses a free one, which is kept.
    #[arg(long, value_name = "PORT")]
    pub nats_port: Option<u16>,
    /// The directory of the leaf's durable data.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The leaf's name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<LeafName>,
    /// The state directory of changes that can cut the leaf off, which leaf-helper writes.
    #[arg(long, value_name = "DIR", default_value = leaf_host::contract::CHANGE_DIRECTORY)]
    pub changes: PathBuf,
}

/// The flags of `leafd witness`.
#[derive(Debug, Args)]
pub struct Witness {
    /// The settings file of the leaf.
    #[arg(long, value_name = "FILE", default_value = "/etc/cim-leaf/leafd.toml")]
    pub config: PathBuf,
    /// The state directory of changes.
    #[arg(long, value_name = "DIR", default_value = leaf_host::contract::CHANGE_DIRECTORY)]
    pub directory: PathBuf,
}

/// The flags of `leafd check-nats`.
#[derive(Debug, Args)]
pub struct CheckNats {
    /// The settings file of the leaf.
    #[arg(long, value_name = "FILE", default_value = "/etc/cim-leaf/leafd.toml")]
    pub config: PathBuf,
    /// A person's context of the `nats` command line, a name or a file: the person's rights are tried as well.
    #[arg(long, value_name = "NAME|FILE")]
    pub context: Option<String>,
    /// Print JSON: `{"ok",…,"findings":[{"user",…}]}`.
    #[arg(long)]
    pub json: bool,
}

/// The flags of `leafd inventory`.
#[derive(Debug, Args)]
pub struct Inventory {
    /// Read a nixos-facter report instead of scanning the host.
    #[arg(long, value_name = "FILE")]
    pub facter: Option<PathBuf>,
    /// Print JSON: `{"devices":[{"id",…}]}`.
    #[arg(long)]
    pub json: bool,
}
