//! Whether a signature holds now, by the leaf's clock and what its journal remembers. Pure.

use jiff::{SignedDuration, Timestamp};

use super::text::SignedText;

/// How far the clocks of a signer and a leaf may differ.
pub const TOLERANCE: SignedDuration = SignedDuration::from_secs(60);

/// The longest time for which a signature holds.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(1);

/// For how long after its floor a leaf gives nonces: a signer whose clock is some minutes behind can sign all the same.
const ASKED_FOR: SignedDuration = SignedDuration::from_mins(10);

/// Why a signature does not hold now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotFresh {
    /// It would hold for too long, or never.
    #[error(
        "the signature has to expire after its time, and at most an hour later: it holds from {time} to {expires}"
    )]
    Span {
        /// From when on it holds.
        time: Timestamp,
        /// Until when.
        expires: Timestamp,
    },
    /// It was made in the leaf's future.
    #[error("the signature holds from {time} on, and it is {now} here: compare the clocks")]
    Early {
        /// From when on it holds.
        time: Timestamp,
        /// The leaf's time.
        now: Timestamp,
    },
    /// It has expired.
    #[error("the signature expired at {expires}, and it is {now} here: sign again, or compare the clocks")]
    Expired {
        /// Until when it held.
        expires: Timestamp,
        /// The leaf's time.
        now: Timestamp,
    },
    /// The leaf does not remember the commands of its time.
    #[error(
        "the signature is of {time}, and this leaf only knows which commands it was sent since {floor}, so it may have been used \
         before: sign again, with a nonce of leaf.challenge"
    )]
    Forgotten {
        /// From when on it holds.
        time: Timestamp,
        /// Since when signatures are accepted without a nonce.
        floor: Timestamp,
    },
    /// The leaf's clock can't be trusted, or its journal does not say since when it knows its commands.
    #[error(
        "this leaf can't tell by its clock whether a signature is new, so the signed text needs a nonce: ask for one with \
         leaf.challenge, and sign again"
    )]
    NeedsNonce,
}

/// What a leaf's journal remembers of the time. Both are taken from the clock while it is trusted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// Since when it knows all commands that the leaf accepted; `None` if it does not know since when.
    pub floor: Option<Timestamp>,
    /// The latest time that it has seen.
    pub seen: Option<Timestamp>,
}

/// What a leaf knows of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// The leaf's clock.
    pub now: Timestamp,
    /// Whether that clock can be trusted.
    pub is_trusted: bool,
    /// What the journal remembers.
    pub marks: Marks,
}

impl Freshness {
    /// Returns since when the leaf knows its commands, if it goes by its clock: that is trusted, and not behind what the journal
    /// remembers.
    fn by_clock(&self) -> Option<Timestamp> {
        let ahead = later(self.now, TOLERANCE);
        let went_back = self.marks.seen.is_some_and(|seen| seen > ahead);
        let floor = self.marks.floor.filter(|floor| *floor <= ahead)?;
        (self.is_trusted && !went_back).then_some(floor)
    }

    /// Returns whether the leaf goes by its clock.
    #[must_use]
    pub fn goes_by_clock(&self) -> bool {
        self.by_clock().is_some()
    }

    /// Returns whether a signature that is made now should have a nonce.
    #[must_use]
    pub fn asks_for_nonce(&self) -> bool {
        self.by_clock()
            .is_none_or(|floor| self.now < later(floor, ASKED_FOR))
    }

    /// Returns the earliest time that it can be: the leaf's clock, or what the journal has seen.
    #[must_use]
    pub fn at_least(&self) -> Timestamp {
        self.marks.seen.map_or(self.now, |seen| self.now.max(seen))
    }

    /// Checks that a signature holds now. A good nonce of this leaf shows that it is new; without one, it must be of a time whose
    /// commands the journal remembers.
    ///
    /// # Errors
    /// [`NotFresh`].
    pub fn check(&self, signed: &SignedText, has_good_nonce: bool) -> Result<(), NotFresh> {
        let (time, expires, now) = (signed.time, signed.expires, self.now);
        if expires <= time || expires > later(time, LONGEST) {
            return Err(NotFresh::Span { time, expires });
        }
        let Some(floor) = self.by_clock() else {
            return if has_good_nonce {
                Ok(())
            } else {
                Err(NotFresh::NeedsNonce)
            };
        };
        if time > later(now, TOLERANCE) {
            return Err(NotFresh::Early { time, now });
        }
        if expires <= now {
            return Err(NotFresh::Expired { expires, now });
        }
        // A command may have been accepted as much earlier by the leaf's clock than its signature's time.
        let floor = later(floor, TOLERANCE);
        if !has_good_nonce && time < floor {
            return Err(NotFresh::Forgotten { time, floor });
        }
        Ok(())
    }
}

