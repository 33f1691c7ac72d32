//! Commands about the leaf itself.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::event::HostFacts;
use crate::id::{InstanceId, LeafName};
use crate::state::RawEntry;

commands! {
    "leaf";

    /// Shows the leaf: what it is, since when, and how it does.
    Show: ShowLeaf = "show" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Answered,
    } {} -> LeafReport
}

/// What a leaf says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeafReport {
    /// Its name.
    pub name: LeafName,
    /// The run of `leafd` that answers.
    pub instance: InstanceId,
    /// The version of `leafd`.
    pub version: String,
    /// When this run began.
    pub started_at: Timestamp,
    /// Its host.
    pub host: HostFacts,
    /// When its history began, in milliseconds since 1970.
    pub epoch: u64,
    /// The last sequence number that is recorded.
    pub sequence: u64,
    /// The last sequence number that the stream is known to hold.
    pub published: u64,
    /// How many devices are there, of those that it knows.
    pub devices_present: u64,
    /// How many devices it knows.
    pub devices: u64,
    /// How many containers run.
    pub containers_running: u64,
    /// How many containers it has.
    pub containers: u64,
    /// How many jobs run.
    pub jobs_running: u64,
    /// How many jobs wait.
    pub jobs_queued: u64,
    /// Whether it takes commands that change something, and if not, why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<String>,
    /// What it can't read of its own state, since a newer leafd wrote it: it is kept, shown by its key, and not acted on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raw_entries: Vec<RawEntry>,
}
