//! Where the time of a run of the tests goes.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// What the kernel counts processor time in: `USER_HZ` is 100 on every architecture of Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What is no tenth of a minute.
const SHORT: Duration = Duration::from_secs(6);

/// How long each part of a run took, in the order of their ends.
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

    /// Does something, and adds it with the processor time of the processes that were started for it.
    pub(super) fn phase<T>(&mut self, what: &str, work: impl FnOnce() -> T) -> T {
        let (began, before) = (Instant::now(), used_by_children());
        let done = work();
        let processor = used_by_children()
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before));
        self.add(what, began.elapsed(), processor);
        done
    }

    /// The parts as a table in Markdown, with a line for all that were [`SHORT`].
    pub(super) fn table(&self) -> String {
        let mut text = "| part | minutes | processor minutes |\n|---|---:|---:|\n".to_owned();
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
            let _ = writeln!(text, "| what took less than 6 seconds | {} | |", minutes(short));
        }
        text
    }
}

/// The processor time that a process and the children that it waited for used, as proc_pid_stat(5) says it. A process that
/// has ended has it until somebody waits for it.
pub(super) fn used_by(pid: u32) -> Option<Duration> {
    let [user, system, of_children, of_children_in_kernel] = processor_ticks(&format!("/proc/{pid}/stat"))?;
    Some(seconds(user + system + of_children + of_children_in_kernel))
}

/// The processor time of the children of this process that have ended.
fn used_by_children() -> Option<Duration> {
    let [_, _, user, system] = processor_ticks("/proc/self/stat")?;
    Some(seconds(user + system))
}

fn seconds(ticks: f64) -> Duration {
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

/// utime, stime, cutime and cstime: fields 14 to 17.
fn processor_ticks(file: &str) -> Option<[f64; 4]> {
    let text = std::fs::read_to_string(file).ok()?;
    // The name of the program may have blanks and parentheses in it.
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

/// The document that the tables stand in.
const DOCUMENT: &str = "docs/development.md";

/// Puts a table into the document, between the marks of its name.
pub(super) fn write(name: &str, table: &str) -> Result<()> {
    let file = crate::command::workspace().join(DOCUMENT);
    let old = std::fs::read_to_string(&file).with_context(|| format!("can't read {DOCUMENT}"))?;
    let marks = [
        format!("<!-- what `cargo xtask test --write-times {name}` wrote -->"),
        format!("<!-- the end of {name} -->"),
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
        let used = times.rows[0].processor.expect("Linux says it");
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
            table.contains("| what took less than 6 seconds | 0.0 | |\n"),
            "{table}"
        );
    }
}
