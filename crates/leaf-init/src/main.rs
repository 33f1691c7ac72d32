//! The first process in a container. A static program without any file beside it, so that it runs in an empty root.
//!
//! | called as | what it does |
//! |---|---|
//! | `leaf-init enter -- PROGRAM …` | sets the container's network up, then becomes the program: any system's init |
//! | process 1, without arguments | is the init of the minimal system ([`init`]) |
//! | `leaf-init install` | is the builder of the minimal system: makes it in `$out` |
//!
//! It says little, on the console, which the leaf keeps as the container's log.

mod enter;
mod init;
mod install;
mod mounts;
mod network;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

const USAGE: &str = "usage: leaf-init enter -- PROGRAM [ARGUMENT…]   (first in a container)
       leaf-init                                (as process 1)
       leaf-init install                        (as a Nix builder, with $out)";

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            say(&format!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<OsString>) -> anyhow::Result<()> {
    let mut arguments = arguments.into_iter();
    match arguments.next().as_ref().and_then(|first| first.to_str()) {
        Some("enter") => {
            let mut rest = arguments.peekable();
            rest.next_if(|argument| argument == "--");
            let program = rest.next().context(USAGE)?;
            enter::enter(&program, rest.collect())
        }
        Some("install") => install::install(),
        None if std::process::id() == 1 => runtime()?.block_on(init::init()),
        _ => bail!(USAGE),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
}

/// Says something on the console. There is nobody to tell if that fails.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "leaf-init: {text}");
}
