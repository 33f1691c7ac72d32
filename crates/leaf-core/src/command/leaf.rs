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

    /// Shows the leaf's identity, uptime and status.
    Show: ShowLeaf = "show" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Answered,
    } {} -> LeafReport
}

/// A leaf's identity, uptime and status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeafReport {
    /// Its name.
    pub name: LeafName,
    /// The instance of `leafd` that answers.
    pub instance: InstanceId,
    /// The version of `leafd`.
    pub version: String,
    /// When this instance started.
    pub started_at: Timestamp,
    /// Its host.
    pub host: HostFacts,
    /// When its history began, in milliseconds since 1970.
    pub epoch: u64,
    /// The last sequence number recorded.
    pub sequence: u64,
    /// The last sequence number that the stream is known to hold.
    pub published: u64,
    /// How many of the known devices are present.
    pub devices_present: u64,
    /// How many devices are known.
    pub devices: u64,
    /// How many containers run.
    pub containers_running: u64,
    /// How many containers there are.
    pub containers: u64,
    /// How many jobs run.
    pub jobs_running: u64,
    /// How many jobs are queued.
    pub jobs_queued: u64,
    /// Why it refuses commands that change something, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<String>,
    /// The entries of its state that it can't read, since a newer leafd wrote them: they are kept and not acted on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raw_entries: Vec<RawEntry>,
}
