//! Commands about the leaf itself.

use std::collections::BTreeSet;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::event::HostFacts;
use crate::host_op::Secret;
use crate::id::{Caller, ChangeId, InstanceId, LeafName, StorePath};
use crate::labels::Labels;
use crate::state::RawEntry;

commands! {
    "leaf";

    /// Shows the leaf's identity, uptime and status.
    Show: ShowLeaf = "show" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Answered,
    } {} -> LeafReport

    /// Sets and removes labels of the leaf.
    Label: LabelLeaf = "label" {
        kind: Change, about: Leaf, needs: Nothing, disk: Takes, power: Changes,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The labels to set, by key.
        #[serde(default, skip_serializing_if = "Labels::is_empty")]
        set: Labels,
        /// The keys of the labels to remove. A label that the leaf does not have is no error.
        #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
        remove: BTreeSet<String>,
    } -> LeafLabels

    /// Moves the leaf to another hub. Unless that is confirmed in time, by a witness over a new connection or by a person with
    /// `leaf.confirm`, the leaf goes back by itself. Answered when the way back is armed; leafd restarts some seconds later.
    MoveTo: MoveLeaf = "move_to" {
        kind: Change, about: Leaf, needs: Nothing, disk: Takes, power: CutsOff,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The URL of the hub's port for leaf nodes, `tls://hub.example:7422`, or several with commas between them.
        url: String,
        /// The CA certificates that are trusted there, in PEM; without them those that the leaf trusts now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ca: Option<String>,
        /// The content of the leaf's credentials file there; without it the credentials that it has now.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        credentials: Option<Secret>,
        /// The time in which it must be confirmed, in seconds: 30 to 3600, without it 120.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seconds: Option<u32>,
        /// Whether only a person can confirm it: where no witness is set, or it does not answer now.
        #[serde(default, skip_serializing_if = "is_false")]
        no_witness: bool,
    } -> OpenChange

    /// Confirms the open change of the leaf, so that it stays.
    Confirm: ConfirmLeafChange = "confirm" {
        kind: Change, about: Leaf, needs: Nothing, disk: Frees, power: CutsOff,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The change.
        id: ChangeId,
    } -> ConfirmedChange

    /// Says what a signature of this caller must have, for a command to be accepted by this leaf now.
    Challenge: ChallengeSigner = "challenge" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {} -> Challenge
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// A change that can cut the leaf off, and that is not decided yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenChange {
    /// The change.
    pub id: ChangeId,
    /// The kind of change: `hub` or `system`.
    pub kind: String,
    /// The caller that asked for it, if the record names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<Caller>,
    /// The URL of the hub that the leaf moves to, of a change of the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The toplevel of the new system, of a change of the system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toplevel: Option<StorePath>,
    /// The time after which the leaf goes back, in seconds; 0 if it does so now.
    pub seconds_left: u64,
    /// Whether only a person can confirm it.
    pub unwitnessed: bool,
}

/// A change that was confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfirmedChange {
    /// The change.
    pub id: ChangeId,
}

/// The hub that a confirmed or open change has put into the place of that of the leaf's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HubInPlace {
    /// The change.
    pub change: ChangeId,
    /// The hub's URL.
    pub url: String,
}

/// The leaf's requirements for a signature of this caller at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Challenge {
    /// The leaf's clock. The signature's time may be a minute ahead of it.
    pub time: Timestamp,
    /// A nonce that the signed text must have behind this leaf's name, where time alone does not tell whether a signature is new: 16
    /// bytes in base64url. It is good for one command, for five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// The fingerprints of the keys that may sign for this caller now, as `ssh-keygen -l` shows them.
    pub keys: Vec<String>,
    /// Why no signature is accepted at the moment, if none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<String>,
}

/// The labels of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeafLabels {
    /// Its labels, by key.
    pub labels: Labels,
    /// The keys of those that stand in the leaf's settings: a command can't change them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub of_settings: BTreeSet<String>,
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
    /// The host that it runs on.
    pub host: HostFacts,
    /// Its labels, by key.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// The keys of the labels that stand in the leaf's settings: a command can't change them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub labels_of_settings: BTreeSet<String>,
    /// When its history began, in milliseconds since 1970.
    pub epoch: u64,
    /// The sequence number of the last recorded event.
    pub sequence: u64,
    /// The sequence number of the last event acknowledged by the stream.
    pub published: u64,
    /// The number of present devices.
    pub devices_present: u64,
    /// The number of known devices, present or absent.
    pub devices: u64,
    /// The number of running containers.
    pub containers_running: u64,
    /// The number of containers.
    pub containers: u64,
    /// The number of running jobs.
    pub jobs_running: u64,
    /// The number of queued jobs.
    pub jobs_queued: u64,
    /// The reason why it refuses changes and jobs at the moment, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusing: Option<String>,
    /// The reason why it takes no commands that change containers, if this leaf can't run any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_containers: Option<String>,
    /// The reason why it takes no Nix jobs, if this leaf can't run any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_nix_jobs: Option<String>,
    /// The entries of its state that a newer leafd wrote and this one can't read: they are kept and not acted on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raw_entries: Vec<RawEntry>,
    /// Its connection to the hub, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubReport>,
    /// Until when its credentials at a given NATS server are valid; absent if they have no end, or its server is its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_until: Option<Timestamp>,
    /// The change that can cut it off and is not decided yet, if one is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<OpenChange>,
    /// The hub that is used in the place of that of its settings, until a new system changes these (`nats.embedded.hub`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub_in_place: Option<HubInPlace>,
    /// The public key of its statements about builds, as a line of a `.pub` file; absent if it makes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance_key: Option<String>,
    /// The access of its own people at its embedded NATS server, which they keep while the hub is away; absent if it has no embedded
    /// server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_access: Option<LocalAccess>,
}

/// The access of a leaf's own people: root and the group of leafd on its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LocalAccess {
    /// The caller as whom they command it.
    pub caller: Caller,
    /// Until when their present credentials are valid. leafd renews them before, in the files that leafctl finds.
    pub valid_until: Timestamp,
}

/// A leaf's connection to its hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HubReport {
    /// The hub's addresses.
    pub url: String,
    /// Whether the hub agent granted the leaf's last claim on its name.
    pub connected: bool,
    /// When it granted a claim last, if it did since the leaf started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed_at: Option<Timestamp>,
    /// The sequence number of the last event of the hub's copy at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied: Option<u64>,
    /// Why the last claim was not granted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The sequence number of the last event that the hub's copy had before it lost some; absent if it has them again, or lost none
    /// since the leaf started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_after: Option<u64>,
    /// Whether the hub agent says when a leaf is gone, so that another one may take over its builds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub works: bool,
    /// When the leaf's credentials at the hub end, by the file that its server reads at the next connection; absent if they have no
    /// end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_until: Option<Timestamp>,
}
