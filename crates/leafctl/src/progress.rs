//! Progress on the terminal: a spinner for work that takes longer than a second, a bar for a job.

use std::future::Future;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use leaf_core::job::Progress;

use crate::output::tell;
use crate::text::Text;

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

/// A job's progress on standard error: a bar on a terminal, a line per change elsewhere.
pub(crate) struct JobBar {
    bar: ProgressBar,
    plain: bool,
    last: String,
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

    /// Prints lines of the job's log above the bar.
    pub(crate) fn log(&self, text: &str) {
        // Queried before `suspend`, which locks the bar.
        if self.shows_log() {
            self.bar.suspend(|| tell(text.strip_suffix('\n').unwrap_or(text)));
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}
