//! The journal on real files: commits, damage, a full disk, SIGKILL.

mod commits;
mod damage;
mod disk_full;
mod killed;
mod support;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    // This program is also the process that the tests kill.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().as_deref() == Some(killed::CHILD.as_ref()) {
        killed::child(arguments.next().expect("a directory").as_ref());
        return ExitCode::SUCCESS;
    }
    let root = rustix::process::geteuid().is_root();
    let mut trials: Vec<Trial> = [commits::TESTS, damage::TESTS, killed::TESTS]
        .concat()
        .into_iter()
        .map(|(name, test)| trial(name, test))
        .collect();
    // A small disk has to be mounted.
    trials.extend(
        disk_full::TESTS
            .iter()
            .map(|&(name, test)| trial(name, test).with_ignored_flag(!root)),
    );
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
