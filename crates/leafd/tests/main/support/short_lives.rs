//! A leafd whose containers' credentials live for seconds: no settings file can say that, so this test program plays leafd, with what it
//! is made of.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use leaf_core::error::chain;
use leafd::cli::{Cli, Command};
use leafd::settings::{Overrides, Settings};
use leafd::{daemon, job};

/// Set for a process that plays leafd: the life of its containers' credentials, in seconds.
pub(crate) const LIFE: &str = "LEAFD_TEST_CONTAINER_SECONDS";

/// Plays leafd if this process is to, and returns its exit code.
pub(crate) fn play_leafd() -> Option<ExitCode> {
    // A job has no variables of leafd's.
    let is_job = std::env::args().nth(1).is_some_and(|verb| verb == "nix-job");
    let seconds = std::env::var(LIFE).ok();
    if !is_job && seconds.is_none() {
        return None;
    }
    let life = || {
        Duration::from_secs(
            seconds
                .and_then(|text| text.parse().ok())
                .expect("a number of seconds"),
        )
    };
    let ended = match Cli::parse().command {
        Command::NixJob { directory } => return Some(job::run_process(&directory)),
        Command::Run(run) => Settings::load(run.config.as_deref(), &Overrides::default())
            .map_err(anyhow::Error::from)
            .and_then(|mut settings| {
                settings.nats.container_life = Some(life());
                daemon::run(settings, &run.changes)
            }),
        other => panic!("it plays no {other:?}"),
    };
    Some(match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("leafd: {}", chain(error.as_ref()));
            ExitCode::FAILURE
        }
    })
}
