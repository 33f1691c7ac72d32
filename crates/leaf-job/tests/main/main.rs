//! Jobs whose program is this one: no shell and no Nix is needed. Tests that need root or cgroup v2 are skipped by name
//! where there is none.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "measurements, ids and logs are for the user"
)]

mod damaged;
mod ends;
mod lab;
mod logs;
mod program;
mod survives;
mod units;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        // This program is its own runner, its own daemon that dies, and the program that jobs run.
        Some("job") => return lab::run_job(words.next().expect("a directory").as_ref()),
        Some("daemon") => {
            return survives::daemon(words.next().expect("a directory").as_ref(), words.collect());
        }
        Some("program") => return program::main(words),
        _ => {}
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(3);
    let root = rustix::process::geteuid().is_root();
    let cgroup = leaf_job::default_cgroup().is_some();
    let mut trials = Vec::new();
    for tests in [
        ends::TESTS,
        logs::TESTS,
        survives::TESTS,
        damaged::TESTS,
        units::TESTS,
    ] {
        for (name, need, test) in tests.iter().copied() {
            let trial = Trial::test(name, move || {
                lab::run(test);
                Ok(())
            });
            let missing = match need {
                lab::Need::Nothing => false,
                lab::Need::Root => !root,
                lab::Need::Cgroup => !cgroup,
            };
            trials.push(trial.with_ignored_flag(missing));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
