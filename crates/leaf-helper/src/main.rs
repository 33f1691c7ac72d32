//! The program of the root side. Today it supervises one container; [`leaf_helper::Helper`] starts it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use leaf_core::decide::AddressPool;
use leaf_core::host_op::HostPaths;
use leaf_core::id::{ContainerName, LeafName};
use leaf_helper::{Helper, Settings};

/// The root side of a leaf.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one container until it ends, and outlives whoever started it
    Supervise(Supervise),
}

#[derive(Debug, clap::Args)]
struct Supervise {
    /// The container
    name: ContainerName,
    /// The leaf it belongs to
    #[arg(long)]
    leaf: LeafName,
    /// The static leaf-init, which enters the container first
    #[arg(long)]
    leaf_init: PathBuf,
    /// Root file systems [default: /var/lib/nixos-containers]
    #[arg(long)]
    roots: Option<PathBuf>,
    /// NAME.conf files [default: /etc/nixos-containers]
    #[arg(long)]
    confs: Option<PathBuf>,
    /// GC roots [default: /nix/var/nix/gcroots/per-container]
    #[arg(long)]
    gc_roots: Option<PathBuf>,
    /// What survives a reboot [default: /var/lib/cim-leaf/containers/LEAF]
    #[arg(long)]
    state: Option<PathBuf>,
    /// What does not [default: /run/cim-leaf/containers/LEAF]
    #[arg(long)]
    run: Option<PathBuf>,
    /// systemd-nspawn, if not the one on PATH
    #[arg(long)]
    nspawn: Option<PathBuf>,
    /// nft, if not the one on PATH
    #[arg(long)]
    nft: Option<PathBuf>,
    /// The addresses of the leaf and its containers
    #[arg(long, default_value_t = AddressPool::default())]
    pool: AddressPool,
    /// The group that may look at status and console
    #[arg(long)]
    observers: Option<u32>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let Cli {
        command: Command::Supervise(args),
    } = Cli::parse();
    let exit = args.helper()?.supervise(&args.name).await?;
    tracing::info!(container = %args.name, "ended with {exit}");
    Ok(ExitCode::SUCCESS)
}

impl Supervise {
    fn helper(&self) -> anyhow::Result<Helper> {
        let defaults = HostPaths::new(&self.leaf);
        let paths = HostPaths {
            roots: self.roots.clone().unwrap_or(defaults.roots),
            confs: self.confs.clone().unwrap_or(defaults.confs),
            gc_roots: self.gc_roots.clone().unwrap_or(defaults.gc_roots),
            state: self.state.clone().unwrap_or(defaults.state),
            run: self.run.clone().unwrap_or(defaults.run),
        };
        let mut settings = Settings::find(std::env::current_exe()?, &self.leaf_init, self.pool)?;
        if let Some(nspawn) = &self.nspawn {
            settings.nspawn.clone_from(nspawn);
        }
        if let Some(nft) = &self.nft {
            settings.nft.clone_from(nft);
        }
        settings.observers = self.observers;
        Ok(Helper::new(self.leaf.clone(), paths, settings))
    }
}
