//! The leaf itself in the state: the entry `leaf`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Entry, Kind, State, snapshot};
use crate::aggregate::Aggregate;
use crate::event::Event;
use crate::event::leaf::{HostFacts, LeafFact};
use crate::id::{ChangeId, InstanceId, LeafName};
use crate::labels::{self, Labels};

/// The leaf itself: the entry `leaf`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeafState {
    /// Its name.
    pub name: LeafName,
    /// The last instance of `leafd`.
    pub instance: InstanceId,
    /// Its version.
    pub version: String,
    /// When that instance started.
    pub started_at: Timestamp,
    /// The host that it ran on.
    pub host: HostFacts,
    /// Whether that instance has stopped in order.
    pub stopped: bool,
    /// The labels that commands have set.
    #[serde(
        default,
        skip_serializing_if = "Labels::is_empty",
        deserialize_with = "labels::read_texts"
    )]
    pub labels: Labels,
    /// The last changes that can cut it off, of which its events tell.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "read_changes"
    )]
    pub changes: BTreeMap<ChangeId, ToldChange>,
    /// The last change of which its events tell that its hub is not used any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub_in_place_ended: Option<ChangeId>,
    /// The public key of that instance's statements about builds, as a line of a `.pub` file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance_key: Option<String>,
    /// Whether its events tell that the disk of the Nix store has too little room for builds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub store_filled: bool,
}

/// A change that can cut the leaf off, as the leaf's events recorded it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToldChange {
    /// The stage that the last of them recorded.
    pub stage: ChangeStage,
    /// The sequence number of the last of them.
    pub told_at: u64,
}

/// The stage of a change that can cut the leaf off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeStage {
    /// It was armed.
    Armed,
    /// It was confirmed.
    Confirmed,
    /// It went back.
    WentBack,
}

/// Reads the changes whose id and stage this version knows: other ones are of a newer version, and are kept as unknown fields.
fn read_changes<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<ChangeId, ToldChange>, D::Error> {
    let all = BTreeMap::<String, Value>::deserialize(deserializer)?;
    let known = all
        .into_iter()
        .filter_map(|(id, told)| Some((id.parse().ok()?, serde_json::from_value(told).ok()?)));
    Ok(known.collect())
}

/// The number of changes that are kept: more than the host keeps records of.
const CHANGES_KEPT: usize = 32;

/// Notes the stage of a change.
fn note_change(state: &mut State, change: ChangeId, stage: ChangeStage, told_at: u64) -> Vec<String> {
    let Some(leaf) = &mut state.leaf else {
        return Vec::new();
    };
    leaf.changes.insert(change, ToldChange { stage, told_at });
    while leaf.changes.len() > CHANGES_KEPT {
        let oldest = leaf.changes.iter().min_by_key(|(_, told)| told.told_at);
        let Some(oldest) = oldest.map(|(id, _)| *id) else {
            break;
        };
        leaf.changes.remove(&oldest);
    }
    vec![Aggregate::Leaf.key()]
}

pub(super) const KIND: Kind = Kind {
    name: "leaf",
    keys: |state| state.leaf.iter().map(|_| Aggregate::Leaf.key()).collect(),
    find: |state, id| id.is_empty().then_some(state.leaf.as_ref())?.map(Entry::Leaf),
    put: |state, _, value| {
        state.leaf = Some(serde_json::from_value(value)?);
        Ok(())
    },
    remove: |state, _| state.leaf = None,
    renewed: true,
};

pub(super) fn apply(state: &mut State, fact: &LeafFact, event: &Event) -> Vec<String> {
    let now = event.time;
    match fact {
        LeafFact::Started(f) => {
            let before = state.leaf.take();
            let store_filled = before.as_ref().is_some_and(|before| before.store_filled);
            let (labels, changes, hub_in_place_ended) = before
                .map(|before| (before.labels, before.changes, before.hub_in_place_ended))
                .unwrap_or_default();
            state.leaf = Some(LeafState {
                name: f.leaf.clone(),
                instance: f.instance,
                version: f.version.clone(),
                started_at: now,
                host: f.host.clone(),
                stopped: false,
                labels,
                changes,
                hub_in_place_ended,
                provenance_key: f.provenance_key.clone(),
                store_filled,
            });
            vec![Aggregate::Leaf.key()]
        }
        LeafFact::Stopped(f) => match &mut state.leaf {
            Some(leaf) if leaf.instance == f.instance => {
                leaf.stopped = true;
                vec![Aggregate::Leaf.key()]
            }
            _ => Vec::new(),
        },
        LeafFact::Labelled(f) => match &mut state.leaf {
            Some(leaf) => {
                leaf.labels.clone_from(&f.labels);
                vec![Aggregate::Leaf.key()]
            }
            None => Vec::new(),
        },
        LeafFact::ChangeArmed(f) => note_change(state, f.change, ChangeStage::Armed, event.sequence),
        LeafFact::ChangeConfirmed(f) => note_change(state, f.change, ChangeStage::Confirmed, event.sequence),
        LeafFact::ChangeWentBack(f) => note_change(state, f.change, ChangeStage::WentBack, event.sequence),
        LeafFact::HubInPlaceEnded(f) => match &mut state.leaf {
            Some(leaf) => {
                leaf.hub_in_place_ended = Some(f.change);
                vec![Aggregate::Leaf.key()]
            }
            None => Vec::new(),
        },
        LeafFact::StoreFilled(_) | LeafFact::StoreHasRoom(_) => match &mut state.leaf {
            Some(leaf) => {
                leaf.store_filled = matches!(fact, LeafFact::StoreFilled(_));
                vec![Aggregate::Leaf.key()]
            }
            None => Vec::new(),
        },
        LeafFact::SignatureRefused(_) => Vec::new(),
        LeafFact::Snapshotted(f) => snapshot::restore(state, f, event.sequence),
    }
}
