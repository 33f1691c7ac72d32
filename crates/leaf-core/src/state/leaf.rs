//! The leaf itself in the state: the entry `leaf`.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Entry, Kind, State, snapshot};
use crate::aggregate::Aggregate;
use crate::event::Event;
use crate::event::leaf::{HostFacts, LeafFact};
use crate::id::{InstanceId, LeafName};
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
            let labels = state.leaf.take().map(|before| before.labels);
            state.leaf = Some(LeafState {
                name: f.leaf.clone(),
                instance: f.instance,
                version: f.version.clone(),
                started_at: now,
                host: f.host.clone(),
                stopped: false,
                labels: labels.unwrap_or_default(),
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
        LeafFact::SignatureRefused(_) => Vec::new(),
        LeafFact::Snapshotted(f) => snapshot::restore(state, f, event.sequence),
    }
}
