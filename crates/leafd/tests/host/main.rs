//! A leaf on a real machine: leafd without rights, the helper as root, containers as units of systemd. One file for each
//! concern. They are ignored where `cargo xtask test` did not find or make the image of the test host.

#![expect(clippy::print_stderr, reason = "a program, which speaks to whoever runs it")]

mod boots;
mod cycles;
mod ends;
mod faults;
mod leaf;
mod lifecycle;
mod specs;
mod updates;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use xtask::host::{LACK_VARIABLE, READY_VARIABLE};

/// Emulated machines take a processor each, and more.
const AT_ONCE: usize = 2;

type Outcome = anyhow::Result<()>;

/// A module's tests: their names, which are sentences, and what they do.
type Trials = &'static [(&'static str, fn() -> Outcome)];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let ready = std::env::var_os(READY_VARIABLE).is_some();
    if !ready {
        let unset = format!("{READY_VARIABLE} is not set; `cargo xtask test` sets it");
        let reason = std::env::var(LACK_VARIABLE).unwrap_or(unset);
        eprintln!("tests of a leaf on the test host are skipped: {reason}");
    }
    let modules = [
        lifecycle::TRIALS,
        specs::TRIALS,
        updates::TRIALS,
        ends::TRIALS,
        boots::TRIALS,
        faults::TRIALS,
        cycles::TRIALS,
    ];
    let trials = modules.into_iter().flatten().map(|(name, run)| {
        let run = *run;
        Trial::test(*name, move || {
            run().map_err(|error| Failed::from(format!("{error:#}")))
        })
        .with_ignored_flag(!ready)
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}
