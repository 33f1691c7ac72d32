//! `cargo xtask host fleet`: a hub and several leaves on one network; and what a second terminal does with them.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result};

use testhost::fleet::{HUB, Reached, Served};
use testhost::{Fleet, Host, LinkChange, MEMORY_MIB, Output, shell};

use super::prepare::{image, programs};
use crate::install::Profile;

/// The variable by which the commands for a fleet's machines find a fleet.
const VARIABLE: &str = "CIM_LEAF_FLEET";

/// Run several fresh machines on one network: a hub, and leaves on which leafd runs
///
/// They know each other as hub, leaf-1, leaf-2, …; the hub has nats-server and leaf-hub. Their links can be cut, slowed and
/// made lossy, and a shell be opened on each, from another terminal. The fleet ends with its command, or with the shell
/// on the hub that is opened without one.
#[derive(clap::Args)]
pub(super) struct FleetTask {
    /// The number of leaves
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    leaves: usize,
    /// Start machines without our programs, and no server
    #[arg(long)]
    bare: bool,
    /// Start machines with our programs, and set nothing up: docs/fleet.md says how that is done by hand
    #[arg(long, conflicts_with = "bare")]
    by_hand: bool,
    /// Use release builds of the programs: slower to build, faster to run
    #[arg(long, conflicts_with = "bare")]
    released: bool,
    /// The memory of each machine, in MiB
    #[arg(long, value_name = "MIB", default_value_t = MEMORY_MIB)]
    memory: u64,
    /// The time limit of the command, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    limit: u64,
    /// Run the command on this machine instead of the hub; `cargo xtask host on` and `link` there mean this fleet
    #[arg(long, requires = "command")]
    here: bool,
    /// A bash command line to run on the hub
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl FleetTask {
    pub(super) fn run(self) -> Result<ExitCode> {
        if self.command.is_empty() {
            shell::need_terminal()?;
        }
        let limit = Duration::from_secs(self.limit);
        let served = Served::new(self.restore(limit)?)?;
        let reached = served.reached();
        if self.command.is_empty() {
            println!("{}", self.help());
            reached.shell(HUB)?;
            println!("\nthe fleet has ended");
            return Ok(ExitCode::SUCCESS);
        }
        let command = self.command.join(" ");
        if self.here {
            let status = Command::new("bash")
                .args(["-c", &command])
                .env(VARIABLE, reached.directory())
                .status()
                .context("can't run bash")?;
            return Ok(exit_code(status.code().unwrap_or(1)));
        }
        print(&reached.run(HUB, &command, limit)?)
    }

    /// Starts the machines, and what runs on them.
    fn restore(&self, limit: Duration) -> Result<Fleet> {
        image()?;
        let lives = if self.command.is_empty() {
            Duration::from_secs(12 * 60 * 60)
        } else {
            limit + Duration::from_secs(600)
        };
        let mut options = Host::options().memory_mib(self.memory).lives(lives);
        if !self.bare {
            let profile = if self.released {
                Profile::Release
            } else {
                Profile::Debug
            };
            options = options.with(&programs(profile)?);
        }
        let fleet = Fleet::restore(&options, &options, self.leaves)?;
        if !self.bare && !self.by_hand {
            fleet.connect()?;
        }
        Ok(fleet)
    }

    /// Returns what one can do with the fleet.
    fn help(&self) -> String {
        let last = self.leaves;
        let servers = if self.bare || self.by_hand {
            ""
        } else {
            "leafd runs on the leaves; here, try: leafctl leaf list, leafctl --leaf leaf-1 leaf show\n"
        };
        format!(
            "{servers}from another terminal, with NAME from {HUB}, leaf-1 to leaf-{last}:\n\
             \x20 cargo xtask host on NAME                         a shell\n\
             \x20 cargo xtask host on NAME -- COMMAND              one command\n\
             \x20 cargo xtask host link NAME cut                   or: mend, slow MS, lossy PERCENT, rate KBIT\n\
             this is {HUB}; `exit` or Ctrl-] ends the fleet"
        )
    }
}

/// The fleet that a command is for.
#[derive(clap::Args)]
struct Chosen {
    /// The directory of the fleet, if several are running
    #[arg(long, value_name = "DIRECTORY", env = VARIABLE)]
    fleet: Option<PathBuf>,
}

impl Chosen {
    fn reach(self) -> Result<Reached> {
        self.fleet
            .map_or_else(Reached::only_one, |fleet| Ok(Reached::at(fleet)))
    }
}

/// Open a shell on a machine of the running fleet, or run one command there and exit as it does
#[derive(clap::Args)]
pub(super) struct On {
    #[command(flatten)]
    chosen: Chosen,
    /// The time limit of the command, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// The name of the machine: hub, leaf-1, …
    machine: String,
    /// A bash command line
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl On {
    pub(super) fn run(self) -> Result<ExitCode> {
        if self.command.is_empty() {
            shell::need_terminal()?;
        }
        let reached = self.chosen.reach()?;
        if self.command.is_empty() {
            reached.shell(&self.machine)?;
            return Ok(ExitCode::SUCCESS);
        }
        let limit = Duration::from_secs(self.limit);
        print(&reached.run(&self.machine, &self.command.join(" "), limit)?)
    }
}

/// Change the link between a machine of the running fleet and the network
#[derive(clap::Args)]
pub(super) struct Link {
    #[command(flatten)]
    chosen: Chosen,
    /// The name of the machine: hub, leaf-1, …
    machine: String,
    /// cut: nothing passes; mend: everything passes again, at once; slow MS: each frame takes so many milliseconds; lossy
    /// PERCENT: so many frames are lost; rate KBIT: so many kilobits pass each second. Each holds in both directions
    #[arg(
        required = true,
        num_args = 1..=2,
        value_names = ["cut|mend|slow|lossy|rate", "NUMBER"]
    )]
    change: Vec<String>,
}

impl Link {
    pub(super) fn run(self) -> Result<ExitCode> {
        let change: LinkChange = self.change.join(" ").parse()?;
        self.chosen.reach()?.link(&self.machine, change)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints a command's output, and returns its exit code.
pub(super) fn print(output: &Output) -> Result<ExitCode> {
    std::io::stdout()
        .write_all(output.stdout.as_bytes())
        .and_then(|()| std::io::stderr().write_all(output.stderr.as_bytes()))
        .context("can't print")?;
    Ok(exit_code(output.status))
}

fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
