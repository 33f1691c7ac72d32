//! The panics of a leaf's task: when to start it again, and what to say about it.

use std::any::Any;
use std::time::Duration;

/// The pauses before another start, which double. The first one is at once.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A task that ran for this long begins again with the shortest pause.
const GOOD_RUN: Duration = Duration::from_secs(120);

/// The panics of one leaf's task.
#[derive(Debug, Default)]
pub(crate) struct Panics {
    /// When it was started again last, by the agent's own time, and the pause before that.
    last: Option<(Duration, Duration)>,
}

impl Panics {
    /// Returns how long to wait before the task that has panicked now is started again.
    pub(crate) fn pause(&mut self, now: Duration) -> Duration {
        let pause = match self.last {
            Some((started, pause)) if now < started + GOOD_RUN => {
                (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
            }
            _ => Duration::ZERO,
        };
        self.last = Some((now + pause, pause));
        pause
    }
}

/// Returns the text of a panic.
pub(crate) fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "it has no text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_panics_again_and_again_is_started_ever_more_seldom() {
        let mut panics = Panics::default();
        let mut now = Duration::from_secs(5);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let pause = panics.pause(now);
            pauses.push(pause.as_secs());
            now += pause;
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(panics.pause(now + GOOD_RUN), Duration::ZERO);
    }
}
