//! How long accepted commands are remembered, also by a clock that is set. Pure.
//!
//! A record of a command has the time of the wall clock. A clock that is set ahead (by NTP, weeks after a start without a
//! battery) would make each command seem old at once, and one that is repeated a minute later would be carried out twice.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::moment::Moment;

/// How much further than the monotonic clock the wall clock may run between two looks without having been set ahead.
const TOLERANCE: Duration = Duration::from_millis(100);

/// The time in which a repeated command is recognised.
#[derive(Debug, Clone)]
pub struct Repeats {
    kept: Duration,
    last: Option<(Timestamp, Moment)>,
    /// By how much the wall clock was set ahead, and when.
    ahead: VecDeque<(Moment, Duration)>,
}

impl Repeats {
    /// Returns the window of this length.
    #[must_use]
    pub const fn within(kept: Duration) -> Self {
        Self {
            kept,
            last: None,
            ahead: VecDeque::new(),
        }
    }

    /// Returns the time of the wall clock before which commands may be forgotten. It is to be asked for regularly: a step
    /// of the wall clock is seen by comparing two looks. A clock that is set back makes commands be remembered longer, and so
    /// does one that is set ahead, for as long as the window is.
    pub fn begin(&mut self, now: Timestamp, moment: Moment) -> Timestamp {
        if let Some((time, earlier)) = self.last.replace((now, moment)) {
            let passed = Duration::try_from(now.duration_since(time)).unwrap_or_default();
            let step = passed.saturating_sub(moment.since(earlier));
            if step > TOLERANCE {
                self.ahead.push_back((moment, step));
            }
        }
        while self
            .ahead
            .front()
            .is_some_and(|(at, _)| moment.since(*at) > self.kept)
        {
            self.ahead.pop_front();
        }
        let steps = self.ahead.iter().map(|(_, step)| *step);
        let back = steps.fold(self.kept, Duration::saturating_add);
        let back = SignedDuration::try_from(back).unwrap_or(SignedDuration::MAX);
        now.checked_sub(back).unwrap_or(Timestamp::MIN)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const WEEKS: i64 = 4 * 7 * 24 * 3600;

    fn wall(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
    }

    fn even(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn by_an_even_clock_commands_are_kept_for_the_window() {
        let mut repeats = Repeats::within(DAY);
        for hour in 0..100_i64 {
            let (now, moment) = (wall(hour * 3600), even(hour.unsigned_abs() * 3600));
            assert_eq!(repeats.begin(now, moment), wall(hour * 3600 - 24 * 3600));
        }
    }

    #[test]
    fn a_clock_that_is_set_weeks_ahead_forgets_nothing_of_the_last_day() {
        let mut repeats = Repeats::within(DAY);
        repeats.begin(wall(0), even(0));
        assert_eq!(repeats.begin(wall(WEEKS + 10), even(10)), wall(10 - 24 * 3600));
        // A day after that, what came before is forgotten.
        let later = 24 * 3600 + 20;
        let begin = repeats.begin(wall(WEEKS + later), even(later.unsigned_abs()));
        assert_eq!(begin, wall(WEEKS + later - 24 * 3600));
    }

    #[test]
    fn the_ends_of_time_are_no_overflow() {
        let mut repeats = Repeats::within(Duration::MAX);
        assert_eq!(repeats.begin(Timestamp::MIN, even(0)), Timestamp::MIN);
        assert_eq!(repeats.begin(Timestamp::MAX, even(1)), Timestamp::MIN);
    }

    proptest! {
        /// Each look is some seconds after the one before, and the clock is set back or ahead in between. One command is
        /// accepted at each look.
        #[test]
        fn no_command_of_the_last_day_is_forgotten_however_the_clock_is_set(
            steps in prop::collection::vec((1..7200_u64, prop_oneof![4 => Just(0), 1 => -WEEKS..WEEKS]), 1..100)
        ) {
            let mut repeats = Repeats::within(DAY);
            let (mut passed, mut set) = (0_u64, 0_i64);
            let mut accepted: Vec<(u64, Timestamp)> = Vec::new();
            for (seconds, jump) in steps {
                passed += seconds;
                set += jump;
                let now = wall(passed.cast_signed() + set);
                let begin = repeats.begin(now, even(passed));
                accepted.push((passed, now));
                for (at, time) in &accepted {
                    if passed - at <= DAY.as_secs() {
                        prop_assert!(*time >= begin, "{time} is before {begin}");
                    }
                }
            }
        }
    }
}