fn later(time: Timestamp, by: SignedDuration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{Caller, CommandId, LeafName};

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    fn signed(from: i64, until: i64) -> SignedText {
        SignedText {
            caller: Caller::new("ann").expect("a caller"),
            noun: "leaf".to_owned(),
            verb: "show".to_owned(),
            leaves: [(LeafName::new("edge-1").expect("a leaf"), None)].into(),
            body: super::super::text::body_hash(b""),
            id: CommandId::new("x").expect("an id"),
            time: time(from),
            expires: time(until),
        }
    }

    fn leaf(now: i64, is_trusted: bool, floor: i64) -> Freshness {
        Freshness {
            now: time(now),
            is_trusted,
            marks: Marks {
                floor: Some(time(floor)),
                seen: None,
            },
        }
    }

    #[test]
    fn by_the_clock_a_signature_holds_from_its_time_until_it_expires() {
        let signed = signed(1000, 1300);
        let check = |now| leaf(now, true, 0).check(&signed, false);
        assert!(matches!(check(939), Err(NotFresh::Early { .. })));
        assert_eq!((check(940), check(1000), check(1299)), (Ok(()), Ok(()), Ok(())));
        assert!(matches!(check(1300), Err(NotFresh::Expired { .. })));
    }

    #[test]
    fn no_signature_holds_for_more_than_an_hour_or_backwards() {
        for (until, holds) in [
            (1000, false),
            (999, false),
            (1001, true),
            (4600, true),
            (4601, false),
        ] {
            for nonce in [false, true] {
                let checked = leaf(1000, true, 0).check(&signed(1000, until), nonce);
                assert_eq!(checked.is_ok(), holds, "{until}");
            }
        }
    }

    #[test]
    fn without_a_trusted_clock_only_a_nonce_counts() {
        let signed = signed(1000, 1300);
        let untrusted = leaf(99_999, false, 0);
        assert_eq!(untrusted.check(&signed, false), Err(NotFresh::NeedsNonce));
        assert_eq!(untrusted.check(&signed, true), Ok(()));
        assert!(untrusted.asks_for_nonce());
    }

    #[test]
    fn what_was_signed_before_the_journal_was_made_needs_a_nonce() {
        let (signed, made) = (signed(1000, 1300), leaf(1010, true, 1005));
        assert!(matches!(
            made.check(&signed, false),
            Err(NotFresh::Forgotten { .. })
        ));
        assert_eq!(made.check(&signed, true), Ok(()));
        assert!(made.asks_for_nonce() && !leaf(2000, true, 1005).asks_for_nonce());
        // A clock that went back behind what is forgotten is not gone by.
        let back = leaf(1100, true, 5000);
        assert_eq!(back.check(&signed, false), Err(NotFresh::NeedsNonce));
        assert_eq!(back.check(&signed, true), Ok(()));
        let mut seen = leaf(2000, true, 0);
        seen.marks.seen = Some(time(2061));
        assert!(!seen.goes_by_clock() && seen.at_least() == time(2061));
        seen.marks.seen = Some(time(2060));
        assert!(seen.goes_by_clock());
        seen.marks.floor = None;
        assert!(!seen.goes_by_clock() && seen.asks_for_nonce());
    }

    proptest! {
        /// The journal keeps a command that it accepted at `accepted` until it forgets up to `forgot`; the clock then says anything.
        #[test]
        fn a_signature_whose_command_was_forgotten_never_holds_again(
            from in 0..200_000_i64, span in 1..=3600_i64, accepted in 0..200_000_i64, later in 0..200_000_i64, forgot in 0..200_000_i64,
        ) {
            let signed = signed(from, from + span);
            let first = leaf(accepted, true, 0).check(&signed, false);
            if first.is_ok() && accepted < forgot {
                prop_assert!(leaf(later, true, forgot).check(&signed, false).is_err());
            }
        }
    }
}
