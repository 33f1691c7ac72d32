//! Snapshots: events that hold the whole state, and the entry `snapshot` with the position of the newest one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Entry, Kind, State};
use crate::aggregate::Aggregate;
use crate::event::{LeafSnapshotted, shorten_result};
use crate::id::{ContainerName, JobId, LeafName};
use crate::json::to_json;
use crate::text::shorten_text;

/// The key of the entry with the sequence number at which the newest snapshot begins.
pub const SNAPSHOT_KEY: &str = "snapshot";

/// The parts of a message's room to which a text or a list is shortened, one after the other, until all fits.
pub(crate) const SHARES: [usize; 3] = [4, 16, 64];

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

/// Returns an entry of the state, as JSON, without the oldest of its revisions that don't fit into this many bytes; `None`
/// if it doesn't fit without revisions either.
#[must_use]
pub fn fit_entry(json: &[u8], max_bytes: usize) -> Option<Vec<u8>> {
    if json.len() <= max_bytes {
        return Some(json.to_vec());
    }
    let mut entry: Value = serde_json::from_slice(json).ok()?;
    loop {
        let revisions = entry.get_mut("revisions")?.as_array_mut()?;
        if revisions.is_empty() {
            return None;
        }
        revisions.remove(0);
        let json = to_json(&entry);
        if json.len() <= max_bytes {
            return Some(json);
        }
    }
}

impl State {
    /// Makes the entries of containers and jobs that have more than this many bytes smaller, and returns their keys: a
    /// container forgets its oldest revisions, then errors, reasons, lists of units and results are shortened. What was accepted with this
    /// limit fits then.
    pub(crate) fn fit_entries(&mut self, max_bytes: usize) -> Vec<String> {
        let mut fitted = Vec::new();
        let names: Vec<ContainerName> = self.containers.keys().cloned().collect();
        for name in names {
            let key = Aggregate::Container(&name).key();
            if self.fits(&key, max_bytes) {
                continue;
            }
            while !self.fits(&key, max_bytes)
                && let Some(container) = self.containers.get_mut(&name)
                && !container.revisions.is_empty()
            {
                container.revisions.remove(0);
            }
            for share in SHARES {
                if !self.fits(&key, max_bytes)
                    && let Some(container) = self.containers.get_mut(&name)
                {
                    for text in container.error.iter_mut().chain(&mut container.reverted) {
                        shorten_text(text, max_bytes / share);
                    }
                    if let Some(update) = &mut container.last_update {
                        update.shorten(max_bytes / share);
                    }
                }
            }
            fitted.push(key);
        }
        let ids: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in ids {
            let key = Aggregate::Job(&id).key();
            if self.fits(&key, max_bytes) {
                continue;
            }
            for share in SHARES {
                if !self.fits(&key, max_bytes)
                    && let Some(job) = self.jobs.get_mut(&id)
                {
                    if let Some(result) = &mut job.result {
                        shorten_result(result, max_bytes / share);
                    }
                    if let Some(error) = &mut job.error {
                        shorten_text(error, max_bytes / share);
                    }
                }
            }
            fitted.push(key);
        }
        fitted
    }

    fn fits(&self, key: &str, max_bytes: usize) -> bool {
        self.entry_json(key).is_none_or(|json| json.len() <= max_bytes)
    }

    /// Returns the snapshot of the state in parts of about `part_bytes`, each with at least one entry.
    #[must_use]
    pub fn snapshot(&self, leaf: &LeafName, epoch: u64, part_bytes: usize) -> Vec<LeafSnapshotted> {
        let mut parts: Vec<BTreeMap<String, Value>> = vec![BTreeMap::new()];
        let mut size = 0;
        // The position of the newest snapshot follows from the snapshot itself.
        for (key, value) in self.entries().into_iter().filter(|(key, _)| key != SNAPSHOT_KEY) {
            // Quotes, a colon and a comma.
            let bytes = key.len() + value.to_string().len() + 4;
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
