//! The state of a leaf: the sum of its events. [`apply`] adds one event to it.
//!
//! The state is a set of entries by key (`leaf`, `snapshot`, `device.<id>`, `container.<token>`, `job.<id>`,
//! `secret.<token>`). In this form it is stored in the journal, shown in the KV bucket `leaf_state`, and split into the parts of a snapshot. The
//! kinds of entries, with the effects of their events, are in one module per noun; [`KINDS`] lists them.

mod container;
mod hardware;
mod job;
mod leaf;
mod raw;
mod secret;
mod snapshot;

pub use job::REMEMBERED_JOBS;
pub use leaf::{ChangeStage, LeafState, ToldChange};
pub use raw::{RawEntry, RawEvent};
pub(crate) use snapshot::SHARES;
pub use snapshot::{SNAPSHOT_KEY, fit_entry};

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::cause::Cause;
use crate::compatibility::{add_unknown_part, must_be_understood, unknown_part};
use crate::container::Container;
use crate::event::{Event, Fact, LeafFact};
use crate::hardware::Device;
use crate::id::{ContainerName, DeviceId, JobId, SecretName};
use crate::job::Job;
use crate::json::to_json;
use crate::secret::SecretRecord;

/// The state of a leaf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The sequence number of the last applied event; 0 before the first.
    pub sequence: u64,
    /// The sequence number at which the newest snapshot begins; 0 before the first.
    pub snapshot_sequence: u64,
    /// The leaf itself, since its first start.
    pub leaf: Option<LeafState>,
    /// The known devices.
    pub devices: BTreeMap<DeviceId, Device>,
    /// Its containers.
    pub containers: BTreeMap<ContainerName, Container>,
    /// Its jobs: all that have not ended, and the last [`REMEMBERED_JOBS`] that have ended.
    pub jobs: BTreeMap<JobId, Job>,
    /// Its secrets, without their content.
    pub secrets: BTreeMap<SecretName, SecretRecord>,
    partial: snapshot::Partial,
    raw: raw::Raw,
}

