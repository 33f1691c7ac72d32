//! Records where the time of a test run goes.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// The kernel's unit of CPU time: `USER_HZ` is 100 on every architecture of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// A tenth of a minute; shorter parts are summed up.
const SHORT: Duration = Duration::from_secs(6);

/// The times of a run's parts, in the order of their ends.
#[derive(Debug, Default)]
pub(super) struct Times {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    took: Duration,
    processor: Option<Duration>,
}

impl Times {
    /// Adds a part.
    pub(super) fn add(&mut self, what: impl Into<String>, took: Duration, processor: Option<Duration>) {
        let what = what.into();
        self.rows.push(Row {
            what,
            took,
            processor,
        });
    }

    /// Runs `work`, and adds it with the CPU time of the processes that it started.
    pub(super) fn phase<T>(&mut self, what: &str, work: impl FnOnce() -> T) -> T {
        let (began, before) = (Instant::now(), used_by_children());
        let done = work();
        let processor = used_by_children()
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before));
        self.add(what, began.elapsed(), processor);
        done
    }

    /// Returns the parts as a table in Markdown, with one line for all that were [`SHORT`].
    pub(super) fn table(&self) -> String {
        let mut text = "| part | minutes | CPU minutes |\n|---|---:|---:|\n".to_owned();
        let minutes = |time: Duration| format!("{:.1}", time.as_secs_f64() / 60.0);
        let mut short = Duration::ZERO;
        for row in &self.rows {
            if row.took < SHORT {
                short += row.took;
                continue;
            }
            let processor = row.processor.map(minutes).unwrap_or_default();
            let _ = writeln!(text, "| {} | {} | {processor} |", row.what, minutes(row.took));
        }
        if short > Duration::ZERO {
            let _ = writeln!(text, "| parts of less than 6 seconds | {} | |", minutes(short));
        }
        text
    }
}

/// Returns the CPU time of a process and its reaped children (proc_pid_stat(5)). A process that has ended has it until
/// it is reaped.
pub(super) fn used_by(pid: u32) -> Option<Duration> {
    let [user, system, of_children, of_children_in_kernel] = processor_ticks(&format!("/proc/{pid}/stat"))?;
    Some(seconds(user + system + of_children + of_children_in_kernel))
}

/// Returns the CPU time of this process's reaped children.
fn used_by_children() -> Option<Duration> {
    let [_, _, user, system] = processor_ticks("/proc/self/stat")?;
    Some(seconds(user + system))
}

fn seconds(ticks: f64) -> Duration {
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

/// Returns utime, stime, cutime and cstime: fields 14 to 17.
fn processor_ticks(file: &str) -> Option<[f64; 4]> {
    let text = std::fs::read_to_string(file).ok()?;
    // The program's name may contain blanks and parentheses.
    let (_, fields) = text.rsplit_once(") ")?;
    let ticks: Vec<f64> = fields
        .split(' ')
        .skip(11)
        .take(4)
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    ticks.try_into().ok()
}

/// The document with the tables.
const DOCUMENT: &str = "docs/development.md";

/// Writes a table into the document, between the marks of its name.
pub(super) fn write(name: &str, table: &str) -> Result<()> {
    let file = crate::command::workspace().join(DOCUMENT);
    let old = std::fs::read_to_string(&file).with_context(|| format!("can't read {DOCUMENT}"))?;
    let marks = [
        format!("<!-- begin: cargo xtask test --write-times {name} -->"),
        format!("<!-- end: cargo xtask test --write-times {name} -->"),
    ];
    let new = crate::bench::replaced(&old, [&marks[0], &marks[1]], table)
        .with_context(|| format!("{DOCUMENT} has no marks for {name}"))?;
    std::fs::write(&file, new).with_context(|| format!("can't write {DOCUMENT}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_has_ended_and_was_waited_for_is_counted() {
        let mut times = Times::default();
        times.phase("shell", || {
            std::process::Command::new("sh")
                .args(["-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"])
                .status()
                .expect("sh runs")
        });
        let used = times.rows[0].processor.expect("Linux records it");
        assert!(
            used > Duration::ZERO && used < Duration::from_secs(60),
            "{used:?}"
        );
    }

    #[test]
    fn parts_that_took_no_time_are_one_line() {
        let mut times = Times::default();
        times.add("compile", Duration::from_secs(90), Some(Duration::from_secs(150)));
        times.add("a", Duration::from_millis(300), None);
        times.add("b", Duration::from_millis(300), None);
        let table = times.table();
        assert!(table.contains("| compile | 1.5 | 2.5 |\n"), "{table}");
        assert!(!table.contains("| a |"), "{table}");
        assert!(
            table.contains("| parts of less than 6 seconds | 0.0 | |\n"),
            "{table}"
        );
    }
}
