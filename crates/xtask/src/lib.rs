//! Development tasks, one file per command: `cargo xtask --help` lists them.
//!
//! It builds with only cargo and a C compiler; everything else is installed (`setup`) or reported as missing.

// It is an interactive program.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod build_shell;
mod check;
mod compile;
mod demo;
mod docs;
mod host;
mod install;
mod leaf;
mod nats_server;
mod nix_checks;
mod pypi;
mod setup;
mod soak;
mod tally;
mod test;

use std::process::ExitCode;

use clap::Parser;
use testhost::command;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Development tasks of cim-leaf",
    disable_help_subcommand = true
)]
enum Task {
    Setup(setup::Setup),
    Test(test::Test),
    Demo(demo::Demo),
    Host(host::HostTask),
    Bench(bench::Bench),
    Soak(soak::Soak),
    Docs(docs::Docs),
    Check(check::Check),
}

/// Runs the command given on the command line.
pub fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Setup(args) => args.run(),
        Task::Test(args) => args.run(),
        Task::Demo(args) => args.run(),
        Task::Host(args) => args.run(),
        Task::Bench(args) => args.run(),
        Task::Soak(args) => args.run(),
        Task::Docs(args) => args.run(),
        Task::Check(args) => args.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
