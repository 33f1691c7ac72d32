//! `leafd check-nats`: tries the rights of the leaf's users on a given NATS server, and those of a container and a person.
#![allow(clippy::print_stdout, reason = "a command line prints")]

use std::io::Write as _;

use anyhow::{Context as _, bail};
use leaf_bus::context;
use leaf_bus::identity::ContainerSigner;
use leaf_bus::rights::{self, Report, Users};

use crate::cli::CheckNats;
use crate::given_nats::GivenNats;
use crate::settings::{Overrides, Settings};
use crate::table::table;

/// Tries the rights, and prints one line for each: as a table, or as JSON (`{"ok",…,"findings":[…]}`).
///
/// # Errors
/// Where a right is not as it must be, or the settings can't be used.
pub fn run(flags: &CheckNats) -> anyhow::Result<()> {
    let settings = Settings::load(Some(&flags.config), &Overrides::default())?;
    let leaf = settings.leaf_name()?;
    let Some(given) = GivenNats::of(&settings, &leaf) else {
        bail!(
            "{} names no server (nats.url): an embedded one has its users from leafd itself",
            flags.config.display()
        );
    };
    let container = match (&settings.nats.container_signing_key, &settings.nats.credentials) {
        (Some(key), Some(credentials)) => {
            let signer = ContainerSigner::open(key, credentials)?;
            Some(Users::container_of(&leaf, &signer, &given.callers))
        }
        _ => None,
    };
    let person = match &flags.context {
        Some(name) => {
            let person = context::load(Some(name))?;
            let caller = person.caller().with_context(|| {
                format!("the context {name} names no caller: set its inbox_prefix to _INBOX.NAME")
            })?;
            Some((caller, person))
        }
        None => None,
    };
    let users = Users {
        streams: given.streams,
        callers: Some(given.callers),
        person,
        container,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(rights::check(&leaf, &users));
    let text = if flags.json {
        serde_json::to_string_pretty(&report).expect("a report has string keys only") + "\n"
    } else {
        lines(&report)
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        other => other.context("can't print the report")?,
    }
    if report.ok {
        return Ok(());
    }
    bail!(
        "{} of {} rights are not as they must be",
        report.wrong(),
        report.findings.len()
    )
}

fn lines(report: &Report) -> String {
    table(Report::HEADING, report.findings.iter().map(rights::Finding::row))
}
