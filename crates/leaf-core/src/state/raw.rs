//! Raw entries and events, which a newer leafd wrote and this one can't read ([decision
//! 9](../../../../docs/decisions/0009-what-cannot-be-read-is-kept-and-not-acted-on.md)): entries are kept unchanged,
//! and events in entries of their own, `raw.<sequence>`, until a leafd that can read them adds them to the state. Until
//! then the leaf does not act on their aggregates.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Entry, Kind, State, add, kind_of, same_key};
use crate::aggregate::Aggregate;
use crate::event::{Event, Fact};
use crate::id::{CommandId, JobId};

/// The parts of the state that this version can't read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Raw {
    /// Whole entries, by key.
    entries: BTreeMap<String, RawValue>,
    /// Events that were not added to the state, by sequence number.
    events: BTreeMap<u64, RawEvent>,
    /// Unknown fields, by the key of their entry.
    fields: BTreeMap<String, Value>,
    /// Entries that changed because kept events became readable, until the next event is recorded.
    caught_up: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct RawValue {
    value: Value,
    reason: String,
}

/// An event that a newer leafd recorded: the entry `raw.<sequence>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RawEvent {
    /// Its sequence number.
    pub sequence: u64,
    /// When it was recorded.
    pub time: Timestamp,
    /// The command that caused it, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub causation: Option<CommandId>,
    /// The sender's correlation id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation: Option<String>,
    /// Its `ce-type`.
    pub kind: String,
    /// The key of the entry that it is about: `container.web`.
    pub about: String,
    /// Its body.
    pub body: Value,
}

/// A raw entry: written by a newer leafd, and unreadable for this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RawEntry {
    /// The key of its entry in the state: `container.web`.
    pub key: String,
    /// The part that could not be read.
    pub reason: String,
}

pub(super) const KIND: Kind = Kind {
    name: "raw",
    keys: |state| {
        state
            .raw
            .events
            .keys()
            .map(|sequence| key_of(*sequence))
            .collect()
    },
    find: |state, sequence| state.raw.events.get(&sequence.parse().ok()?).map(Entry::RawEvent),
    put: |state, key, value| {
        let event: RawEvent = serde_json::from_value(value)?;
        same_key(key, &key_of(event.sequence))?;
        state.raw.events.insert(event.sequence, event);
        Ok(())
    },
    remove: |state, sequence| {
        if let Ok(sequence) = sequence.parse() {
            state.raw.events.remove(&sequence);
        }
    },
    renewed: false,
};

/// Returns the key with twenty digits, so that text order is numeric order.
fn key_of(sequence: u64) -> String {
    format!("raw.{sequence:020}")
}

impl RawEvent {
    fn of(event: &Event, about: String) -> Self {
        Self {
            sequence: event.sequence,
            time: event.time,
            causation: event.causation.clone(),
            correlation: event.correlation.clone(),
            kind: event.fact.kind().to_owned(),
            about,
            body: event.fact.body(),
        }
    }

    fn reason(&self) -> String {
        format!("event {} of type {}", self.sequence, self.kind)
    }

    /// Returns the event, if this version can read it.
    fn read(&self) -> Option<Event> {
        Some(Event {
            sequence: self.sequence,
            time: self.time,
            causation: self.causation.clone(),
            correlation: self.correlation.clone(),
            fact: Fact::read(&self.kind, &self.body)?,
        })
    }
}

impl State {
    /// Returns everything in the state that this version can't read, sorted by key; of several events about one
    /// aggregate only the first.
    #[must_use]
    pub fn raw_entries(&self) -> Vec<RawEntry> {
        let mut reasons: BTreeMap<&str, String> = BTreeMap::new();
        for (key, entry) in &self.raw.entries {
            reasons.insert(key, entry.reason.clone());
        }
        for event in self.raw.events.values() {
            reasons.entry(&event.about).or_insert_with(|| event.reason());
        }
        let all = reasons.into_iter().map(|(key, reason)| RawEntry {
            key: key.to_owned(),
            reason,
        });
        all.collect()
    }

    /// Returns the raw entry of an aggregate, if the leaf must not act on the aggregate because of it. That never holds
    /// for the leaf itself.
    #[must_use]
    pub fn raw_entry_of(&self, about: Aggregate<'_>) -> Option<RawEntry> {
        if self.raw.entries.is_empty() && self.raw.events.is_empty() {
            return None;
        }
        let key = match about {
            Aggregate::Leaf => return None,
            Aggregate::Device(_) | Aggregate::Container(_) | Aggregate::Job(_) | Aggregate::Secret(_) => {
                about.key()
            }
        };
        self.is_raw(&key)
            .then(|| self.raw_entries().into_iter().find(|raw| raw.key == key))?
    }

