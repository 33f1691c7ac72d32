//! The first process in a container. A static program that needs no other file, so that it runs in an empty root.
//!
//! | called as | what it does |
//! |---|---|
//! | `leaf-init enter -- PROGRAM …` | sets up the container's network, then executes the program: any system's init |
//! | `leaf-init ready -- PROGRAM …` | notifies that the container is ready, then executes the program: for one that can't |
//! | process 1, without arguments | runs as the init of the minimal system ([`init`]) |
//! | `leaf-init install` | builds the minimal system: creates it in `$out` |
//!
//! It writes a few lines to the console, which the leaf keeps as the container's log.

mod init;
mod install;
mod mounts;
mod network;

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use leaf_core::printable::printable_line;

const USAGE: &str = "usage: leaf-init enter -- PROGRAM [ARGUMENT…]   (first in a container)
       leaf-init ready -- PROGRAM [ARGUMENT…]   (as process 1, for a program that can't notify)
       leaf-init                                (as process 1)
       leaf-init install                        (as a Nix builder, with $out)";

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            log(&format!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = OsString>) -> anyhow::Result<()> {
    match arguments.next().as_ref().and_then(|first| first.to_str()) {
        Some(verb @ ("enter" | "ready")) => {
            let mut rest = arguments.peekable();
            rest.next_if(|argument| argument == "--");
            let mut program = rest.next().context(USAGE)?;
            if verb == "enter" {
                runtime()?.block_on(network::set_up())?;
                if is_minimal(&program) {
                    program = "/proc/self/exe".into();
                }
            } else {
                sd_notify::notify(&[sd_notify::NotifyState::Ready])
                    .context("notify the supervisor that it is ready")?;
            }
            Err(execute(&program, rest.collect()))
        }
        Some("install") => install::install(),
        None if std::process::id() == 1 => runtime()?.block_on(init::init()),
        _ => bail!(USAGE),
    }
}

/// Returns whether a program is the init of a minimal system, which is a copy of `leaf-init`. It may be an earlier one, which does not
/// know what the leaf's helper expects of it: so this one takes its place.
fn is_minimal(program: &OsString) -> bool {
    let system = Path::new(program).parent();
    let release = system.and_then(|system| std::fs::read_to_string(system.join("etc/os-release")).ok());
    release.is_some_and(|text| text.lines().any(|line| line == install::ID))
}

/// Replaces this process with the program; returns only if that fails.
fn execute(program: &OsString, arguments: Vec<OsString>) -> anyhow::Error {
    let error = Command::new(program).args(arguments).exec();
    anyhow::Error::new(error).context(format!("run {}", program.display()))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
}

/// Writes a line to the console; a failure can't be reported.
fn log(text: &str) {
    let _ = writeln!(std::io::stderr(), "leaf-init: {}", printable_line(text));
}
