//! What a leaf does about the hub's copy of its events before it publishes. Pure.
//!
//! Histories of one leaf share a beginning and may then part: a disk that was restored from an older image goes on under
//! numbers that the copy has already. Two histories with the same event under one number are the same up to there, since
//! an event has its time in nanoseconds, and two that were recorded apart differ. So one comparison is enough, under the
//! last number that both have. `docs/decisions/0022-the-hub-gives-a-leaf-back-its-events.md` says why.

use std::ops::RangeInclusive;

use crate::fleet::CopyEnd;

/// The numbers of consecutive events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first number, or the next one if there are no events.
    pub first: u64,
    /// The last number; one less than the first if there are no events.
    pub last: u64,
}

impl Extent {
    /// Returns whether there is an event with this number.
    #[must_use]
    pub fn has(self, sequence: u64) -> bool {
        (self.first..=self.last).contains(&sequence)
    }

    fn is_empty(self) -> bool {
        self.last < self.first
    }
}

/// What a leaf itself has of its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// The events of its journal.
    pub journal: Extent,
    /// The events of its stream.
    pub stream: Extent,
}

impl Own {
    /// Returns whether there is an event with this number.
    #[must_use]
    pub fn has(self, sequence: u64) -> bool {
        self.journal.has(sequence) || self.stream.has(sequence)
    }

    /// Returns whether there is no event at all.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.journal.is_empty() && self.stream.is_empty()
    }

    /// Returns the number of the last event; `None` if there is none.
    #[must_use]
    pub fn last(self) -> Option<u64> {
        [self.journal, self.stream]
            .into_iter()
            .filter(|extent| !extent.is_empty())
            .map(|extent| extent.last)
            .max()
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing: the leaf publishes what it has.
    GoOn,
    /// Compare the leaf's own event under this number with the copy's, and then call [`after_comparison`].
    CompareAt(u64),
    /// Append these events of the copy to the leaf's stream, which then holds all that the copy has. A stream that ends
    /// before the first of them less one is made anew, to begin there.
    Append(RangeInclusive<u64>),
    /// Leaf and copy have different events under this number: publish nothing.
    Differs {
        /// The number.
        sequence: u64,
    },
}

/// Returns what to do about the copy, of which the hub says where it begins and ends.
#[must_use]
pub fn next(copy: Option<&CopyEnd>, own: Own) -> Next {
    let Some(copy) = copy.filter(|copy| copy.first <= copy.last) else {
        return Next::GoOn;
    };
    let Some(last) = own.last() else {
        return append(copy, own);
    };
    let both = last.min(copy.last);
    if both < copy.first {
        // The copy has dropped what it had in common with the leaf.
        append(copy, own)
    } else if own.has(both) {
        Next::CompareAt(both)
    } else {
        // The leaf has dropped what it had in common with the copy.
        Next::GoOn
    }
}

/// Returns what to do after leaf and copy were compared under the number of [`Next::CompareAt`].
#[must_use]
pub fn after_comparison(copy: &CopyEnd, own: Own, sequence: u64, same: bool) -> Next {
    if !same {
        Next::Differs { sequence }
    } else if sequence < copy.last {
        append(copy, own)
    } else {
        Next::GoOn
    }
}

