//! When containers' NATS credentials are renewed: which are due, how many at a time, and when a failed renewal is tried again.
//!
//! All are due when the leaf starts, since it does not know what containers have, and later when [two thirds](Life::is_due) of their
//! life are over. [`Renewals::look`] begins one at a time, [`PACE`] apart, so that 1,000 containers are no burst: neither of
//! renewals, nor of connections that end in one second.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::id::ContainerName;
use crate::moment::Moment;

/// How long containers' credentials are valid if nothing else is set.
pub const CONTAINER_VALID: Duration = Duration::from_secs(24 * 3600);
/// The pause between the beginnings of two renewals.
pub const PACE: Duration = Duration::from_millis(100);
/// The maximum number of renewals in flight.
const AT_ONCE: usize = 8;
/// The pause after a renewal that failed. Each later one is twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// The longest time between two looks at the clock, which may have been set.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// From when to when credentials are valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// When they were issued.
    pub issued_at: Timestamp,
    /// When they end.
    pub ends_at: Timestamp,
}

impl Life {
    /// Returns the life of credentials that were issued then and are valid for this time.
    #[must_use]
    pub fn from(issued_at: Timestamp, valid: Duration) -> Self {
        let valid = SignedDuration::try_from(valid).unwrap_or(SignedDuration::MAX);
        Self {
            issued_at,
            ends_at: issued_at.saturating_add(valid).unwrap_or(Timestamp::MAX),
        }
    }

    /// Returns whether the credentials have to be renewed: two thirds of their life are over, or the clock was set back.
    #[must_use]
    pub fn is_due(self, now: Timestamp) -> bool {
        let age = now.duration_since(self.issued_at);
        let whole = self.ends_at.duration_since(self.issued_at);
        age.is_negative() || age >= whole * 2 / 3
    }
}

/// Credentials that a container was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// Their life.
    pub life: Life,
    /// Whether the container has them at its next start only, because an earlier helper started it.
    pub at_next_start: bool,
}

/// What is known of the credentials of one container.
#[derive(Debug, Clone, Default)]
struct Known {
    given: Option<Given>,
    /// The number of failed renewals in a row, and when the next one may begin.
    failed: u32,
    not_before: Moment,
}

/// The renewals of one instance of the leaf.
#[derive(Debug, Clone)]
pub struct Renewals {
    valid: Duration,
    known: BTreeMap<ContainerName, Known>,
    in_flight: BTreeSet<ContainerName>,
    /// When the next renewal may begin.
    next_at: Moment,
}

/// The outcome of a look at the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The container whose credentials are renewed now.
    pub renew: Option<ContainerName>,
    /// The pause before the next look at the clock.
    pub again_after: Duration,
}

impl Renewals {
    /// Returns the renewals of credentials that are valid for this time.
    #[must_use]
    pub fn new(valid: Duration) -> Self {
        Self {
            valid,
            known: BTreeMap::new(),
            in_flight: BTreeSet::new(),
            next_at: Moment::default(),
        }
    }

