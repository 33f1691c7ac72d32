//! The daemon itself, started as people start it: its own program, a real nats-server, real files. What this machine
//! lacks makes the tests that need it count as ignored, and is named.

#![expect(clippy::print_stderr, reason = "a program that prints to its user")]

#[path = "main/commands.rs"]
mod commands;
#[path = "main/durability.rs"]
mod durability;
#[path = "main/hosting.rs"]
mod hosting;
#[path = "main/support.rs"]
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use support::Host;

fn main() -> ExitCode {
    if let Some(code) = support::short_lives::play_leafd() {
        return code;
    }
    let host = Host::look();
    for lack in host.lacks() {
        eprintln!("{lack}");
    }
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(commands::trials(&host));
    trials.extend(durability::trials(&host));
    trials.extend(hosting::trials(&host));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
