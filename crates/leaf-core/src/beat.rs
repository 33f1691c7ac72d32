//! The lease: a small message that says who holds a leaf's name, apart from the large status.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{InstanceId, LeafName};

/// How often a leaf renews its lease, in seconds.
pub const BEAT_SECONDS: u64 = 10;

/// How long a lease lasts without being renewed, in seconds: the `max_age` of the stream `LEASES`.
pub const LEASE_SECONDS: u64 = 30;

/// One beat: the leaf `leaf` is held by the run `instance`. `LEASES` keeps the last one of each leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Beat {
    /// The leaf.
    pub leaf: LeafName,
    /// The run of `leafd` that holds it.
    pub instance: InstanceId,
    /// The host it runs on.
    pub hostname: String,
    /// The version of `leafd`.
    pub version: String,
    /// When that run began.
    pub started_at: Timestamp,
    /// The last sequence number in its journal.
    pub sequence: u64,
    /// When this beat was made.
    pub time: Timestamp,
    /// How often it is renewed, in seconds.
    pub interval_seconds: u64,
}
