//! Builds with the real Nix, offline. Where there is no Nix, or no cgroup v2 for a test that needs one, the tests are
//! skipped by name.

#![expect(
    clippy::print_stdout,
    reason = "measurements and ids are for whoever started this program"
)]

mod ends;
mod lab;
mod logs;
mod results;
mod survives;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    match words.next().as_deref().and_then(|word| word.to_str()) {
        // This program is its own runner, and its own daemon that dies.
        Some("nix-job") => return leaf_nix::runner::main(words.next().expect("a folder").as_ref()),
        Some("daemon") => return survives::daemon(words.next().expect("a folder").as_ref()),
        _ => {}
    }
    let mut arguments = Arguments::from_args();
    // The machine is small, and each test runs several Nixes.
    arguments.test_threads.get_or_insert(3);
    let nix = lab::has_nix();
    let cgroup = leaf_nix::default_cgroup().is_some();
    let mut trials = Vec::new();
    for (name, needs_cgroup, test) in [results::TESTS, ends::TESTS, logs::TESTS, survives::TESTS]
        .into_iter()
        .flatten()
        .copied()
    {
        let trial = Trial::test(name, move || {
            lab::run(test);
            Ok(())
        });
        trials.push(trial.with_ignored_flag(!nix || needs_cgroup && !cgroup));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
