//! How often refused signatures are recorded: a flood of them must not fill the disk. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::Caller;
use crate::moment::Moment;

/// The time in which a caller's refused signatures are recorded once.
const EVERY: Duration = Duration::from_secs(10);
/// The most events in that time, of all callers.
const OF_ALL: usize = 16;

/// What an event about a refused signature counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// The refused signatures of this caller since the last event about one, with this one.
    pub refused: u64,
    /// Those of other callers that no event counts.
    pub others: u64,
}

/// The refused signatures of the last seconds.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    callers: BTreeMap<Caller, Recent>,
    /// When one of a caller that the leaf does not know was recorded last.
    unknown_at: Option<Moment>,
    /// Those that no event counts.
    others: u64,
}

#[derive(Debug, Clone, Copy)]
struct Recent {
    recorded_at: Moment,
    /// Those since then.
    more: u64,
}

impl Refusals {
    /// Counts a refused signature, and returns what its event says; `None` if it is not recorded now. Callers that the leaf's files
    /// do not name share one event: whoever sends commands through a hub can make such names up.
    pub fn count(&mut self, caller: &Caller, is_named: bool, now: Moment) -> Option<Counted> {
        if !is_named {
            if self.unknown_at.is_some_and(|at| now.since(at) < EVERY) {
                self.others += 1;
                return None;
            }
            self.unknown_at = Some(now);
            return Some(self.with_others(1));
        }
        if let Some(recent) = self.callers.get_mut(caller) {
            recent.more += 1;
            if now.since(recent.recorded_at) < EVERY {
                return None;
            }
            recent.recorded_at = now;
            let refused = std::mem::take(&mut recent.more);
            return Some(self.with_others(refused));
        }
        if self.callers.len() >= OF_ALL {
            let others = &mut self.others;
            self.callers.retain(|_, recent| {
                let is_kept = now.since(recent.recorded_at) < EVERY;
                if !is_kept {
                    *others += recent.more;
                }
                is_kept
            });
            if self.callers.len() >= OF_ALL {
                self.others += 1;
                return None;
            }
        }
        let recent = Recent {
            recorded_at: now,
            more: 0,
        };
        self.callers.insert(caller.clone(), recent);
        Some(self.with_others(1))
    }

    /// Counts those of an event again that could not be recorded.
    pub fn not_recorded(&mut self, counted: Counted) {
        self.others += counted.refused + counted.others;
    }

    fn with_others(&mut self, refused: u64) -> Counted {
        Counted {
            refused,
            others: std::mem::take(&mut self.others),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(number: usize) -> Caller {
        Caller::new(format!("c{number}")).expect("a caller")
    }

    fn at(seconds: u64) -> Moment {
        Moment::after_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn a_caller_is_recorded_once_in_ten_seconds_with_the_number_since() {
        let mut refusals = Refusals::default();
        let counted = |refused| Some(Counted { refused, others: 0 });
        assert_eq!(refusals.count(&caller(1), true, at(0)), counted(1));
        for _ in 0..100 {
            assert_eq!(refusals.count(&caller(1), true, at(9)), None);
        }
        assert_eq!(refusals.count(&caller(2), true, at(9)), counted(1));
        assert_eq!(refusals.count(&caller(1), true, at(10)), counted(101));
        assert_eq!(refusals.count(&caller(1), true, at(11)), None);
    }

    #[test]
    fn callers_that_are_made_up_do_not_make_more_events() {
        let mut refusals = Refusals::default();
        let events =
            (0..1000).filter_map(|number| refusals.count(&caller(number), true, at(number as u64 / 200)));
        assert_eq!(events.count(), OF_ALL);
        let counted = Counted {
            refused: 1,
            others: 984,
        };
        assert_eq!(refusals.count(&caller(2000), true, at(20)), Some(counted));
    }

    #[test]
    fn callers_that_the_leaf_does_not_know_share_an_event() {
        let mut refusals = Refusals::default();
        let counted = |others| Some(Counted { refused: 1, others });
        assert_eq!(refusals.count(&caller(0), false, at(0)), counted(0));
        for number in 1..500 {
            assert_eq!(refusals.count(&caller(number), false, at(5)), None);
        }
        assert_eq!(refusals.count(&caller(1), true, at(5)), counted(499));
        assert_eq!(refusals.count(&caller(500), false, at(10)), counted(0));
    }
}
