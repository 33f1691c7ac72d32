//! Hardware against real parts: this machine's sysfs and uevents, reports of real machines, and a directory made like
//! sysfs for the hardware that this machine lacks.

mod changes;
mod corpus;
mod host;
mod machine;
mod reports;
mod tree;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    let mut trials = Vec::new();
    trials.extend(host::trials());
    trials.extend(tree::trials());
    trials.extend(reports::trials());
    trials.extend(corpus::trials());
    trials.extend(changes::trials());
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Returns a trial that fails when it panics or gives an error.
fn trial(name: &str, test: fn() -> Result<(), Box<dyn std::error::Error>>) -> libtest_mimic::Trial {
    libtest_mimic::Trial::test(name, move || test().map_err(|error| chain(error.as_ref()).into()))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}
