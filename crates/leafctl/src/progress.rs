//! Progress on the terminal: a spinner for work that takes longer than a second, a bar for a job.

use std::future::Future;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use leaf_core::job::Progress;

use crate::output::tell;
use crate::text::Text;

/// The length from which a line of a log is printed without its end, in bytes.
const LONGEST_LINE: usize = 64 << 10;

/// Waits for `work`; after a second, a spinner shows `what`. Only on a terminal.
pub(crate) async fn waiting<T>(what: &'static str, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    if let Ok(done) = tokio::time::timeout(Duration::from_secs(1), &mut work).await {
        return done;
    }
    let spinner = ProgressBar::new_spinner().with_message(what);
    spinner.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    spinner.finish_and_clear();
    done
}

/// The progress of an upload or a download on standard error: a bar on a terminal, a line at the beginning elsewhere.
pub(crate) struct TransferBar(ProgressBar);

impl TransferBar {
    /// Returns the bar of an upload of so many bytes; it shows nothing if not `wanted`.
    pub(crate) fn of_upload(wanted: bool, bytes: u64) -> Self {
        Self::new(wanted, "sending", " of sources", bytes)
    }

    /// Returns the bar of a download of so many bytes; it shows nothing if not `wanted`.
    pub(crate) fn of_download(wanted: bool, bytes: u64) -> Self {
        Self::new(wanted, "getting", "", bytes)
    }

    fn new(wanted: bool, verb: &str, what: &str, bytes: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        if wanted && !terminal {
            tell(format!("{verb} {}{what}", crate::output::size(bytes)).as_str());
        }
        let target = if wanted && terminal {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let template = format!("{verb} {{bar:30.green}} {{bytes}}/{{total_bytes}} {{bytes_per_sec}} {{eta}}");
        let style = ProgressStyle::with_template(&template)
            .expect("the template is of the form that indicatif reads");
        Self(ProgressBar::with_draw_target(Some(bytes), target).with_style(style))
    }

    /// Shows how many bytes have arrived.
    pub(crate) fn at(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// A job's progress on standard error: a bar on a terminal, a line per change elsewhere.
pub(crate) struct JobBar {
    bar: ProgressBar,
    plain: bool,
    last: String,
    lines: Lines,
}

impl JobBar {
    /// Returns the bar; it shows nothing if not `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = ProgressBar::with_draw_target(
            Some(0),
            if wanted && terminal {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::hidden()
            },
        );
        let style = ProgressStyle::with_template("{bar:30.green} {pos}/{len} {elapsed} {wide_msg}")
            .expect("the template is of the form that indicatif reads");
        bar.set_style(style);
        Self {
            bar,
            plain: wanted && !terminal,
            last: String::new(),
            lines: Lines::default(),
        }
    }

    /// Shows the progress.
    pub(crate) fn progress(&mut self, progress: &Progress) {
        self.bar.set_length(progress.expected.max(progress.done));
        self.bar.set_position(progress.done);
        let activity = Text::line(progress.activity.as_deref().unwrap_or_default());
        self.bar.set_message(activity.as_str().to_owned());
        let line = format!("[{}/{}] {}", progress.done, progress.expected, activity.as_str());
        if self.plain && line != self.last {
            tell(line.as_str());
            self.last = line;
        }
    }

    /// Returns whether it prints lines of the job's log.
    pub(crate) fn shows_log(&self) -> bool {
        self.plain || !self.bar.is_hidden()
    }

    /// Prints the whole lines of a page of the job's log above the bar.
    pub(crate) fn log(&mut self, text: &str) {
        // Queried before `suspend`, which locks the bar.
        if !self.shows_log() {
            return;
        }
        if let Some(lines) = self.lines.add(text) {
            self.bar.suspend(|| tell(lines));
        }
    }

    /// Prints what is left of the log, and removes the bar.
    pub(crate) fn finish(mut self) {
        if let Some(line) = self.lines.rest() {
            self.bar.suspend(|| tell(line));
        }
        self.bar.finish_and_clear();
    }
}

/// Lines on standard error that are drawn again in place; nothing without a terminal.
pub(crate) struct Picture {
    bar: ProgressBar,
}

impl Picture {
    /// Returns a picture; it shows nothing if not `wanted`.
    pub(crate) fn new(wanted: bool) -> Self {
        let is_shown = wanted && std::io::stderr().is_terminal();
        let target = if is_shown {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let style =
            ProgressStyle::with_template("{msg}").expect("the template is of the form that indicatif reads");
        bar.set_style(style);
        Self { bar }
    }

    /// Returns whether it shows something.
    pub(crate) fn is_shown(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Returns the columns and rows that it may have.
    pub(crate) fn size() -> (usize, usize) {
        let size = rustix::termios::tcgetwinsize(std::io::stderr());
        match size {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => (80, 24),
        }
    }

    /// Shows these lines in the place of those before. Nothing in them commands the terminal, or is wider than it.
    pub(crate) fn show(&self, lines: &[String]) {
        let lines: Vec<String> = lines
            .iter()
            .map(|line| Text::line(line).as_str().to_owned())
            .collect();
        self.bar.set_message(lines.join("\n"));
        self.bar.tick();
    }

    /// Removes it.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// The lines of a log whose pages may end within a line.
#[derive(Default)]
struct Lines {
    unfinished: String,
}

impl Lines {
    /// Adds a page, and returns the lines that are whole by now, without the end of the last one.
    fn add(&mut self, page: &str) -> Option<String> {
        self.unfinished.push_str(page);
        match self.unfinished.rfind('\n') {
            Some(end) => {
                let rest = self.unfinished.split_off(end + 1);
                let mut lines = std::mem::replace(&mut self.unfinished, rest);
                lines.truncate(end);
                Some(lines)
            }
            None if self.unfinished.len() > LONGEST_LINE => self.rest(),
            None => None,
        }
    }

    /// Returns the line that has no end yet.
    fn rest(&mut self) -> Option<String> {
        Some(std::mem::take(&mut self.unfinished)).filter(|line| !line.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_wherever_the_pages_end() {
        let log = "first\n\nthe second\nlast";
        for first in 0..log.len() {
            for second in first..log.len() {
                let mut lines = Lines::default();
                let mut printed = Vec::new();
                for page in [&log[..first], &log[first..second], &log[second..]] {
                    printed.extend(lines.add(page));
                }
                printed.extend(lines.rest());
                assert_eq!(printed.join("\n"), log, "{first}, {second}");
                assert_eq!(lines.rest(), None);
            }
        }
    }

    #[test]
    fn a_line_without_an_end_is_printed_in_parts() {
        let mut lines = Lines::default();
        let page = "x".repeat(LONGEST_LINE);
        assert_eq!(lines.add(&page), None);
        let long = lines.add(&page).expect("it is too long to be kept");
        assert_eq!(long.len(), 2 * LONGEST_LINE);
    }
}
