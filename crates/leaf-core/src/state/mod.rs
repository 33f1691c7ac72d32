//! What a leaf knows: the sum of its events. [`apply`] adds one event to it.
//!
//! The state is a set of entries by key (`leaf`, `snapshot`, `device.<id>`, `container.<token>`, `job.<id>`): so it is stored in
//! the journal, shown in the KV bucket `leaf_state`, and cut into the parts of a snapshot. What a kind of entry is, and what its events
//! change, stands in one module a noun; [`KINDS`] lists them.

mod container;
mod hardware;
mod job;
mod leaf;
mod snapshot;

pub use job::REMEMBERED_JOBS;
pub use leaf::LeafState;
pub use snapshot::SNAPSHOT_KEY;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::cause::Cause;
use crate::container::Container;
use crate::event::{Event, Fact, LeafFact, to_json};
use crate::hardware::Device;
use crate::id::{ContainerName, DeviceId, JobId};
use crate::job::Job;

/// What a leaf knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The sequence number of the last event in it; 0 before the first.
    pub sequence: u64,
    /// The sequence number with which the newest snapshot begins; 0 before the first.
    pub snapshot_sequence: u64,
    /// The leaf itself, from the first start on.
    pub leaf: Option<LeafState>,
    /// The devices that it has seen.
    pub devices: BTreeMap<DeviceId, Device>,
    /// Its containers.
    pub containers: BTreeMap<ContainerName, Container>,
    /// Its jobs: all that have not ended, and the last [`REMEMBERED_JOBS`] that have.
    pub jobs: BTreeMap<JobId, Job>,
    partial: snapshot::Partial,
}

/// An entry of the state, as it stands there.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Leaf(&'a LeafState),
    Snapshot(u64),
    Device(&'a Device),
    Container(&'a Container),
    Job(&'a Job),
}

/// How the entries of one kind are kept.
struct Kind {
    /// The first part of their keys: `container`. What follows behind a dot is the id; an entry that there is once has none.
    name: &'static str,
    /// The keys of those that the state has.
    keys: fn(&State) -> Vec<String>,
    /// The one with this id.
    find: for<'a> fn(&'a State, &str) -> Option<Entry<'a>>,
    /// Takes one in, as it stands in a store.
    put: fn(&mut State, Value) -> Result<(), serde_json::Error>,
}

/// The kinds of entries.
const KINDS: &[Kind] = &[
    leaf::KIND,
    snapshot::KIND,
    hardware::KIND,
    container::KIND,
    job::KIND,
];

/// Returns the kind of a key and the id in it.
fn kind_of(key: &str) -> Option<(&'static Kind, &str)> {
    let (name, id) = key.split_once('.').unwrap_or((key, ""));
    let kind = KINDS.iter().find(|kind| kind.name == name)?;
    Some((kind, id))
}

/// Why entries are not a state.
#[derive(Debug, thiserror::Error)]
#[error("the entry {key:?} of the state can't be read")]
pub struct EntryError {
    /// The entry's key.
    pub key: String,
    /// What serde says, if the key is known.
    pub source: Option<serde_json::Error>,
}

/// Adds one event to the state, and returns the keys of the entries that it changed.
///
/// An event that does not fit (of a container that the state doesn't have, say) changes nothing but the sequence
/// number: a replay may begin in the middle of a history.
pub fn apply(state: &mut State, event: &Event) -> Vec<String> {
    state.sequence = event.sequence;
    if !matches!(event.fact, Fact::Leaf(LeafFact::Snapshotted(_))) {
        state.partial = snapshot::Partial::default();
    }
    match &event.fact {
        Fact::Leaf(fact) => leaf::apply(state, fact, event),
        Fact::Hardware(fact) => hardware::apply(state, fact),
        Fact::Container(fact) => container::apply(state, fact, event),
        Fact::Job(fact) => job::apply(state, fact, event),
        Fact::Unknown { .. } => Vec::new(),
    }
}

fn cause_of(event: &Event) -> Cause {
    Cause {
        command: event.causation.clone(),
        correlation: event.correlation.clone(),
    }
}

impl State {
    /// Returns the entry of this key, or nothing if there is none (any more).
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<Value> {
        let entry = self.find(key)?;
        Some(serde_json::to_value(entry).expect("an entry of the state has string keys only"))
    }

    /// Returns the entry of this key as JSON, or nothing if there is none (any more).
    #[must_use]
    pub fn entry_json(&self, key: &str) -> Option<Vec<u8>> {
        self.find(key).map(|entry| to_json(&entry))
    }

    fn find(&self, key: &str) -> Option<Entry<'_>> {
        let (kind, id) = kind_of(key)?;
        (kind.find)(self, id)
    }

    /// Returns all entries by key.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<String, Value> {
        let keys = KINDS.iter().flat_map(|kind| (kind.keys)(self));
        keys.filter_map(|key| self.entry(&key).map(|value| (key, value)))
            .collect()
    }

    /// Returns the state that has these entries and ends with this sequence number.
    ///
    /// # Errors
    /// [`EntryError`] for the first entry that is not one of a state.
    pub fn from_entries(
        sequence: u64,
        entries: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<Self, EntryError> {
        let mut state = Self {
            sequence,
            ..Self::default()
        };
        for (key, value) in entries {
            state.put(&key, value)?;
        }
        Ok(state)
    }

    fn put(&mut self, key: &str, value: Value) -> Result<(), EntryError> {
        let error = |source| EntryError {
            key: key.to_owned(),
            source,
        };
        let (kind, _) = kind_of(key).ok_or_else(|| error(None))?;
        (kind.put)(self, value).map_err(|source| error(Some(source)))
    }
}
