//! `cargo xtask soak`: runs the long tests on the test host, of which CI runs a short version, and records their
//! figures.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum as _;
use serde_json::Value;
use testhost::{PROGRAMS_VARIABLE, READY_VARIABLE};

use crate::command::{line, output, workspace};
use crate::compile::compile;
use crate::install::Profile;
use crate::{host, setup};

/// Run the long tests on the test host: many lifecycles of containers, many power cuts, a kill at each step
///
/// Uses release builds. With --write the figures are written into docs/reliability.md.
#[derive(clap::Args)]
pub(crate) struct Soak {
    /// The number of times that a container is created, started, stopped and destroyed
    #[arg(long, default_value_t = 1000)]
    cycles: u32,
    /// The number of power cuts, and of reboots, during each of create, update and destroy
    #[arg(long, default_value_t = 20)]
    cuts: u32,
    /// Run only these tests; the figures of the others in the document are kept
    #[arg(long, value_enum)]
    only: Vec<Long>,
    /// Write the figures into docs/reliability.md
    #[arg(long)]
    write: bool,
}

/// The long tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Long {
    /// Containers from create to destroy
    Lives,
    /// The power is cut during commands
    PowerCuts,
    /// The host is rebooted during commands
    Reboots,
    /// leafd is killed at each step of create, update, stop and destroy
    KillsOfLeafd,
    /// The helper is killed at each of these steps
    KillsOfHelper,
}

impl Long {
    const fn test(self) -> &'static str {
        match self {
            Self::Lives => "many_lifecycles_of_containers_leave_nothing_behind",
            Self::PowerCuts => "a_power_cut_during_create_update_and_destroy",
            Self::Reboots => "a_reboot_during_create_update_and_destroy",
            Self::KillsOfLeafd => "leafd_killed_at_each_step_continues_from_there",
            Self::KillsOfHelper => "a_helper_killed_at_each_step_does_not_prevent_the_outcome",
        }
    }
}

const BEGIN: &str = "<!-- begin: cargo xtask soak --write -->";
const END: &str = "<!-- end: cargo xtask soak --write -->";

impl Soak {
    pub(crate) fn run(self) -> Result<ExitCode> {
        setup::prepare(false)?;
        host::image()?;
        let programs = host::programs(Profile::Release)?;
        let directory = tempfile::tempdir().context("can't make a temporary directory")?;
        let report = directory.path().join("report");
        let artifacts = compile(["--workspace", "--test", "host"])?;
        let tests = artifacts
            .iter()
            .find_map(|artifact| artifact["executable"].as_str())
            .context("cargo names no test program of testhost")?;
        // Read before the tests, which take hours: HEAD may move in the meantime.
        let revision = output(Command::new("git").args(["rev-parse", "--short", "HEAD"]))?;
        // All at the same time: each has a machine, which uses one processor.
        let mut running = Vec::new();
        for long in Long::value_variants() {
            if !self.only.is_empty() && !self.only.contains(long) {
                continue;
            }
            let name = long.test();
            let mut command = Command::new(tests);
            command
                .current_dir(workspace().join("crates/testhost"))
                .args(["--exact", name])
                .env(READY_VARIABLE, "1")
                .env(PROGRAMS_VARIABLE, programs.tree())
                .env("CIM_LEAF_SAMPLE", "all")
                .env("CIM_LEAF_CYCLES", self.cycles.to_string())
                .env("CIM_LEAF_CUTS", self.cuts.to_string())
                .env("CIM_LEAF_SOAK_REPORT", &report);
            let child = command
                .spawn()
                .with_context(|| format!("can't run {}", line(&command)))?;
            running.push((name, child));
        }
        let mut worked = true;
        for (name, mut child) in running {
            let status = child.wait().with_context(|| format!("can't wait for {name}"))?;
            if !status.success() {
                eprintln!("error: {name} ended with {status}");
                worked = false;
            }
        }
        let rows = rows(
            &std::fs::read_to_string(&report).unwrap_or_default(),
            revision.trim(),
        )?;
        println!("{}", table(&rows));
        ensure!(worked, "some tests failed");
        if self.write {
            write(rows)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

const HEAD: &str = "| what | times | took | found | when |\n|---|---:|---:|---|---|\n";

fn table(rows: &[String]) -> String {
    format!("{HEAD}{}", rows.concat())
}

/// Returns the rows of the table for the tests' reports.
fn rows(report: &str, revision: &str) -> Result<Vec<String>> {
    let date = output(Command::new("date").args(["--utc", "+%F"]))?;
    let row = |line: &str| {
        let figures: Value = serde_json::from_str(line).context("a test's report is not JSON")?;
        let text = |key: &str| figures[key].as_str().unwrap_or_default().to_owned();
        Ok(format!(
            "| {} | {} | {:.0} min | {} | {}, at {} |\n",
            text("what"),
            figures["times"],
            figures["seconds"].as_f64().unwrap_or_default() / 60.0,
            text("found"),
            date.trim(),
            revision
        ))
    };
    report.lines().map(row).collect()
}

/// Writes rows into the document's table, replacing those of the same name.
fn write(rows: Vec<String>) -> Result<()> {
    let path: PathBuf = workspace().join("docs/reliability.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let text = replaced(&text, rows)
        .with_context(|| format!("{} lacks the marks around the figures", path.display()))?;
    std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
}

fn replaced(document: &str, mut rows: Vec<String>) -> Option<String> {
    let (begin, end) = (document.find(BEGIN)?, document.find(END)?);
    let name = |row: &str| row.split('|').nth(1).map(str::to_owned);
    let kept = document[begin..end]
        .lines()
        .filter(|line| line.starts_with("| ") && !HEAD.starts_with(line))
        .filter(|line| rows.iter().all(|row| name(row) != name(line)))
        .map(|line| format!("{line}\n"));
    let mut all: Vec<String> = kept.collect();
    all.append(&mut rows);
    all.sort();
    Some(format!(
        "{}{BEGIN}\n\n{}\nBy `cargo xtask soak --write`.\n\n{}",
        &document[..begin],
        table(&all),
        &document[end..]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_replaces_the_one_of_the_same_name() {
        let row = |what: &str, times: u32| format!("| {what} | {times} | 1 min | fine | today |\n");
        let document = format!("# Head\n\n{BEGIN}\n\nNot taken yet.\n\n{END}\n");
        let once = replaced(&document, vec![row("b", 1), row("a", 1)]).expect("it has marks");
        let again = replaced(&once, vec![row("b", 2)]).expect("it has marks");
        assert!(
            again.contains(&format!("{HEAD}{}{}", row("a", 1), row("b", 2))),
            "{again}"
        );
        assert!(
            again.starts_with("# Head\n") && again.ends_with(&format!("{END}\n")),
            "{again}"
        );
        assert_eq!(replaced("# Head\n", Vec::new()), None);
    }
}