    /// Returns whether a raw entry contains a field with this name and value: an address or a port that is in use.
    #[must_use]
    pub fn raw_entry_has(&self, field: &str, value: &Value) -> bool {
        let entries = self.raw.entries.values().map(|entry| &entry.value);
        let events = self.raw.events.values().map(|event| &event.body);
        entries.chain(events).any(|found| has(found, field, value))
    }

    /// Returns the ids of all jobs, including raw ones.
    #[must_use]
    pub fn job_ids(&self) -> BTreeSet<JobId> {
        let entries = self.raw.entries.keys().map(String::as_str);
        let events = self.raw.events.values().map(|event| event.about.as_str());
        let raw = entries
            .chain(events)
            .filter_map(|key| key.strip_prefix("job.")?.parse().ok());
        self.jobs.keys().copied().chain(raw).collect()
    }

    /// Returns whether the entry with this key, or an event about it, can't be read.
    pub(super) fn is_raw(&self, key: &str) -> bool {
        self.raw.entries.contains_key(key) || self.raw.events.values().any(|event| event.about == key)
    }

    /// Keeps an event that can't be added to the state, and returns the key of its entry. The entry that it is about is
    /// frozen from now on.
    pub(super) fn keep_event(&mut self, event: &Event, about: String) -> Vec<String> {
        let key = key_of(event.sequence);
        let raw = RawEvent::of(event, about);
        self.freeze(&raw);
        self.raw.events.insert(event.sequence, raw);
        vec![key]
    }

    /// Removes an unreadable event's aggregate from the known state, and keeps its entry unchanged.
    fn freeze(&mut self, event: &RawEvent) {
        let known = kind_of(&event.about).filter(|(kind, _)| !kind.renewed);
        let Some(((kind, id), entry)) = known.zip(self.entry(&event.about)) else {
            return;
        };
        if self.raw_value(&event.about).is_none() {
            (kind.remove)(self, id);
            self.forget_fields(&event.about);
            self.keep_entry(&event.about, entry, event.reason());
        }
    }

    /// Keeps an unreadable entry.
    pub(super) fn keep_entry(&mut self, key: &str, value: Value, reason: String) {
        self.raw
            .entries
            .insert(key.to_owned(), RawValue { value, reason });
    }

    /// Returns the raw entry with this key, if any.
    pub(super) fn raw_value(&self, key: &str) -> Option<&Value> {
        self.raw.entries.get(key).map(|entry| &entry.value)
    }

    pub(super) fn raw_keys(&self) -> impl Iterator<Item = String> {
        self.raw.entries.keys().cloned()
    }

    /// Keeps an entry's unknown fields.
    pub(super) fn keep_fields(&mut self, key: &str, fields: Value) {
        self.raw.fields.insert(key.to_owned(), fields);
    }

    /// Returns the unknown fields of the entry with this key.
    pub(super) fn unknown_fields(&self, key: &str) -> Option<&Value> {
        self.raw.fields.get(key)
    }

    pub(super) fn has_unknown_fields(&self) -> bool {
        !self.raw.fields.is_empty()
    }

    pub(super) fn forget_fields(&mut self, key: &str) {
        self.raw.fields.remove(key);
    }

    /// Adds kept events that are readable now to the state, in order, up to the first unreadable one of each aggregate.
    pub(super) fn catch_up(&mut self) {
        let mut blocked: BTreeSet<String> = self.raw.entries.keys().cloned().collect();
        for (sequence, event) in std::mem::take(&mut self.raw.events) {
            let readable = (!blocked.contains(&event.about)).then(|| event.read()).flatten();
            match readable {
                Some(read) => {
                    let changed = add(self, &read);
                    self.raw.caught_up.extend(changed);
                    self.raw.caught_up.push(key_of(sequence));
                }
                None => {
                    if event.about != Aggregate::Leaf.key() {
                        blocked.insert(event.about.clone());
                    }
                    self.freeze(&event);
                    self.raw.events.insert(sequence, event);
                }
            }
        }
    }

    /// Takes the keys of the entries that changed because kept events became readable.
    pub(super) fn take_caught_up(&mut self) -> Vec<String> {
        std::mem::take(&mut self.raw.caught_up)
    }
}

fn has(found: &Value, field: &str, value: &Value) -> bool {
    match found {
        Value::Object(fields) => {
            fields.get(field) == Some(value) || fields.values().any(|inner| has(inner, field, value))
        }
        Value::Array(items) => items.iter().any(|inner| has(inner, field, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
