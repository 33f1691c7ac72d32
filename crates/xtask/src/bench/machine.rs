//! Describes the machine of a measurement, without identifying it.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::programs::Programs;
use crate::command::{output, workspace};

/// Returns the load average over a minute.
pub(super) fn load() -> Result<String> {
    let text = read("/proc/loadavg")?;
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// Returns a description of the machine, the programs and the day.
pub(super) fn about(programs: &Programs, load_before: &str) -> Result<String> {
    let cpus = read("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("an unknown CPU", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().context("can't count the cores")?;
    let memory = read("/proc/meminfo")?;
    let kib: u64 = memory
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .context("/proc/meminfo has no MemTotal")?;
    let directory = std::env::temp_dir();
    let disk = said(
        Command::new("stat")
            .args(["--file-system", "--format", "%T"])
            .arg(directory),
    )?;
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let kernel = kernel.trim().split(['-', '+']).next().unwrap_or_default();
    let day = said(Command::new("date").args(["--utc", "+%Y-%m-%d"]))?;
    let revision = said(
        Command::new("git")
            .args(["rev-parse", "--short", "HEAD"])
            .current_dir(workspace()),
    );
    let revision = revision.map_or_else(|_| String::new(), |revision| format!(" at {revision}"));
    let leafd = said(Command::new(&programs.leafd).arg("--version"))?;
    let nats = said(Command::new(&programs.nats_server).arg("--version"))?;
    let nix = said(Command::new(&programs.nix).arg("--version"))?;
    Ok(format!(
        "{day}, {cores} cores of {model}, {gib} GiB of memory, {disk}, Linux {kernel}; {leafd}{revision}, {nats}, {nix}; \
         load before and after: {load_before} and {after}.",
        gib = (kib + (1 << 19)) >> 20,
        after = load()?,
    ))
}

fn read(file: &str) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("can't read {file}"))
}

fn said(command: &mut Command) -> Result<String> {
    Ok(output(command)?.trim().to_owned())
}
