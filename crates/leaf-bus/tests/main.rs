//! leaf-bus against a real nats-server. Where there is none of at least 2.12, every test counts as ignored.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that prints to its user"
)]

mod embedded;
mod fleet;
mod identity;
mod plain;
mod support;
mod wire;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    if let Some(code) = embedded::play_the_daemon() {
        return code;
    }
    let server = support::find_server();
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(identity::trials());
    trials.extend(embedded::trials());
    trials.extend(wire::trials());
    trials.extend(fleet::trials());
    if let Err(why) = &server {
        eprintln!("tests that need nats-server are skipped: {why}");
        trials = trials.into_iter().map(|t| t.with_ignored_flag(true)).collect();
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
