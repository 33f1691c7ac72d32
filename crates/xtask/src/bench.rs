//! `cargo xtask bench`: measures what a leaf costs compared with what it is built on, as ratios within one run.
//!
//! This module has the list of measurements and the table; [`programs`] builds the programs, [`leaf`] starts a leaf,
//! [`measures`] takes the figures, and [`machine`] describes the machine. A figure never makes it fail: being slow on a
//! busy machine is not a defect.

mod builds;
mod fleet;
mod hook;
mod host;
mod leaf;
mod machine;
mod measures;
mod numbers;
mod programs;
mod renewals;
mod sessions;
mod sshd;
mod timing;
mod two_leaves;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::workspace;
use crate::setup;
use numbers::Row;
use programs::Programs;

/// The document with the tables, and the marks around each.
const DOCUMENT: &str = "docs/performance.md";
const HERE: [&str; 2] = [
    "<!-- begin: cargo xtask bench --write -->",
    "<!-- end: cargo xtask bench --write -->",
];
const NIX: [&str; 2] = [
    "<!-- begin: cargo xtask bench nix --write -->",
    "<!-- end: cargo xtask bench nix --write -->",
];
const FLEET: [&str; 2] = [
    "<!-- begin: cargo xtask bench fleet --write -->",
    "<!-- end: cargo xtask bench fleet --write -->",
];
const TRUST: [&str; 2] = [
    "<!-- begin: cargo xtask bench trust --write -->",
    "<!-- end: cargo xtask bench trust --write -->",
];
const HOST: [&str; 2] = [
    "<!-- begin: cargo xtask bench --host --write -->",
    "<!-- end: cargo xtask bench --host --write -->",
];

/// Measure a leaf compared with what it is built on, and print a table
///
/// Uses release builds. Each measurement alternates with what it is compared with, several times, and the table has the
/// medians. The machine should be idle. It takes about half an hour, `fleet` alone six minutes, `nix` two, `trust` fifteen, and --host about half
/// an hour.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// Take only these measurements
    #[arg(value_enum)]
    only: Vec<Name>,
    /// Measure on the test host (`cargo xtask host`) instead: containers under systemd, compared with the same by hand
    #[arg(long, conflicts_with = "only")]
    host: bool,
    /// The number of rounds of each measurement
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Write the tables into docs/performance.md: all that are measured here, or that of `fleet`, `nix` or `trust`
    #[arg(long)]
    write: bool,
}

/// The measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// `leaf.show` compared with a bare responder
    RoundTrip,
    /// Events into journal and stream compared with bare publishes
    Durable,
    /// A signed command compared with one without a signature
    Signed,
    /// Requests while the credentials of 250 containers are renewed, compared with the same without renewals
    Renewals,
    /// 64 commands at once
    Concurrent,
    /// `leafd inventory` compared with lshw and hwinfo
    Inventory,
    /// From the start of leafd to the published inventory
    Start,
    /// `leafctl nix build` compared with nix
    Builds,
    /// A session of `leafctl nix run` compared with ssh
    Sessions,
    /// A hundred builds on two leaves compared with one
    TwoLeaves,
    /// Derivations of a stock Nix by the build hook, compared with ssh-ng
    Hook,
    /// Nix's jobs: `builds`, `sessions`, `two-leaves` and `hook`
    Nix,
    /// Memory, wake-ups and processor time at rest
    Rest,
    /// `leafctl fleet` with a thousand leaves
    Keys,
    /// What keys cost: `signed`, `keys` and `renewals`
    Trust,
    /// A leaf and its hub compared with bare servers, and a thousand leaves
    Fleet,
}

