//! Who holds a leaf's name at the hub.

use std::time::Duration;

use crate::beat::Beat;
use crate::id::LeafName;

use super::{AWAY_SECONDS, Claim};

/// The last granted claim on a leaf's name. Times are those of the agent's own clock, which runs evenly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The holder's last beat.
    pub beat: Beat,
    /// The age of the claim at the agent's time zero, or its time after that.
    claimed: Claimed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claimed {
    /// It was this old at the agent's start.
    Before(Duration),
    At(Duration),
    /// It was given back.
    Released,
}

/// The agent's decision about a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is granted.
    Granted {
        /// Whether another instance held the name before, or none, or the holder's last claim had expired.
        anew: bool,
    },
    /// Another instance holds the name: its last beat.
    Held(Box<Beat>),
    /// The claim is another leaf's.
    Foreign,
}

impl Holder {
    /// Returns the holder of a claim that was granted at this time.
    #[must_use]
    pub fn now(beat: Beat, now: Duration) -> Self {
        Self {
            beat,
            claimed: Claimed::At(now),
        }
    }

    /// Returns the holder of a claim that was this old at the agent's start.
    #[must_use]
    pub fn earlier(beat: Beat, age: Duration) -> Self {
        Self {
            beat,
            claimed: Claimed::Before(age),
        }
    }

    /// The holder has given its claim back: it expires at once.
    pub fn release(&mut self) {
        self.claimed = Claimed::Released;
    }

    /// Returns whether the claim has expired: the leaf is away.
    #[must_use]
    pub fn is_expired(&self, now: Duration) -> bool {
        let age = match self.claimed {
            Claimed::Before(age) => age.saturating_add(now),
            Claimed::At(time) => now.saturating_sub(time),
            Claimed::Released => return true,
        };
        age >= Duration::from_secs(AWAY_SECONDS)
    }
}

/// Decides about a claim on the name of a leaf, which the claim's subject has.
#[must_use]
pub fn decide(holder: Option<&Holder>, leaf: &LeafName, claim: &Claim, now: Duration) -> Verdict {
    if claim.beat.leaf != *leaf {
        return Verdict::Foreign;
    }
    let Some(holder) = holder else {
        return Verdict::Granted { anew: true };
    };
    let (held_by, expired) = (holder.beat.instance, holder.is_expired(now));
    if held_by == claim.beat.instance {
        Verdict::Granted { anew: expired }
    } else if expired || claim.predecessor == Some(held_by) {
        Verdict::Granted { anew: true }
    } else {
        Verdict::Held(Box::new(holder.beat.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::InstanceId;
    use jiff::Timestamp;
    use uuid::Uuid;

    fn claim(instance: u128) -> Claim {
        Claim {
            beat: Beat {
                leaf: LeafName::new("edge-1").expect("a name"),
                instance: InstanceId(Uuid::from_u128(instance)),
                hostname: "h".into(),
                version: "1".into(),
                started_at: Timestamp::UNIX_EPOCH,
                sequence: 0,
                time: Timestamp::UNIX_EPOCH,
                interval_seconds: 10,
                labels: Default::default(),
                nix: None,
            },
            predecessor: None,
            stream_last: 0,
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_name_belongs_to_one_instance_until_its_claim_expires() {
        let leaf = LeafName::new("edge-1").expect("a name");
        assert_eq!(
            decide(None, &leaf, &claim(1), seconds(0)),
            Verdict::Granted { anew: true }
        );
        let holder = Holder::now(claim(1).beat, seconds(100));
        let at = |number, time| decide(Some(&holder), &leaf, &claim(number), seconds(time));
        assert_eq!(at(1, 110), Verdict::Granted { anew: false });
        assert_eq!(at(2, 129), Verdict::Held(Box::new(claim(1).beat)));
        assert_eq!(at(2, 130), Verdict::Granted { anew: true });
        assert_eq!(at(1, 130), Verdict::Granted { anew: true });
    }

    #[test]
    fn a_claim_from_before_the_agents_start_expires_too() {
        let leaf = LeafName::new("edge-1").expect("a name");
        let holder = Holder::earlier(claim(1).beat, seconds(25));
        let at = |time| decide(Some(&holder), &leaf, &claim(2), seconds(time));
        assert_eq!(at(4), Verdict::Held(Box::new(claim(1).beat)));
        assert_eq!(at(5), Verdict::Granted { anew: true });
    }

    #[test]
    fn a_name_that_was_given_back_is_free_at_once() {
        let leaf = LeafName::new("edge-1").expect("a name");
        let mut holder = Holder::now(claim(1).beat, seconds(100));
        holder.release();
        assert!(holder.is_expired(seconds(100)));
        for number in [1, 2] {
            let verdict = decide(Some(&holder), &leaf, &claim(number), seconds(101));
            assert_eq!(verdict, Verdict::Granted { anew: true });
        }
    }

    #[test]
    fn a_successor_takes_over_and_another_leafs_claim_does_not() {
        let holder = Holder::now(claim(1).beat, seconds(0));
        let successor = Claim {
            predecessor: Some(holder.beat.instance),
            ..claim(2)
        };
        let leaf = LeafName::new("edge-1").expect("a name");
        let other = LeafName::new("edge-2").expect("a name");
        assert_eq!(
            decide(Some(&holder), &leaf, &successor, seconds(1)),
            Verdict::Granted { anew: true }
        );
        let stranger = Claim {
            predecessor: Some(InstanceId(Uuid::from_u128(7))),
            ..claim(2)
        };
        assert!(matches!(
            decide(Some(&holder), &leaf, &stranger, seconds(1)),
            Verdict::Held(_)
        ));
        assert_eq!(decide(None, &other, &claim(1), seconds(1)), Verdict::Foreign);
    }
}