    /// Chooses the container whose credentials are renewed next: of those that are due, the one whose credentials end first.
    pub fn look<'a>(
        &mut self,
        containers: impl Iterator<Item = &'a ContainerName>,
        now: Timestamp,
        moment: Moment,
    ) -> Look {
        let idle = LOOK_EVERY.min(self.valid / 10).max(PACE);
        let mut again_after = idle;
        let mut first: Option<(Option<Timestamp>, &ContainerName)> = None;
        let mut ready = 0;
        for name in containers {
            if self.in_flight.contains(name) || !self.is_due(name, now) {
                continue;
            }
            let known = self.known.get(name);
            let pause = known.map_or(Duration::ZERO, |known| known.not_before.since(moment));
            if !pause.is_zero() {
                again_after = again_after.min(pause);
                continue;
            }
            ready += 1;
            let ends_at = known.and_then(|known| Some(known.given?.life.ends_at));
            if first.is_none_or(|(earlier, _)| ends_at < earlier) {
                first = Some((ends_at, name));
            }
        }
        let Some((_, name)) = first else {
            return Look {
                renew: None,
                again_after,
            };
        };
        let pause = self.next_at.since(moment);
        if !pause.is_zero() || self.in_flight.len() >= AT_ONCE {
            return Look {
                renew: None,
                again_after: pause.max(PACE),
            };
        }
        self.next_at = moment.after(PACE);
        self.in_flight.insert(name.clone());
        Look {
            renew: Some(name.clone()),
            // It may fail.
            again_after: again_after.min(if ready > 1 { PACE } else { FIRST_PAUSE }),
        }
    }

    /// Returns whether the credentials of a container have to be renewed. Unknown ones have to.
    #[must_use]
    pub fn is_due(&self, name: &ContainerName, now: Timestamp) -> bool {
        let given = self.known.get(name).and_then(|known| known.given);
        given.is_none_or(|given| given.life.is_due(now))
    }

    /// Notes that a renewal has ended. Returns false if none was in flight for this container.
    pub fn ended(&mut self, name: &ContainerName) -> bool {
        self.in_flight.remove(name)
    }

    /// Notes that a container was given credentials.
    pub fn given(&mut self, name: &ContainerName, given: Given) {
        let known = Known {
            given: Some(given),
            ..Known::default()
        };
        self.known.insert(name.clone(), known);
    }

    /// Notes that a container could not be given credentials: that is tried again after a pause.
    pub fn failed(&mut self, name: &ContainerName, moment: Moment) {
        let known = self.known.entry(name.clone()).or_default();
        let pause = FIRST_PAUSE * 2u32.pow(known.failed.min(16));
        known.failed += 1;
        // Within short lives, as tests have them, several times.
        known.not_before = moment.after(pause.min(LONGEST_PAUSE).min((self.valid / 20).max(PACE)));
    }

    /// Forgets a container that is gone.
    pub fn forget(&mut self, name: &ContainerName) {
        self.known.remove(name);
    }

    /// Returns until when the credentials that a container sees are valid, if this instance has given them.
    #[must_use]
    pub fn seen_until(&self, name: &ContainerName) -> Option<Timestamp> {
        let given = self.known.get(name)?.given?;
        (!given.at_next_start).then_some(given.life.ends_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: Duration = Duration::from_secs(24 * 3600);

    fn at(second: u64) -> (Timestamp, Moment) {
        let time = Timestamp::from_second(1_700_000_000 + i64::try_from(second).expect("small"));
        (
            time.expect("a time"),
            Moment::after_origin(Duration::from_secs(second)),
        )
    }

    fn names(count: usize) -> Vec<ContainerName> {
        (0..count)
            .map(|n| ContainerName::new(format!("c{n}")).expect("a name"))
            .collect()
    }

    /// Looks as the shell does until nothing is due for this long, ends each renewal at once, and returns when each began,
    /// in milliseconds.
    fn run(
        renewals: &mut Renewals,
        names: &[ContainerName],
        begin: u64,
        seconds: u64,
    ) -> BTreeMap<ContainerName, Vec<u64>> {
        let mut begun: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        let mut passed = Duration::from_secs(begin);
        while passed < Duration::from_secs(begin + seconds) {
            let (zero, _) = at(0);
            let now = zero + SignedDuration::try_from(passed).expect("small");
            let look = renewals.look(names.iter(), now, Moment::after_origin(passed));
            if let Some(name) = look.renew {
                assert!(renewals.ended(&name));
                let life = Life::from(now, VALID);
                renewals.given(
                    &name,
                    Given {
                        life,
                        at_next_start: false,
                    },
                );
                let millis = u64::try_from(passed.as_millis()).expect("small");
                begun.entry(name).or_default().push(millis);
            }
            assert!(!look.again_after.is_zero(), "it would spin");
            passed += look.again_after;
        }
        begun
    }

    #[test]
    fn credentials_are_due_at_two_thirds_of_their_life_or_when_the_clock_was_set_back() {
        let life = Life::from(at(1000).0, Duration::from_secs(900));
        let due = |second| life.is_due(at(second).0);
        assert!(!due(1000) && !due(1599));
        assert!(due(1600) && due(9_000_000) && due(999));
    }

    #[test]
    fn a_thousand_containers_are_renewed_one_after_the_other_at_the_start_and_at_two_thirds_of_each_life() {
        let names = names(1000);
        let mut renewals = Renewals::new(VALID);
        let begun = run(&mut renewals, &names, 0, 24 * 3600);
        assert_eq!(begun.len(), 1000);
        let mut all: Vec<u64> = Vec::new();
        for (name, times) in &begun {
            let [first, second] = times[..] else {
                panic!("{name} was renewed at {times:?}")
            };
            assert!(first <= 101_000, "{name} waited until {first} ms after the start");
            let age = second - first;
            let due = 16 * 3600 * 1000;
            assert!(
                (due..due + 60_000).contains(&age),
                "{name} was renewed after {age} ms"
            );
            all.extend([first, second]);
        }
        all.sort_unstable();
        let pace = u64::try_from(PACE.as_millis()).expect("small");
        assert!(all.windows(2).all(|two| two[1] - two[0] >= pace), "a burst");
    }

    #[test]
    fn a_clock_that_is_set_back_or_weeks_ahead_makes_all_due() {
        let names = names(3);
        let mut renewals = Renewals::new(VALID);
        assert_eq!(run(&mut renewals, &names, 1_000_000, 60).len(), 3);
        assert!(!names.iter().any(|name| renewals.is_due(name, at(1_000_060).0)));
        for set in [900_000, 9_000_000] {
            assert!(names.iter().all(|name| renewals.is_due(name, at(set).0)), "{set}");
            let (_, moment) = at(1_000_060);
            assert!(renewals.look(names.iter(), at(set).0, moment).renew.is_some());
            renewals.next_at = Moment::default();
            renewals.in_flight.clear();
        }
    }

    #[test]
    fn a_renewal_that_failed_is_tried_again_after_growing_pauses_and_delays_no_other() {
        let names = names(2);
        let mut renewals = Renewals::new(VALID);
        let (now, _) = at(0);
        let mut tries = Vec::new();
        let mut passed = Duration::ZERO;
        while passed < Duration::from_secs(3600) {
            let look = renewals.look(names.iter(), now, Moment::after_origin(passed));
            if let Some(name) = look.renew {
                renewals.ended(&name);
                if name == names[0] {
                    tries.push(passed.as_secs());
                    renewals.failed(&name, Moment::after_origin(passed));
                } else {
                    let life = Life::from(now, VALID);
                    renewals.given(
                        &name,
                        Given {
                            life,
                            at_next_start: false,
                        },
                    );
                }
            }
            passed += look.again_after;
        }
        let pauses: Vec<u64> = tries.windows(2).map(|two| two[1] - two[0]).collect();
        assert_eq!(pauses[..6], [5, 10, 20, 40, 80, 160]);
        assert!(pauses[6..].iter().all(|pause| *pause == 300), "{pauses:?}");
        assert_eq!(renewals.seen_until(&names[0]), None);
        assert_eq!(
            renewals.seen_until(&names[1]),
            Some(Life::from(now, VALID).ends_at)
        );
    }

    #[test]
    fn a_helper_that_does_not_answer_has_few_renewals_waiting() {
        let names = names(100);
        let mut renewals = Renewals::new(VALID);
        let (now, _) = at(0);
        let begun = (0..1000u64).filter(|tenth| {
            let moment = Moment::after_origin(PACE * u32::try_from(*tenth).expect("small"));
            renewals.look(names.iter(), now, moment).renew.is_some()
        });
        assert_eq!(begun.count(), AT_ONCE);
    }

    #[test]
    fn what_a_container_sees_at_its_next_start_only_is_not_shown() {
        let names = names(1);
        let mut renewals = Renewals::new(VALID);
        let life = Life::from(at(0).0, VALID);
        let given = Given {
            life,
            at_next_start: true,
        };
        renewals.given(&names[0], given);
        assert_eq!(renewals.seen_until(&names[0]), None);
        assert!(!renewals.is_due(&names[0], at(1).0));
        renewals.forget(&names[0]);
        assert!(renewals.is_due(&names[0], at(1).0), "another one of this name");
    }
}
