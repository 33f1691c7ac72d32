//! The lease: a small message that names the instance that holds a leaf's name.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{InstanceId, LeafName};

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
}
