//! The monotonic clock of a run, as the engine sees it.

use leaf_core::moment::Moment;
use tokio::time::Instant;

/// The monotonic clock of a run. Copies share their origin.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// Returns a clock whose origin is now.
    #[must_use]
    pub fn start() -> Self {
        Self {
            origin: Instant::now(),
        }
    }

    /// Returns the current moment.
    #[must_use]
    pub fn now(self) -> Moment {
        Moment::after_origin(self.origin.elapsed())
    }
}
