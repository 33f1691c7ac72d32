//! Facts about the leaf itself.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::facts;
use crate::id::{Caller, ChangeId, InstanceId, LeafName, StorePath};
use crate::labels::Labels;

facts! {
    LeafFact of "leaf";

    /// An instance of `leafd` started.
    Started: LeafStarted = "started" v 1 about Leaf {
        /// The leaf.
        leaf: LeafName,
        /// The instance.
        instance: InstanceId,
        /// The version of `leafd`.
        version: String,
        /// The host that it runs on.
        host: HostFacts,
        /// The public key of its statements about builds, as a line of a `.pub` file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        provenance_key: Option<String>,
    }

    /// An instance of `leafd` stopped in order.
    Stopped: LeafStopped = "stopped" v 1 about Leaf {
        /// The instance that stopped.
        instance: InstanceId,
        /// The reason, such as `SIGTERM`.
        reason: String,
    }

    /// A command set or removed labels of the leaf.
    Labelled: LeafLabelled = "labelled" v 1 about Leaf {
        /// The caller of the command.
        caller: Caller,
        /// All labels that commands have set, from now on. The labels of the leaf's settings are not among them.
        labels: Labels,
    }

    /// The leaf refused the signature of a command. For each caller there is at most one such event in ten seconds.
    SignatureRefused: LeafSignatureRefused = "signature_refused" v 1 about Leaf {
        /// The caller, by the command's subject.
        caller: Caller,
        /// The command's noun and verb.
        command: String,
        /// The fingerprint of the key by which the signature is, or says it is; absent if it can't be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signer: Option<String>,
        /// The reason.
        reason: String,
        /// The number of this caller's refused signatures since the last such event about it, with this one.
        refused: u64,
        /// The number of other callers' refused signatures that no event counts.
        #[serde(default, skip_serializing_if = "is_zero")]
        others: u64,
    }

    /// A change that can cut the leaf off was armed: it goes back unless it is confirmed in time.
    ChangeArmed: LeafChangeArmed = "change_armed" v 1 about Leaf {
        /// The change.
        change: ChangeId,
        /// The kind of change: `hub` or `system`.
        kind: String,
        /// The caller who asked for it, if the record says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        caller: Option<Caller>,
        /// The URL of the hub that the leaf moves to, of a change of the hub.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        url: Option<String>,
        /// The toplevel of the new system, of a change of the system.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        toplevel: Option<StorePath>,
        /// Whether only a person can confirm it.
        unwitnessed: bool,
    }

    /// A change that can cut the leaf off was confirmed, and stays.
    ChangeConfirmed: LeafChangeConfirmed = "change_confirmed" v 1 about Leaf {
        /// The change.
        change: ChangeId,
        /// The caller that confirmed it, or the fingerprint of a witness's key (`SHA256:…`); absent if the record does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    }

    /// A change that can cut the leaf off went back, since nobody confirmed it in time, or its host was started again.
    ChangeWentBack: LeafChangeWentBack = "change_went_back" v 1 about Leaf {
        /// The change.
        change: ChangeId,
        /// The reason, if the record says one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<String>,
    }

    /// The disk of the Nix store has less free space than the leaf keeps: builds are refused.
    StoreFilled: LeafStoreFilled = "store_filled" v 1 about Leaf {
        /// The free space, in bytes.
        free_bytes: u64,
        /// The free space that is kept, in bytes (`nix.min_free_bytes`).
        kept_bytes: u64,
    }

    /// The disk of the Nix store has room again: builds are accepted.
    StoreHasRoom: LeafStoreHasRoom = "store_has_room" v 1 about Leaf {
        /// The free space, in bytes.
        free_bytes: u64,
        /// The free space that is kept, in bytes (`nix.min_free_bytes`).
        kept_bytes: u64,
    }

    /// The leaf's settings name another hub than when a change put one into its place: that of the settings is used again.
    HubInPlaceEnded: LeafHubInPlaceEnded = "hub_in_place_ended" v 1 about Leaf {
        /// The change that had put it there.
        change: ChangeId,
        /// The URL of the hub that is not used any more.
        url: String,
    }

    /// A snapshot of the whole state, from which a replay can start. A large state comes in several parts with
    /// consecutive sequence numbers.
    Snapshotted: LeafSnapshotted = "snapshotted" v 1 about Leaf {
        /// The leaf.
        leaf: LeafName,
        /// The epoch: when the leaf's history began, in milliseconds since 1970. It changes only when a history could
        /// not be continued.
        epoch: u64,
        /// The number of this part, from 1.
        part: u32,
        /// The number of parts.
        parts: u32,
        /// The entries of the state in this part, by key (`container.web`).
        entries: BTreeMap<String, serde_json::Value>,
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The host that a leaf runs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostFacts {
    /// Its host name.
    pub hostname: String,
    /// Its platform as Nix names it: `x86_64-linux`.
    pub system: String,
    /// Its kernel release.
    pub kernel: String,
    /// The id of this boot of the kernel (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
}
