//! What needs a real machine, which the test host is. They are ignored where `cargo xtask test` did not find or make its
//! image.
//!
//! | module | what runs there |
//! |---|---|
//! | [`machine`] | none of our programs: what the other tests rely on |
//! | [`helper`] | the helper as its service, and containers as units of systemd |
//! | [`leaf`] | a whole leaf, as it is installed |
//! | [`fleet`] | several of them, and a hub |
//! | [`nixos`] | real NixOS systems, in containers and as the host |

#![expect(clippy::print_stderr, reason = "a program that prints to its user")]

mod fleet;
mod helper;
mod leaf;
mod machine;
mod nixos;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use testhost::nixos::{LACK_VARIABLE as NIXOS_LACK_VARIABLE, Systems, VARIABLE as NIXOS_VARIABLE};
use testhost::{Host, LACK_VARIABLE, READY_VARIABLE, cost};

/// An emulated machine takes a processor, and waits for a third of its time. With four at once on two processors, all take
/// as long as with three, and each needs more processor time.
const AT_ONCE: usize = 3;

type Outcome = anyhow::Result<()>;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(helper::PROBE) {
        return helper::probe();
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_ONCE);
    let ready = std::env::var_os(READY_VARIABLE).is_some();
    if !ready {
        let unset = format!("{READY_VARIABLE} is not set; `cargo xtask test` sets it");
        let reason = std::env::var(LACK_VARIABLE).unwrap_or(unset);
        eprintln!("tests on the test host are skipped: {reason}");
    }
    let nixos = ready && std::env::var_os(NIXOS_VARIABLE).is_some();
    if ready && !nixos {
        let unset = format!("{NIXOS_VARIABLE} is not set; `cargo xtask test` sets it");
        let reason = std::env::var(NIXOS_LACK_VARIABLE).unwrap_or(unset);
        eprintln!("tests on NixOS are skipped: {reason}");
    }
    let stock = nixos && Systems::here().is_ok_and(|systems| systems.has_nixos_container());
    if nixos && !stock {
        eprintln!(
            "tests of the stock program are skipped: neither the tree of nixpkgs nor the cache has nixos-container.pl \
             (docs/development.md)"
        );
    }
    let trials = |modules: &[Trials], ready: bool| -> Vec<Trial> {
        let trials = modules.iter().copied().flatten().map(|(name, run)| {
            let run = *run;
            Trial::test(*name, move || {
                let (began, cost) = (Instant::now(), cost::of_this_thread());
                let outcome = run().map_err(|error| Failed::from(format!("{error:#}")));
                eprintln!(
                    "{name} took {:.0} s, and {:.0} s of processor time",
                    began.elapsed().as_secs_f64(),
                    (cost::of_this_thread() - cost).as_secs_f64()
                );
                outcome
            })
            .with_ignored_flag(!ready)
        });
        trials.collect()
    };
    // The longest first, so that none of them is what all others wait for in the end.
    let mut all = trials(nixos::TRIALS, nixos);
    all.extend(trials(nixos::WITH_NIXOS_CONTAINER, stock));
    all.extend(trials(
        &[leaf::TRIALS, fleet::TRIALS, helper::TRIALS, machine::TRIALS].concat(),
        ready,
    ));
    libtest_mimic::run(&arguments, all).exit_code()
}

/// A module's tests: their names, which are sentences, and what they do.
type Trials = &'static [(&'static str, fn() -> Outcome)];

/// Runs a command again until it prints the expected output.
fn until(host: &Host, command: &str, expected: impl Fn(&str) -> bool) -> Outcome {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let output = host.run(command)?;
        if expected(&output.stdout) {
            return Ok(());
        }
        if Instant::now() > deadline {
            anyhow::bail!("{command:?} still leaves {output:?}");
        }
    }
}

/// Fails with a text where a condition does not hold.
fn ensure(holds: bool, text: impl Into<String>) -> Outcome {
    anyhow::ensure!(holds, text.into());
    Ok(())
}
