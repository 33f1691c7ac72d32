//! `leafd`, the daemon of a leaf. See [`leafd`] for how it is built.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line prints")]

use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use leaf_core::error::chain;
use leaf_core::printable::printable;
use leafd::cli::{Cli, Command};
use leafd::settings::{Overrides, Settings};
use leafd::{check_nats, daemon, inventory, job, trust, witness};

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::NixJob { directory } => job::run_process(&directory),
        Command::NixCompare { first, second } => finish(job::print_comparison(&first, &second)),
        Command::JobProgram { file } => leaf_job::program::start_program(&file),
        Command::Run(run) => {
            let overrides = Overrides {
                name: run.name,
                state_dir: run.state_dir.map(|dir| std::path::absolute(&dir).unwrap_or(dir)),
                embedded_nats: run.embedded_nats,
                nats_port: run.nats_port,
            };
            finish(
                Settings::load(run.config.as_deref(), &overrides)
                    .map_err(Into::into)
                    .and_then(|settings| daemon::run(settings, &run.changes)),
            )
        }
        Command::CheckConfig { files, file } => finish(check_config(&file, files)),
        Command::Witness(flags) => finish(
            leaf_host::process::write_no_core()
                .map_err(Into::into)
                .and_then(|()| witness::run(&flags)),
        ),
        Command::CheckNats(flags) => finish(check_nats::run(&flags)),
        Command::Inventory(flags) => finish(inventory::show(&flags)),
    }
}

fn check_config(file: &Path, looks_at_files: bool) -> anyhow::Result<()> {
    let settings = Settings::load(Some(file), &Overrides::default())?;
    if looks_at_files {
        let mut problems = settings.problems_of_files();
        problems.extend(trust::problems_of_files(&settings.trust));
        anyhow::ensure!(problems.is_empty(), "{}", problems.join("\n"));
    }
    println!("{} is valid", printable(&file.to_string_lossy()));
    for note in settings.notes() {
        println!("note: {note}");
    }
    Ok(())
}

fn finish(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leafd: {}", printable(&chain(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}
