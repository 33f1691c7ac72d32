//! `cargo xtask host`: a machine for a person.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::cache;
use super::{Accelerator, Host, Image};

/// A real machine with systemd in QEMU, to try things on and to test on
///
/// Its image is built once (Debian, some minutes) and kept; a fresh machine is then there in about a second. All that
/// is done on it is gone when it ends.
#[derive(clap::Args)]
pub(crate) struct HostTask {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Run(Run),
    Build(Build),
    Status(Status),
}

impl HostTask {
    pub(crate) fn run(self) -> Result<ExitCode> {
        match self.what {
            What::Run(args) => args.run(),
            What::Build(args) => args.run(),
            What::Status(args) => args.run(),
        }
    }
}

/// Run one command on a fresh machine, and end as it does
#[derive(clap::Args)]
struct Run {
    /// How long it may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    limit: u64,
    /// The machine's memory, in MiB
    #[arg(long, value_name = "MIB", default_value_t = super::machine::MEMORY_MIB)]
    memory: u64,
    /// A command line of bash
    command: String,
}

impl Run {
    fn run(self) -> Result<ExitCode> {
        let limit = Duration::from_secs(self.limit);
        let host = Host::options()
            .memory_mib(self.memory)
            .lives(limit + Duration::from_secs(120))
            .restore()?;
        let output = host.run_within(&self.command, limit)?;
        std::io::stdout()
            .write_all(output.stdout.as_bytes())
            .context("can't print")?;
        std::io::stderr()
            .write_all(output.stderr.as_bytes())
            .context("can't print")?;
        Ok(ExitCode::from(u8::try_from(output.status).unwrap_or(1)))
    }
}

/// Build the image, if it is not there yet
#[derive(clap::Args)]
struct Build {}

impl Build {
    fn run(self) -> Result<ExitCode> {
        let since = Instant::now();
        let image = Image::prepare()?;
        let [disk, machine] = image.folders();
        println!("{}\n{}", disk.display(), machine.display());
        println!("ready after {:.1} s", since.elapsed().as_secs_f64());
        Ok(ExitCode::SUCCESS)
    }
}

/// Tell whether the image is there, and what runs it
#[derive(clap::Args)]
struct Status {}

impl Status {
    fn run(self) -> Result<ExitCode> {
        cache::can_run()?;
        println!("images are in {}", cache::folder().display());
        let Some(image) = Image::here() else {
            println!("not built yet; `cargo xtask host build` builds it");
            return Ok(ExitCode::FAILURE);
        };
        for folder in image.folders() {
            println!("{}", folder.display());
        }
        match image.accelerator() {
            Accelerator::Kvm => println!("it runs with KVM"),
            Accelerator::Emulation => println!("it is emulated: KVM does not work here"),
        }
        Ok(ExitCode::SUCCESS)
    }
}
