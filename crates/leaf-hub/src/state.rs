//! Keeps the copy of one leaf's state: live changes at once, and what was missed by reading the leaf's bucket from the last
//! known sequence number on, or as a whole.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use leaf_bus::hub::{LiveState, RemoteError, RemoteLeaf, StateChange, StateCopy};
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::id::{InstanceId, LeafName};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::heard::Works;

/// How long to wait before what may have been missed is read: more of it may come.
const SOON: Duration = Duration::from_millis(200);
/// How often changes are read at a claim though none is known to be missing.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The pauses after an error, which double.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

/// The most entries and bytes of a leaf's state that are copied: a leaf that has more, or feigns it, must not fill the store of
/// all.
const MOST_ENTRIES: usize = 10_000;
const MOST_BYTES: usize = 64 << 20;

/// The reasons to read the leaf's state: how often each has occurred.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Signals {
    /// Nothing is known of it.
    pub(crate) all: u64,
    /// Some changes may have been missed.
    pub(crate) changes: u64,
    /// The leaf has renewed its claim.
    pub(crate) claims: u64,
    /// The instance that holds the leaf's name.
    pub(crate) holder: Option<InstanceId>,
}

/// What to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Changes,
    All,
}

#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("can't read the leaf's state")]
    Read(#[from] RemoteError),
    #[error("can't write the copy")]
    Write(#[from] StreamError),
    #[error("the leaf's state has more than {MOST_ENTRIES} entries or {MOST_BYTES} bytes, and is not copied")]
    TooMuch,
}

/// Keeps the copy of a leaf's state.
pub(crate) struct StateTask {
    states: StateCopy,
    leaf: LeafName,
    remote: RemoteLeaf,
    signals: watch::Receiver<Signals>,
    works: Works,
    /// Those that were followed.
    followed: Signals,
    /// The sequence number of the leaf's bucket up to which everything is copied; `None` until the whole was read.
    synced: Option<u64>,
    /// The sizes of the copied entries.
    sizes: Sizes,
    wanted: Option<(Wanted, Instant)>,
    looked: Instant,
    pause: Duration,
    complaint: String,
}

impl StateTask {
    pub(crate) fn new(
        states: StateCopy,
        leaf: LeafName,
        remote: RemoteLeaf,
        signals: watch::Receiver<Signals>,
        works: Works,
    ) -> Self {
        Self {
            works,
            states,
            leaf,
            remote,
            signals,
            followed: Signals::default(),
            synced: None,
            sizes: Sizes::default(),
            wanted: None,
            looked: Instant::now(),
            pause: FIRST_PAUSE,
            complaint: String::new(),
        }
    }

    /// Runs as long as the agent does.
    pub(crate) async fn run(mut self) -> StreamError {
        let mut live = match self.remote.live_state().await {
            Ok(live) => live,
            Err(error) => return error,
        };
        loop {
            tokio::select! {
                biased;
                signalled = self.signals.changed() => match signalled {
                    Ok(()) => self.follow(),
                    Err(_) => return StreamError::Disconnected,
                },
                changed = live.next() => match changed {
                    Ok(change) => self.heard(change, &mut live).await,
                    Err(error) => return error,
                },
                () = until(self.wanted.map(|(_, time)| time)) => self.sync(&mut live).await,
            }
        }
    }

    fn follow(&mut self) {
        let signals = *self.signals.borrow_and_update();
        let before = std::mem::replace(&mut self.followed, signals);
        if let Some(holder) = signals.holder {
            self.remote.is_held_by(holder);
        }
        if signals.all != before.all {
            self.synced = None;
            self.want(Wanted::All, Duration::ZERO);
        }
        if signals.changes != before.changes {
            self.want(Wanted::Changes, SOON);
        }
        // An agent that was started again grants the claims of a holder that it knows, and has read nothing yet.
        let is_due = self.synced.is_none() || self.looked.elapsed() >= LOOK_EVERY;
        if signals.claims != before.claims && is_due {
            self.want(Wanted::Changes, Duration::ZERO);
        }
    }

    /// What is wanted already is not put off.
    fn want(&mut self, wanted: Wanted, after: Duration) {
        let time = Instant::now() + after;
        self.wanted = Some(match self.wanted {
            Some((before, earlier)) => (before.max(wanted), earlier.min(time)),
            None => (wanted, time),
        });
    }

    /// Writes live changes at once.
    async fn heard(&mut self, first: StateChange, live: &mut LiveState) {
        let mut heard = vec![first];
        while let Some(change) = live.arrived() {
            heard.push(change);
        }
        let Some(mut synced) = self.synced else {
            return;
        };
        let mut entries = BTreeMap::new();
        let mut wanted = None;
        for change in heard {
            if change.sequence == synced.saturating_add(1) {
                synced = change.sequence;
            } else if change.sequence <= synced {
                // The leaf's bucket was made anew.
                wanted = Some(Wanted::All);
            } else {
                // Others were missed, or are another leaf's in the same bucket.
                wanted = wanted.max(Some(Wanted::Changes));
            }
            entries.insert(change.key, change.value);
        }
        match self.apply(entries.into_iter().collect()).await {
            Ok(()) => self.synced = Some(synced),
            Err(error) => {
                self.complain(&error);
                wanted = wanted.max(Some(Wanted::Changes));
            }
        }
        if let Some(wanted) = wanted {
            self.want(wanted, SOON);
        }
    }

    async fn sync(&mut self, live: &mut LiveState) {
        let Some((wanted, _)) = self.wanted.take() else {
            return;
        };
        self.looked = Instant::now();
        let synced = match (self.synced, wanted) {
            (Some(synced), Wanted::Changes) => self.read_changes(synced).await,
            _ => self.read_all().await,
        };
        match synced {
            Ok(synced) => {
                self.synced = Some(synced);
                self.pause = FIRST_PAUSE;
                self.complaint.clear();
                // What was read has these already, if it was stored before.
                let mut is_missing = false;
                while let Some(change) = live.arrived() {
                    is_missing |= change.sequence > synced;
                }
                if is_missing {
                    self.want(Wanted::Changes, Duration::ZERO);
                }
            }
            Err(error) => {
                self.complain(&error);
                // The bucket may be gone, and is made anew where the whole is read.
                let all = matches!(error, SyncError::Write(StreamError::NoStream { .. }));
                self.want(if all { Wanted::All } else { wanted }, self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Writes the entries that changed after a sequence number, and returns the last one.
    async fn read_changes(&mut self, synced: u64) -> Result<u64, SyncError> {
        let (entries, last) = self.read(synced.saturating_add(1)).await?;
        self.apply(entries.into_iter().collect()).await?;
        Ok(last.max(synced))
    }

    /// Writes entries, unless the leaf's state would be too large.
    async fn apply(&mut self, entries: Vec<(String, Option<Bytes>)>) -> Result<(), SyncError> {
        for (key, value) in &entries {
            self.sizes.put(key, value.as_ref().map(Bytes::len));
        }
        if self.sizes.are_too_much() {
            return Err(SyncError::TooMuch);
        }
        let keys: Vec<String> = entries.iter().map(|(key, _)| key.clone()).collect();
        let applied = self.states.apply(&self.leaf, entries).await;
        // After an error, some of them may be there.
        self.works.changed(&self.leaf, keys.iter().map(String::as_str));
        Ok(applied?)
    }

    /// Writes the entries that differ, removes others, and returns the last sequence number.
    async fn read_all(&mut self) -> Result<u64, SyncError> {
        let (theirs, last) = self.read(1).await?;
        let ours = self.states.entries(&self.leaf).await?;
        self.sizes = Sizes::default();
        for (key, value) in &ours {
            self.sizes.put(key, Some(value.len()));
        }
        let gone = ours.keys().filter(|key| !theirs.contains_key(*key));
        let mut entries: Vec<(String, Option<Bytes>)> = gone.map(|key| (key.clone(), None)).collect();
        for (key, value) in theirs {
            let found = ours.get(&key).map(Vec::as_slice);
            if found != value.as_deref() {
                entries.push((key, value));
            }
        }
        self.apply(entries).await?;
        Ok(last)
    }

    /// Reads the last value of each entry that was written with this sequence number or a later one.
    async fn read(&self, from: u64) -> Result<(BTreeMap<String, Option<Bytes>>, u64), SyncError> {
        let (mut entries, mut sizes, mut next) = (BTreeMap::new(), Sizes::default(), from);
        loop {
            let page = self.remote.state_from(next).await?;
            let (is_empty, before) = (page.changes.is_empty(), next);
            for change in page.changes {
                next = next.max(change.sequence.saturating_add(1));
                sizes.put(&change.key, change.value.as_ref().map(Bytes::len));
                entries.insert(change.key, change.value);
            }
            if sizes.are_too_much() || (next == before && !is_empty && !page.end) {
                return Err(SyncError::TooMuch);
            }
            if page.end || is_empty {
                return Ok((entries, next - 1));
            }
        }
    }

    fn complain(&mut self, error: &SyncError) {
        let why = chain(error);
        if self.complaint != why {
            tracing::warn!(leaf = %self.leaf, error = why, "can't copy the state of a leaf: this is tried again");
            self.complaint = why;
        }
    }
}

/// The sizes of entries.
#[derive(Default)]
struct Sizes {
    of: BTreeMap<String, usize>,
    bytes: usize,
}

impl Sizes {
    fn put(&mut self, key: &str, size: Option<usize>) {
        let before = match size {
            Some(size) => {
                let size = key.len() + size;
                self.bytes += size;
                self.of.insert(key.to_owned(), size)
            }
            None => self.of.remove(key),
        };
        self.bytes -= before.unwrap_or(0);
    }

    fn are_too_much(&self) -> bool {
        self.of.len() > MOST_ENTRIES || self.bytes > MOST_BYTES
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_of_entries_are_those_of_their_last_values() {
        let mut sizes = Sizes::default();
        sizes.put("a", Some(10));
        sizes.put("a", Some(3));
        sizes.put("b", Some(MOST_BYTES));
        assert!(sizes.are_too_much());
        sizes.put("b", None);
        sizes.put("c", None);
        assert_eq!((sizes.of.len(), sizes.bytes), (1, 4));
        assert!(!sizes.are_too_much());
        for n in 0..MOST_ENTRIES {
            sizes.put(&format!("key-{n}"), Some(0));
        }
        assert!(sizes.are_too_much());
    }
}
