//! Progress on the terminal: a spinner for what takes longer than a second, a bar for a job.

use std::future::Future;
use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use leaf_core::job::Progress;

use crate::output::tell;

/// Waits for something; after a second a spinner says what for. Only on a terminal.
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

/// How far a job is, on standard error: a bar on a terminal, and a line at each change elsewhere.
pub(crate) struct JobBar {
    bar: ProgressBar,
    plain: bool,
    last: String,
}

impl JobBar {
    /// Returns the bar; one that is not wanted shows nothing.
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

    /// Shows how far it is.
    pub(crate) fn progress(&mut self, progress: &Progress) {
        self.bar.set_length(progress.expected.max(progress.done));
        self.bar.set_position(progress.done);
        let activity = progress.activity.clone().unwrap_or_default();
        self.bar.set_message(activity.clone());
        let line = format!("[{}/{}] {activity}", progress.done, progress.expected);
        if self.plain && line != self.last {
            tell(&line);
            self.last = line;
        }
    }

    /// Shows what it prints, above the bar.
    pub(crate) fn log(&self, text: &str) {
        // Asked before: within `suspend` the bar is locked.
        if self.plain || !self.bar.is_hidden() {
            self.bar.suspend(|| tell(text.strip_suffix('\n').unwrap_or(text)));
        }
    }

    /// Takes the bar away.
    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}
