use std::time::Duration;

use clap::Args;
use leaf_core::command::ReadContainerStats;
use leaf_core::container::ContainerStats;
use leaf_core::id::ContainerName;

use crate::error::Error;
use crate::output::{Output, size};
use crate::session::Session;
use crate::text::{Fields, fields};

/// Show a container's resource usage: CPU, memory, tasks, I/O, pressure, network.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// The container's name.
    name: ContainerName,
    /// Keep printing, one line per interval.
    #[arg(long, short)]
    follow: bool,
    /// The time between two lines.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    interval: Duration,
}

impl Stats {
    pub(crate) async fn run(self, session: &Session, output: Output) -> Result<(), Error> {
        let request = ReadContainerStats { name: self.name };
        if !self.follow {
            return session.show(&request, output, text).await;
        }
        let leaf = session.leaf().await?;
        let mut before = leaf.call(&request).await?;
        if !output.is_json() {
            output.line(format!(
                "{:>7} {:>11} {:>6} {:>12} {:>12} {:>12} {:>12}",
                "CPU", "MEMORY", "TASKS", "READ/S", "WRITTEN/S", "RECEIVED/S", "SENT/S"
            ))?;
        }
        loop {
            tokio::time::sleep(self.interval.max(Duration::from_millis(100))).await;
            let now = leaf.call(&request).await?;
            output.item(&now, |now| line(&before, now))?;
            before = now;
        }
    }
}

/// Returns a container's resource usage, one figure per line.
fn text(stats: &ContainerStats) -> Fields {
    let bytes = |bytes: Option<u64>| bytes.map(size);
    let seconds = |microseconds: Option<u64>| {
        microseconds.map(|us| format!("{:.3} s", Duration::from_micros(us).as_secs_f64()))
    };
    let percent = |points: Option<u32>| points.map(|points| format!("{:.2} %", f64::from(points) / 100.0));
    let figures = [
        ("paused", stats.paused.then(|| "yes".to_owned())),
        ("CPU time", seconds(stats.cpu_microseconds)),
        ("CPU throttled", seconds(stats.cpu_throttled_microseconds)),
        ("memory", bytes(stats.memory_bytes)),
        ("memory peak", bytes(stats.memory_peak_bytes)),
        ("memory limit", bytes(stats.memory_limit_bytes)),
        ("OOM kills", stats.oom_kills.map(|kills| kills.to_string())),
        ("tasks", stats.tasks.map(|tasks| tasks.to_string())),
        ("read", bytes(stats.io_read_bytes)),
        ("written", bytes(stats.io_written_bytes)),
        ("received", bytes(stats.network_received_bytes)),
        ("sent", bytes(stats.network_sent_bytes)),
        ("CPU pressure", percent(stats.cpu_pressure_basis_points)),
        ("memory pressure", percent(stats.memory_pressure_basis_points)),
        ("I/O pressure", percent(stats.io_pressure_basis_points)),
    ];
    let known: Vec<(&str, String)> = figures
        .into_iter()
        .filter_map(|(name, figure)| Some((name, figure?)))
        .collect();
    fields(&known)
}

/// Returns one line: current usage, and rates since the previous line.
fn line(before: &ContainerStats, now: &ContainerStats) -> String {
    let seconds = now.at.duration_since(before.at).as_secs_f64().max(0.001);
    // After a restart of the container the counters begin at zero.
    let rate = |before: Option<u64>, now: Option<u64>| {
        let (before, now) = (before?, now?);
        Some(now.saturating_sub(before) as f64 / seconds)
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people"
    )]
    let bytes = |before, now| or_dash(rate(before, now).map(|rate| size(rate as u64)));
    let cpu = rate(before.cpu_microseconds, now.cpu_microseconds).map(|us| format!("{:.1} %", us / 1e4));
    format!(
        "{:>7} {:>11} {:>6} {:>12} {:>12} {:>12} {:>12}",
        or_dash(cpu),
        or_dash(now.memory_bytes.map(size)),
        or_dash(now.tasks.map(|tasks| tasks.to_string())),
        bytes(before.io_read_bytes, now.io_read_bytes),
        bytes(before.io_written_bytes, now.io_written_bytes),
        bytes(before.network_received_bytes, now.network_received_bytes),
        bytes(before.network_sent_bytes, now.network_sent_bytes),
    )
}
