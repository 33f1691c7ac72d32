//! `cargo xtask host`: an interactive test host; and the set-up of test hosts for the other commands.

mod fleet;
mod prepare;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use testhost::{Accelerator, Host, Image, MEMORY_MIB, cache_directory, can_run, clean, shell};

use crate::install::Profile;

pub(crate) use prepare::{image, nixos, programs, programs_of_tests};

/// Run a real machine with systemd in QEMU, for experiments and tests
///
/// Its image is built once (Debian, some minutes) and kept; a fresh machine then starts in about a second. All changes
/// on it are discarded at its end.
#[derive(clap::Args)]
pub(crate) struct HostTask {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Shell(Shell),
    Run(Run),
    Fleet(fleet::FleetTask),
    On(fleet::On),
    Link(fleet::Link),
    Build(Build),
    Status(Status),
    Clean(Clean),
}

impl HostTask {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.what {
            What::Shell(args) => args.run(),
            What::Run(args) => args.run(),
            What::Fleet(args) => args.run(),
            What::On(args) => args.run(),
            What::Link(args) => args.run(),
            What::Build(args) => args.run(),
            What::Status(args) => args.run(),
            What::Clean(args) => args.run(),
        }
    }
}

/// Open a shell on a fresh machine on which leafd runs
///
/// The machine ends with the shell: leave it with `exit` or Ctrl-].
#[derive(clap::Args)]
struct Shell {
    /// Start a machine without leafd and its programs
    #[arg(long)]
    bare: bool,
    /// Start a NixOS host instead of a Debian one; needs a nixpkgs tree (docs/development.md)
    #[arg(long, conflicts_with = "bare")]
    nixos: bool,
    /// The machine's memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = MEMORY_MIB)]
    memory: u64,
}

impl Shell {
    fn run(self) -> Result<ExitCode> {
        shell::need_terminal()?;
        image()?;
        let options = Host::options()
            .memory_mib(self.memory)
            .lives(Duration::from_secs(12 * 60 * 60));
        let host = if self.bare {
            options.restore()?
        } else if self.nixos {
            options.nixos(&nixos(&programs(Profile::Debug)?)?).restore()?
        } else {
            let host = options.with(&programs(Profile::Debug)?).restore()?;
            host.ok("systemctl start leafd.service || { journalctl --unit leafd --lines 20 --no-pager >&2; exit 1; }")?;
            println!(
                "leafd runs here; try: leafctl leaf show, leafctl hardware list, leafctl container list"
            );
            host
        };
        println!("`exit` or Ctrl-] ends the machine");
        shell::shell(&host)?;
        println!("\nthe machine has ended");
        Ok(ExitCode::SUCCESS)
    }
}

/// Run one command on a fresh machine, and exit as it does
#[derive(clap::Args)]
struct Run {
    /// The time limit, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// The machine's memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = MEMORY_MIB)]
    memory: u64,
    /// Build leafd and the other programs, and install them with their units; leafd is not started
    #[arg(long)]
    leaf: bool,
    /// Use a NixOS host, on which leafd is started by its unit; needs a nixpkgs tree (docs/development.md)
    #[arg(long, conflicts_with = "leaf")]
    nixos: bool,
    /// Use release builds of the programs: slower to build, faster to run
    #[arg(long)]
    released: bool,
    /// A bash command line
    command: String,
}

impl Run {
    fn run(self) -> Result<ExitCode> {
        image()?;
        let limit = Duration::from_secs(self.limit);
        let mut options = Host::options()
            .memory_mib(self.memory)
            .lives(limit + Duration::from_secs(120));
        if self.leaf || self.nixos {
            let profile = if self.released {
                Profile::Release
            } else {
                Profile::Debug
            };
            let programs = programs(profile)?;
            options = if self.nixos {
                options.nixos(&nixos(&programs)?)
            } else {
                options.with(&programs)
            };
        }
        let host = options.restore()?;
        let output = host.run_within(&self.command, limit)?;
        fleet::print(&output)
    }
}

/// Build the image, if it does not exist
#[derive(clap::Args)]
struct Build {}

impl Build {
    fn run(self) -> Result<ExitCode> {
        let since = Instant::now();
        let image = image()?;
        let [disk, machine] = image.directories();
        println!("{}\n{}", disk.display(), machine.display());
        println!("ready after {:.1} s", since.elapsed().as_secs_f64());
        Ok(ExitCode::SUCCESS)
    }
}

/// Show whether the image exists, and what runs it
#[derive(clap::Args)]
struct Status {}

impl Status {
    fn run(self) -> Result<ExitCode> {
        can_run()?;
        println!("images are in {}", cache_directory().display());
        let Some(image) = Image::here() else {
            println!("not built yet; `cargo xtask host build` builds it");
            return Ok(ExitCode::FAILURE);
        };
        for directory in image.directories() {
            println!("{}", directory.display());
        }
        match image.accelerator() {
            Accelerator::Kvm => println!("machines run with KVM"),
            Accelerator::Emulation => println!("machines are emulated: KVM does not work here"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Remove the images that this checkout would not use, and no other has used for an hour
#[derive(clap::Args)]
struct Clean {
    /// Remove all images
    #[arg(long)]
    all: bool,
}

impl Clean {
    fn run(self) -> Result<ExitCode> {
        for image in clean(self.all)? {
            println!("removed {}", image.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}