/// A borrowed entry of the state.
#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Leaf(&'a LeafState),
    Snapshot(u64),
    Device(&'a Device),
    Container(&'a Container),
    Job(&'a Job),
    Secret(&'a SecretRecord),
    RawEvent(&'a RawEvent),
    Raw(&'a Value),
}

/// The operations on the entries of one kind.
struct Kind {
    /// The first part of their keys: `container`. The id follows after a dot; a kind with a single entry has no ids.
    name: &'static str,
    /// Returns the keys of the entries in the state.
    keys: fn(&State) -> Vec<String>,
    /// Returns the entry with this id.
    find: for<'a> fn(&'a State, &str) -> Option<Entry<'a>>,
    /// Adds a stored entry under its key.
    put: fn(&mut State, &str, Value) -> Result<(), serde_json::Error>,
    /// Removes the entry with this id.
    remove: fn(&mut State, &str),
    /// Whether every leafd writes the entry again by itself, so that an unreadable one prevents nothing.
    renewed: bool,
}

/// The kinds of entries.
const KINDS: &[Kind] = &[
    leaf::KIND,
    snapshot::KIND,
    hardware::KIND,
    container::KIND,
    job::KIND,
    secret::KIND,
    raw::KIND,
];

/// Returns the kind of a key and the id in it.
fn kind_of(key: &str) -> Option<(&'static Kind, &str)> {
    let (name, id) = key.split_once('.').unwrap_or((key, ""));
    let kind = KINDS.iter().find(|kind| kind.name == name)?;
    Some((kind, id))
}

/// Checks that an entry is stored under its own key.
fn same_key(key: &str, own: &str) -> Result<(), serde_json::Error> {
    if key == own {
        Ok(())
    } else {
        Err(serde::de::Error::custom(format!(
            "it belongs under the key {own}"
        )))
    }
}

/// Adds one event to the state, and returns the keys of the entries that it changed.
///
/// An event that does not fit (about an unknown container, for example) changes only the sequence number: a replay may
/// begin in the middle of a history. An event that this version can't read is kept, as are later ones about the same
/// aggregate, until a leafd can read them all; see [`State::raw_entries`].
pub fn apply(state: &mut State, event: &Event) -> Vec<String> {
    state.sequence = event.sequence;
    if !matches!(event.fact, Fact::Leaf(LeafFact::Snapshotted(_))) {
        state.partial = snapshot::Partial::default();
    }
    let mut keys = state.take_caught_up();
    let waits = match &event.fact {
        Fact::Unknown(fact) => Some(fact.about()),
        known => known
            .about()
            .and_then(|about| Some(state.raw_entry_of(about)?.key)),
    };
    keys.extend(match waits {
        Some(about) => state.keep_event(event, about),
        None => add(state, event),
    });
    if state.has_unknown_fields() {
        for key in &keys {
            if state.find(key).is_none() {
                state.forget_fields(key);
            }
        }
    }
    keys
}

/// Adds a readable event.
fn add(state: &mut State, event: &Event) -> Vec<String> {
    match &event.fact {
        Fact::Leaf(fact) => leaf::apply(state, fact, event),
        Fact::Hardware(fact) => hardware::apply(state, fact),
        Fact::Container(fact) => container::apply(state, fact, event),
        Fact::Job(fact) => job::apply(state, fact, event),
        Fact::Secret(fact) => secret::apply(state, fact, event),
        Fact::Unknown(_) => Vec::new(),
    }
}

fn cause_of(event: &Event) -> Cause {
    Cause {
        command: event.causation.clone(),
        correlation: event.correlation.clone(),
    }
}

impl State {
    /// Returns the entry with this key, if it exists.
    #[must_use]
    pub fn entry(&self, key: &str) -> Option<Value> {
        let entry = self.find(key)?;
        let mut value = serde_json::to_value(entry).expect("an entry of the state has string keys only");
        if let Some(fields) = self.unknown_fields(key) {
            add_unknown_part(&mut value, fields);
        }
        Some(value)
    }

    /// Returns the entry with this key as JSON, if it exists.
    #[must_use]
    pub fn entry_json(&self, key: &str) -> Option<Vec<u8>> {
        if self.unknown_fields(key).is_some() {
            return self.entry(key).map(|entry| to_json(&entry));
        }
        self.find(key).map(|entry| to_json(&entry))
    }

    fn find(&self, key: &str) -> Option<Entry<'_>> {
        if let Some(raw) = self.raw_value(key) {
            return Some(Entry::Raw(raw));
        }
        let (kind, id) = kind_of(key)?;
        (kind.find)(self, id)
    }

    /// Returns all entries by key, including raw ones.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<String, Value> {
        let keys = KINDS.iter().flat_map(|kind| (kind.keys)(self));
        keys.chain(self.raw_keys())
            .filter_map(|key| self.entry(&key).map(|value| (key, value)))
            .collect()
    }

    /// Returns the state with these entries and this last sequence number. Entries that this version can't read are
    /// kept raw, see [`Self::raw_entries`].
    #[must_use]
    pub fn from_entries(sequence: u64, entries: impl IntoIterator<Item = (String, Value)>) -> Self {
        let mut state = Self {
            sequence,
            ..Self::default()
        };
        for (key, value) in entries {
            state.put(&key, value);
        }
        state.catch_up();
        state
    }

    fn put(&mut self, key: &str, value: Value) {
        let Some((kind, id)) = kind_of(key) else {
            return self.keep_entry(key, value, "its kind is unknown".to_owned());
        };
        if let Err(error) = (kind.put)(self, key, value.clone()) {
            if kind.renewed {
                self.keep_fields(key, value);
            } else {
                self.keep_entry(key, value, error.to_string());
            }
            return;
        }
        let known = self.entry(key).unwrap_or_default();
        let Some(unknown) = unknown_part(&value, &known) else {
            return;
        };
        match must_be_understood(&unknown, &known) {
            Some(place) if !kind.renewed => {
                (kind.remove)(self, id);
                self.keep_entry(key, value, format!("the value of {place} is unknown"));
            }
            _ => self.keep_fields(key, unknown),
        }
    }
}
