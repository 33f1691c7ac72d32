//! The test host itself: what tests rely on that use it. They are ignored where `cargo xtask test` did not find or make
//! its image.

#![expect(clippy::print_stderr, reason = "a program, which speaks to whoever runs it")]

mod adopt;
mod boots;
mod commands;
mod devices;
mod folders;
mod helper;
mod identity;
mod inputs;
mod limits;
mod link;
mod looks;
mod network;
mod networks;
mod power_cut;
mod split;
mod systemd_runtime;
mod updates;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use xtask::host::{Host, LACK_VARIABLE, READY_VARIABLE};

/// Emulated machines take a processor each, and more.
const AT_ONCE: usize = 2;

type Outcome = Result<(), Failed>;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(looks::PROBE) {
        return looks::probe();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let ready = std::env::var_os(READY_VARIABLE).is_some();
    if !ready {
        let unset = format!("{READY_VARIABLE} is not set; `cargo xtask test` sets it");
        let reason = std::env::var(LACK_VARIABLE).unwrap_or(unset);
        eprintln!("tests on the test host are skipped: {reason}");
    }
    let modules = [
        adopt::TRIALS,
        boots::TRIALS,
        commands::TRIALS,
        devices::TRIALS,
        folders::TRIALS,
        identity::TRIALS,
        inputs::TRIALS,
        limits::TRIALS,
        link::TRIALS,
        looks::TRIALS,
        network::TRIALS,
        networks::TRIALS,
        power_cut::TRIALS,
        split::TRIALS,
        systemd_runtime::TRIALS,
        updates::TRIALS,
    ];
    let trials = modules.into_iter().flatten().map(|(name, run)| {
        let run = *run;
        Trial::test(*name, run).with_ignored_flag(!ready)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

/// A module's tests: their names, which are sentences, and what they do.
type Trials = &'static [(&'static str, fn() -> Outcome)];

/// Runs a command again until it prints what is wanted.
fn until(host: &Host, command: &str, wanted: impl Fn(&str) -> bool) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let output = host.run(command)?;
        if wanted(&output.stdout) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("{command:?} still leaves {output:?}").into());
        }
    }
}

/// Fails with a text where a condition does not hold.
fn ensure(holds: bool, text: impl Into<String>) -> Outcome {
    if holds { Ok(()) } else { Err(text.into().into()) }
}
