//! Snapshots: events that hold the whole state, and the entry `snapshot` with the position of the newest one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Entry, Kind, State};
use crate::event::LeafSnapshotted;
use crate::id::LeafName;

/// The key of the entry with the sequence number at which the newest snapshot begins.
pub const SNAPSHOT_KEY: &str = "snapshot";

pub(super) const KIND: Kind = Kind {
    name: SNAPSHOT_KEY,
    keys: |state| {
        (state.snapshot_sequence > 0)
            .then(|| SNAPSHOT_KEY.to_owned())
            .into_iter()
            .collect()
    },
    find: |state, id| {
        (id.is_empty() && state.snapshot_sequence > 0).then_some(Entry::Snapshot(state.snapshot_sequence))
    },
    put: |state, _, value| {
        state.snapshot_sequence = serde_json::from_value(value)?;
        Ok(())
    },
    remove: |state, _| state.snapshot_sequence = 0,
    renewed: true,
};

/// The parts of a snapshot that were read so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Partial {
    parts: u32,
    entries: BTreeMap<String, Value>,
}

/// Adds a part of a snapshot. A snapshot is restored once all its parts were read in sequence; a leaf may have ended in
/// the middle of one.
pub(super) fn restore(state: &mut State, snapshot: &LeafSnapshotted, sequence: u64) -> Vec<String> {
    let mut partial = if snapshot.part == 1 {
        Partial::default()
    } else {
        std::mem::take(&mut state.partial)
    };
    if snapshot.part != partial.parts + 1 {
        return Vec::new();
    }
    partial.parts = snapshot.part;
    partial.entries.extend(snapshot.entries.clone());
    if snapshot.part < snapshot.parts {
        state.partial = partial;
        return Vec::new();
    }
    let mut keys: BTreeSet<String> = state.entries().into_keys().collect();
    *state = State {
        sequence,
        snapshot_sequence: sequence.saturating_sub(u64::from(snapshot.parts.saturating_sub(1))),
        ..State::default()
    };
    for (key, value) in partial.entries.into_iter().filter(|(key, _)| key != SNAPSHOT_KEY) {
        state.put(&key, value);
    }
    state.catch_up();
    keys.extend(state.take_caught_up());
    keys.extend(state.entries().into_keys());
    keys.into_iter().collect()
}

impl State {
    /// Returns the snapshot of the state in parts of about `part_bytes`, each with at least one entry.
    #[must_use]
    pub fn snapshot(&self, leaf: &LeafName, epoch: u64, part_bytes: usize) -> Vec<LeafSnapshotted> {
        let mut parts: Vec<BTreeMap<String, Value>> = vec![BTreeMap::new()];
        let mut size = 0;
        // The position of the newest snapshot follows from the snapshot itself.
        for (key, value) in self.entries().into_iter().filter(|(key, _)| key != SNAPSHOT_KEY) {
            let bytes = key.len() + value.to_string().len();
            if size > 0 && size + bytes > part_bytes {
                parts.push(BTreeMap::new());
                size = 0;
            }
            size += bytes;
            parts
                .last_mut()
                .expect("there is at least one part")
                .insert(key, value);
        }
        let count = u32::try_from(parts.len()).expect("a state has fewer than 2^32 parts");
        (1..)
            .zip(parts)
            .map(|(part, entries)| LeafSnapshotted {
                leaf: leaf.clone(),
                epoch,
                part,
                parts: count,
                entries,
            })
            .collect()
    }
}
