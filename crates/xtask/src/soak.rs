//! `cargo xtask soak`: the long tests on the test host, which CI runs in short, and their figures.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::command::{cargo, line, output, run, workspace};
use crate::host::{self, Image, Programs};
use crate::setup;

/// Run the long tests on the test host: many lives of containers, many power cuts
///
/// The programs are those that are released. With --write the figures go into docs/reliability.md.
#[derive(clap::Args)]
pub(crate) struct Soak {
    /// How many times a container is created, started, stopped and destroyed
    #[arg(long, default_value_t = 1000)]
    cycles: u32,
    /// How many power cuts in the middle of each of create, update and destroy
    #[arg(long, default_value_t = 20)]
    cuts: u32,
    /// Put the figures into docs/reliability.md
    #[arg(long)]
    write: bool,
}

/// The test programs' tests that can be made longer.
const LONG: [&str; 2] = [
    "many_lives_of_containers_leave_nothing_behind",
    "power_cut_in_the_middle_of_create_update_and_destroy",
];
const BEGIN: &str = "<!-- what `cargo xtask soak --write` wrote -->";
const END: &str = "<!-- the end of what it wrote -->";

impl Soak {
    pub(crate) fn run(self) -> Result<ExitCode> {
        setup::prepare(false)?;
        Image::prepare()?;
        let programs = Programs::build_released().context("the test host's programs can't be laid out")?;
        let folder = tempfile::tempdir().context("can't make a temporary folder")?;
        let report = folder.path().join("report");
        let test = || {
            let mut command = cargo();
            command.args(["test", "-p", "xtask", "--test", "host"]);
            command
        };
        run(test().arg("--no-run"))?;
        // Both at the same time: each has a machine, which takes a processor.
        let mut running = Vec::new();
        for name in LONG {
            let mut command = test();
            command
                .args(["--", "--exact", name])
                .env(host::READY_VARIABLE, "1")
                .env(host::PROGRAMS_VARIABLE, programs.tree())
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
        let table = self.table(&std::fs::read_to_string(&report).unwrap_or_default())?;
        println!("{table}");
        ensure!(worked, "not all of it worked");
        if self.write {
            write(&table)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Returns the figures as a table, with what made it.
    fn table(&self, report: &str) -> Result<String> {
        let mut table = "| what | times | took | found |\n|---|---:|---:|---|\n".to_owned();
        for line in report.lines() {
            let figures: Value = serde_json::from_str(line).context("a test's report is not JSON")?;
            let text = |key: &str| figures[key].as_str().unwrap_or_default().to_owned();
            let seconds = figures["seconds"].as_f64().unwrap_or_default();
            table.push_str(&format!(
                "| {} | {} | {:.1} min | {} |\n",
                text("what"),
                figures["times"],
                seconds / 60.0,
                text("found")
            ));
        }
        let date = output(std::process::Command::new("date").args(["--utc", "+%F"]))?;
        let revision = output(std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]))?;
        let (date, revision) = (date.trim(), revision.trim());
        let Self { cycles, cuts, .. } = self;
        table.push_str(&format!(
            "\n{date}, at {revision}, by `cargo xtask soak --cycles {cycles} --cuts {cuts}`.\n"
        ));
        Ok(table)
    }
}

fn write(table: &str) -> Result<()> {
    let path: PathBuf = workspace().join("docs/reliability.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
    let (Some(begin), Some(end)) = (text.find(BEGIN), text.find(END)) else {
        bail!(
            "{} has lost the marks between which the figures go",
            path.display()
        );
    };
    let text = format!("{}{BEGIN}\n\n{table}\n{}", &text[..begin], &text[end..]);
    std::fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
}
