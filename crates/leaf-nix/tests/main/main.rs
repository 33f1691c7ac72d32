//! Builds with the real Nix, offline. Where there is no Nix, the tests are skipped by name.

mod addressed;
mod bad_input;
mod check;
mod diff;
mod eval;
mod gc;
mod lab;
mod policy;
mod print_env;
mod results;
mod several;
mod verify;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    // As leafd does, for the checks that run this program.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [name, first, second] = &words[..]
        && name == "nix-compare"
    {
        let differences = leaf_nix::compare::compare(first.as_ref(), second.as_ref()).expect("readable");
        serde_json::to_writer(std::io::stdout(), &differences).expect("written");
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // Each test runs several Nixes.
    arguments.test_threads.get_or_insert(3);
    let nix = lab::has_nix();
    let trials = [
        results::TESTS,
        several::TESTS,
        eval::TESTS,
        print_env::TESTS,
        check::TESTS,
        policy::TESTS,
        gc::TESTS,
        diff::TESTS,
        verify::TESTS,
        bad_input::TESTS,
        addressed::TESTS,
    ]
    .into_iter()
    .flatten()
    .map(|(name, test)| {
        let trial = Trial::test(*name, || {
            test();
            Ok(())
        });
        trial.with_ignored_flag(!nix)
    })
    .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
