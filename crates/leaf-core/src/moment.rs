//! Points in time on the monotonic clock, as values: the shell reads the clock.

use std::time::Duration;

/// A point on the monotonic clock of this instance: the time since an origin chosen by the shell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Returns the moment at this time after the origin.
    #[must_use]
    pub const fn after_origin(since: Duration) -> Self {
        Self(since)
    }

    /// Returns the time from an earlier moment to this one; zero if that was later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the moment at this time after this one.
    #[must_use]
    pub const fn after(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }
}
