//! Keeps a reason that stays the same from being logged at each attempt.

use std::time::{Duration, Instant};

/// After this time, a reason that stays the same is logged again.
const AGAIN: Duration = Duration::from_secs(600);

/// The last logged reason of something that is tried again and again.
#[derive(Debug, Default)]
pub(crate) struct Complaints(Option<(String, Instant)>);

impl Complaints {
    /// Returns whether to log this reason: it is another than the last one, or that was logged ten minutes ago.
    pub(crate) fn is_new(&mut self, text: &str) -> bool {
        let is_old = |(last, at): &(String, Instant)| last == text && at.elapsed() < AGAIN;
        if self.0.as_ref().is_some_and(is_old) {
            return false;
        }
        self.0 = Some((text.to_owned(), Instant::now()));
        true
    }
}