impl Bench {
    pub(crate) fn run(self) -> Result<ExitCode> {
        ensure!(
            setup::is_root(),
            "measuring a leaf with containers needs root; try: sudo --preserve-env=PATH,HOME cargo xtask bench"
        );
        ensure!(
            !self.write || [&[][..], &[Name::Fleet], &[Name::Trust], &[Name::Nix]].contains(&&self.only[..]),
            "some rows alone can't be written: leave --write away, or the names"
        );
        let tools = setup::prepare(true)?;
        let programs = Programs::build(&tools)?;
        let rounds = usize::from(self.rounds);
        let before = machine::load()?;
        let mut tables = Vec::new();
        if self.host {
            tables.push((HOST, "cargo xtask bench --host", host::rows(&programs, rounds)?));
        } else {
            let of_leaf = self.measure(LEAF_ALONE, &programs, rounds)?;
            if !of_leaf.is_empty() {
                tables.push((HERE, "cargo xtask bench", of_leaf));
            }
            let of_nix = self.measure(OF_NIX, &programs, rounds)?;
            if !of_nix.is_empty() {
                tables.push((NIX, "cargo xtask bench nix", of_nix));
            }
            let of_trust = self.measure(OF_KEYS, &programs, rounds)?;
            if !of_trust.is_empty() {
                tables.push((TRUST, "cargo xtask bench trust", of_trust));
            }
            let of_fleet = self.measure(&[(Name::Fleet, fleet::measure)], &programs, rounds)?;
            if !of_fleet.is_empty() {
                tables.push((FLEET, "cargo xtask bench fleet", of_fleet));
            }
        }
        let mut about = machine::about(&programs, &before)?;
        if self.host {
            about.push_str(&format!(" The test host was run with {}.", host::accelerator()?));
        }
        let file = workspace().join(DOCUMENT);
        for (marks, command, rows) in tables {
            let mut command = command.to_owned();
            if self.rounds != 5 {
                command.push_str(&format!(" --rounds {rounds}"));
            }
            let text = format!(
                "{}\n{about}\nMade by `{command} --write`, the medians of {rounds} rounds.\n",
                numbers::table(&rows)
            );
            println!("{text}");
            if self.write {
                let old = std::fs::read_to_string(&file).with_context(|| format!("can't read {DOCUMENT}"))?;
                std::fs::write(&file, replaced(&old, marks, &text)?)
                    .with_context(|| format!("can't write {DOCUMENT}"))?;
                eprintln!("wrote the table of `{command}` into {DOCUMENT}");
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn measure(&self, measures: &[(Name, Measure)], programs: &Programs, rounds: usize) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (name, measure) in measures {
            let groups = [(Name::Trust, OF_KEYS), (Name::Nix, OF_NIX)];
            let mut asked = groups.iter().filter(|(group, _)| self.only.contains(group));
            let by_group = asked.any(|(_, of_group)| of_group.iter().any(|(member, _)| member == name));
            if self.only.is_empty() || self.only.contains(name) || by_group {
                eprintln!("measuring: {name:?}");
                rows.extend(measure(programs, rounds).with_context(|| format!("can't measure {name:?}"))?);
            }
        }
        Ok(rows)
    }
}

type Measure = fn(&Programs, usize) -> Result<Vec<Row>>;

/// The measurements of a leaf alone in order, those that load the machine least first.
const LEAF_ALONE: &[(Name, Measure)] = &[
    (Name::Rest, measures::rest),
    (Name::RoundTrip, measures::round_trip),
    (Name::Concurrent, measures::concurrent),
    (Name::Durable, measures::durable),
    (Name::Inventory, measures::inventory),
    (Name::Start, measures::start),
];

/// The measurements of Nix's jobs.
const OF_NIX: &[(Name, Measure)] = &[
    (Name::Builds, builds::measure),
    (Name::Sessions, sessions::measure),
    (Name::TwoLeaves, two_leaves::measure),
    (Name::Hook, hook::measure),
];

/// The measurements of what keys cost.
const OF_KEYS: &[(Name, Measure)] = &[
    (Name::Signed, measures::signed),
    (Name::Keys, fleet::keys),
    (Name::Renewals, renewals::measure),
];

/// Returns the document with the text between two marks replaced.
pub(crate) fn replaced(document: &str, [begin, end]: [&str; 2], text: &str) -> Result<String> {
    let parts = document
        .split_once(begin)
        .and_then(|(before, rest)| Some((before, rest.split_once(end)?.1)));
    let Some((before, after)) = parts else {
        bail!("the document lacks the marks {begin:?} and {end:?}");
    };
    Ok(format!("{before}{begin}\n\n{text}\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_table_is_replaced() {
        let [begin, end] = HERE;
        let document = format!("# About\n\n{begin}\nold\n{end}\nmore\n");
        let new = replaced(&document, HERE, "new").expect("it has marks");
        assert_eq!(new, format!("# About\n\n{begin}\n\nnew\n{end}\nmore\n"));
        assert_eq!(replaced(&new, HERE, "new").expect("it has marks"), new);
        replaced("# About", HERE, "new").expect_err("it has no marks");
    }

    #[test]
    fn the_document_has_its_marks() {
        let document = std::fs::read_to_string(workspace().join(DOCUMENT)).expect("the document");
        for marks in [HERE, NIX, TRUST, FLEET, HOST] {
            replaced(&document, marks, "new").expect("it has marks");
        }
    }
}