/// Appends the copy's events that the leaf's stream lacks at its end, if there are any.
fn append(copy: &CopyEnd, own: Own) -> Next {
    let missing = copy.first.max(own.stream.last + 1)..=copy.last;
    if missing.is_empty() {
        Next::GoOn
    } else {
        Next::Append(missing)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An event of the model: its number, and the branch of the history that it belongs to. 0 is the common beginning.
    type Event = (u64, u8);

    /// Histories that part after `common` events, and what leaf and hub still have of them.
    #[derive(Debug, Clone)]
    struct World {
        common: u64,
        own: Own,
        copy: Extent,
    }

    impl World {
        fn event(&self, branch: u8, sequence: u64) -> Event {
            (sequence, if sequence <= self.common { 0 } else { branch })
        }

        fn ours(&self, sequence: u64) -> Event {
            self.event(1, sequence)
        }

        fn theirs(&self, sequence: u64) -> Event {
            self.event(2, sequence)
        }

        fn end(&self) -> CopyEnd {
            CopyEnd {
                first: self.copy.first,
                last: self.copy.last,
                fingerprint: format!("{:?}", self.theirs(self.copy.last)),
            }
        }

        /// What leafd does, with the number of the comparison.
        fn decide(&self) -> (Next, Option<u64>) {
            let end = self.end();
            match next(Some(&end), self.own) {
                Next::CompareAt(sequence) => {
                    assert!(self.own.has(sequence) && self.copy.has(sequence), "{sequence}");
                    let same = self.ours(sequence) == self.theirs(sequence);
                    (after_comparison(&end, self.own, sequence, same), Some(sequence))
                }
                other => (other, None),
            }
        }
    }

    fn extent(most: u64) -> impl Strategy<Value = Extent> {
        (1..=most, 0..=most).prop_map(|(first, events)| Extent {
            first,
            last: first + events - 1,
        })
    }

    fn worlds() -> impl Strategy<Value = World> {
        (0u64..30, extent(20), extent(20), extent(20)).prop_map(|(common, journal, stream, copy)| World {
            common,
            own: Own { journal, stream },
            copy,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

        #[test]
        fn a_leaf_goes_on_only_with_a_history_that_the_copy_does_not_contradict(world in worlds()) {
            let (next, compared) = world.decide();
            let in_both = (1..60).filter(|n| world.own.has(*n) && world.copy.has(*n));
            let differing: Vec<u64> = in_both.filter(|n| world.ours(*n) != world.theirs(*n)).collect();
            match next {
                Next::Differs { sequence } => prop_assert!(differing.contains(&sequence)),
                Next::GoOn | Next::Append(_) => {
                    // The last common number of the two is compared; below it there may be numbers only where the
                    // leaf's own parts have a gap between them.
                    if let Some(sequence) = compared {
                        prop_assert!(differing.iter().all(|n| *n > sequence), "{differing:?}");
                    }
                }
                Next::CompareAt(_) => prop_assert!(false, "it was compared"),
            }
        }

        #[test]
        fn after_an_import_the_stream_holds_the_copys_events_and_no_number_is_missing(world in worlds()) {
            if let (Next::Append(numbers), compared) = world.decide() {
                prop_assert!(!numbers.is_empty() && numbers.clone().all(|n| world.copy.has(n)));
                prop_assert_eq!(*numbers.end(), world.copy.last);
                let follows = *numbers.start() == world.own.stream.last + 1;
                prop_assert!(follows || *numbers.start() == world.copy.first);
                // Nothing of the leaf's own is beyond the copy, and what it has is of the copy's history.
                prop_assert!(world.own.last().is_none_or(|last| last < world.copy.last));
                if let Some(sequence) = compared {
                    prop_assert_eq!(Some(sequence), world.own.last());
                }
            }
        }

        #[test]
        fn a_copy_that_is_behind_on_the_same_history_changes_nothing(common in 1u64..40, first in 1u64..40, last in 1u64..40) {
            let world = World {
                common: 100,
                own: Own { journal: Extent { first: 1, last: 40 }, stream: Extent { first: 1, last: common } },
                copy: Extent { first: first.min(last), last },
            };
            prop_assert_eq!(world.decide().0, Next::GoOn);
        }
    }

    fn own(journal: (u64, u64), stream: (u64, u64)) -> Own {
        let extent = |(first, last)| Extent { first, last };
        Own {
            journal: extent(journal),
            stream: extent(stream),
        }
    }

    fn copy(first: u64, last: u64) -> CopyEnd {
        CopyEnd {
            first,
            last,
            fingerprint: String::new(),
        }
    }

    #[test]
    fn a_lost_disk_gets_the_whole_copy() {
        assert_eq!(
            next(Some(&copy(1, 90)), own((1, 0), (1, 0))),
            Next::Append(1..=90)
        );
        assert_eq!(
            next(Some(&copy(50, 90)), own((1, 0), (1, 0))),
            Next::Append(50..=90)
        );
        assert_eq!(next(None, own((1, 0), (1, 0))), Next::GoOn);
    }

    #[test]
    fn an_older_image_is_compared_under_its_last_number_and_gets_the_rest() {
        let (copy, own) = (copy(1, 90), own((30, 40), (1, 40)));
        assert_eq!(next(Some(&copy), own), Next::CompareAt(40));
        assert_eq!(after_comparison(&copy, own, 40, true), Next::Append(41..=90));
        assert_eq!(
            after_comparison(&copy, own, 40, false),
            Next::Differs { sequence: 40 }
        );
    }

    #[test]
    fn an_image_older_than_what_the_copy_still_has_continues_where_the_copy_begins() {
        assert_eq!(
            next(Some(&copy(50, 90)), own((1, 10), (1, 10))),
            Next::Append(50..=90)
        );
    }

    #[test]
    fn a_stream_that_lost_its_end_is_filled_from_the_copy_up_to_where_the_copy_ends() {
        let (copy, own) = (copy(1, 60), own((1, 50), (1, 30)));
        assert_eq!(next(Some(&copy), own), Next::CompareAt(50));
        assert_eq!(after_comparison(&copy, own, 50, true), Next::Append(31..=60));
    }

    #[test]
    fn a_copy_that_ends_before_what_the_leaf_still_has_is_the_agents_matter() {
        assert_eq!(next(Some(&copy(1, 10)), own((30, 40), (20, 40))), Next::GoOn);
    }
}
