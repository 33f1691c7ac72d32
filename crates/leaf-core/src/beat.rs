//! The lease: a small message that names the instance that holds a leaf's name.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{InstanceId, LeafName};
use crate::labels::{self, Labels};
use crate::placement::demand::Features;

/// The period in which a leaf renews its lease, in seconds.
pub const BEAT_SECONDS: u64 = 10;

/// The time after which a lease expires unless renewed, in seconds: the `max_age` of the stream `LEASES`.
pub const LEASE_SECONDS: u64 = 30;

/// A beat: the instance `instance` holds the name of the leaf `leaf`. The stream `LEASES` keeps the last beat of each
/// leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Beat {
    /// The leaf's name.
    pub leaf: LeafName,
    /// The instance of `leafd` that holds the name.
    pub instance: InstanceId,
    /// The name of the host that it runs on.
    pub hostname: String,
    /// The version of `leafd`.
    pub version: String,
    /// When the instance started.
    pub started_at: Timestamp,
    /// The last sequence number in its journal.
    pub sequence: u64,
    /// When this beat was made.
    pub time: Timestamp,
    /// The period in which it is renewed, in seconds.
    pub interval_seconds: u64,
    /// The leaf's labels.
    #[serde(
        default,
        skip_serializing_if = "Labels::is_empty",
        deserialize_with = "labels::read_texts"
    )]
    pub labels: Labels,
    /// The systems, features and number of jobs of the leaf as a builder; absent if it runs no Nix jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nix: Option<Box<Builds>>,
}

/// The systems, features and number of jobs of a leaf as a builder, by which clients choose the leaf for a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Builds {
    /// The system that its Nix evaluates and builds for, such as `x86_64-linux`.
    pub system: String,
    /// The further systems that it builds for.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub more_systems: BTreeSet<String>,
    /// The count of each feature that the leaf has, by name.
    #[serde(default, skip_serializing_if = "Features::is_empty")]
    pub features: Features,
    /// The maximum number of jobs that run at once.
    pub max_jobs: u64,
}

/// Whether a leaf is there, by its last beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Its last beat is at most [`LEASE_SECONDS`] old.
    Online,
    /// It has sent no beat since then.
    AwaySince(Timestamp),
}

/// Returns whether a leaf is there, whose last beat was heard at this time: by the clock of the server that keeps it, since
/// the leaf's own may be wrong. A beat of the future was heard by a server whose clock is ahead.
#[must_use]
pub fn presence(heard_at: Timestamp, now: Timestamp) -> Presence {
    let lease = SignedDuration::from_secs(LEASE_SECONDS.cast_signed());
    if now.duration_since(heard_at) > lease {
        Presence::AwaySince(heard_at)
    } else {
        Presence::Online
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_away_once_its_last_beat_is_older_than_a_lease() {
        let time = Timestamp::from_second(1_700_000_000).expect("a time");
        let after = |seconds: i64| presence(time, time + SignedDuration::from_secs(seconds));
        let lease = LEASE_SECONDS.cast_signed();
        assert_eq!(after(0), Presence::Online);
        assert_eq!(after(lease), Presence::Online);
        assert_eq!(after(lease + 1), Presence::AwaySince(time));
        assert_eq!(after(86_400 * 365), Presence::AwaySince(time));
        assert_eq!(after(-3600), Presence::Online);
        assert_eq!(
            presence(time, Timestamp::MAX),
            Presence::AwaySince(time),
            "no overflow"
        );
    }
}
