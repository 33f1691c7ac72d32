//! The thread that writes. Changes that are queued while it waits for the disk share its next transaction. If the disk
//! is full, it keeps the changes, reopens the file and retries until there is room.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use leaf_core::event::EventRecord;
use leaf_core::signed::Marks;
use redb::Database;
use tokio::sync::{oneshot, watch};

use crate::change::Change;
use crate::encode::Head;
use crate::error::CommitError;
use crate::file::{self, StoreError};
use crate::lock::DirectoryLock;
use crate::recent::Recent;
use crate::{Held, JournalHealth};

/// The most bytes of events, entries and commands in one transaction.
const GROUP_BYTES: usize = 2 << 20;
/// The first pause before a retry on a full disk.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest pause before a retry on a full disk.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long to rely on the file system's report that there is no room.
const TRUST_FREE_BYTES: Duration = Duration::from_secs(30);
/// The bytes that a transaction needs beside its records: copied pages, the allocator's own.
const SLACK_BYTES: u64 = 256 << 10;

/// A request to the thread.
pub(crate) enum Request {
    Change {
        change: Change,
        bytes: usize,
        done: oneshot::Sender<Result<(), CommitError>>,
    },
    /// Close the file when everything before this is in it, and answer.
    Close(oneshot::Sender<()>),
}

/// The data that the thread shares with the handles. A reader keeps the read lock while it reads, so that no reader has the old
/// database when it is reopened.
pub(crate) struct Shared {
    pub directory: PathBuf,
    pub file: PathBuf,
    pub cache_bytes: usize,
    pub database: RwLock<Option<Database>>,
    pub recent: RwLock<Recent>,
    pub held: watch::Sender<Held>,
    pub marks: watch::Sender<Marks>,
    pub health: watch::Sender<JournalHealth>,
    pub transactions: AtomicU64,
    pub queued_bytes: AtomicUsize,
}

impl Shared {
    /// Returns how many bytes are free for this user in the journal's directory.
    pub(crate) fn free_bytes(&self) -> std::io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.directory)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    pub(crate) fn with_database<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        match database.as_ref() {
            Some(database) => work(database),
            None => Err(StoreError::from(redb::Error::DatabaseClosed)),
        }
    }

    /// Drops the database, which is unusable after a failed write, and opens the file again.
    fn reopen(&self) -> Result<(), StoreError> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(dead) = database.take() {
            file::close(dead);
        }
        *database = Some(file::open(&self.file, self.cache_bytes)?);
        Ok(())
    }

    fn close(&self) {
        let database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(database) = database {
            file::close(database);
        }
    }
}

struct Pending {
    change: Change,
    bytes: usize,
    done: oneshot::Sender<Result<(), CommitError>>,
}

pub(crate) struct Writer {
    pub shared: Arc<Shared>,
    pub requests: Receiver<Request>,
    pub head: Head,
    pub lock: DirectoryLock,
    /// The channel of the answer to a close request, if there was one.
    pub closing: Option<oneshot::Sender<()>>,
}

impl Writer {
    /// Runs until a close request or until the last handle is dropped.
    pub(crate) fn run(mut self) {
        let mut ended: Option<CommitError> = None;
        let mut waiting: Vec<Request> = Vec::new();
        let mut open = true;
        while open {
            if waiting.is_empty() {
                match self.requests.recv() {
                    Ok(request) => waiting.push(request),
                    Err(_) => break,
                }
            }
            let (group, go_on) = self.gather(&mut waiting);
            open = go_on;
            if let Some(error) = &ended {
                self.answer(group, &Err(error.clone()));
                continue;
            }
            let (group, next) = self.check(group);
            if group.is_empty() {
                continue;
            }
            let mut group = group;
            let result = self.commit(&group, &next, &mut waiting);
            match &result {
                Ok(()) => {
                    self.remember(&mut group);
                    self.announce();
                }
                Err(error) => {
                    // Dropped changes leave a gap, so no change may follow.
                    ended = Some(error.clone());
                    if let CommitError::Failed(error) = error {
                        self.shared.health.send_replace(JournalHealth::Failed {
                            reason: error.to_string(),
                        });
                    }
                }
            }
            self.answer(group, &result);
        }
        self.shared.close();
        drop(self.lock);
        if let Some(done) = self.closing {
            let _ = done.send(());
        }
    }

    /// Takes queued changes, up to the size of a group. The second value is false if this is the last group.
    fn gather(&mut self, waiting: &mut Vec<Request>) -> (Vec<Pending>, bool) {
        let mut group = Vec::new();
        let mut total = 0;
        let mut early = std::mem::take(waiting).into_iter();
        while total < GROUP_BYTES {
            let Some(request) = early.next().or_else(|| self.requests.try_recv().ok()) else {
                break;
            };
            match request {
                Request::Change { change, bytes, done } => {
                    total += bytes;
                    group.push(Pending { change, bytes, done });
                }
                Request::Close(done) => {
                    self.closing = Some(done);
                    return (group, false);
                }
            }
        }
        waiting.extend(early);
        (group, true)
    }

    /// Answers invalid changes, and returns the others with the head after them.
    fn check(&self, group: Vec<Pending>) -> (Vec<Pending>, Head) {
        let mut next = self.head.clone();
        next.transactions += 1;
        let mut accepted = Vec::with_capacity(group.len());
        for pending in group {
            match advance(&mut next, &pending.change) {
                Ok(()) => accepted.push(pending),
                Err(error) => self.answer(vec![pending], &Err(error)),
            }
        }
        (accepted, next)
    }

    fn answer(&self, group: Vec<Pending>, result: &Result<(), CommitError>) {
        // The last one first: a task that waits for the first is woken once, when all of them are done.
        for pending in group.into_iter().rev() {
            self.shared
                .queued_bytes
                .fetch_sub(pending.bytes, Ordering::Relaxed);
            // The receipt may have been dropped.
            let _ = pending.done.send(result.clone());
        }
    }

    fn commit(
        &mut self,
        group: &[Pending],
        next: &Head,
        waiting: &mut Vec<Request>,
    ) -> Result<(), CommitError> {
        match self.write(group, next) {
            Ok(()) => Ok(()),
            Err(error) if error.is_disk_full() => self.commit_when_there_is_room(group, next, waiting),
            Err(error) => Err(CommitError::Failed(Arc::new(error))),
        }
    }

    fn write(&mut self, group: &[Pending], next: &Head) -> Result<(), StoreError> {
        let changes = group.iter().map(|pending| &pending.change);
        let before = *self.shared.marks.borrow();
        let marks = changes.clone().fold(before, |marks, change| change.mark(marks));
        // Before the commit: no command may be forgotten while the marks still say that it is known.
        self.shared.marks.send_if_modified(|known| {
            let is_changed = *known != marks;
            *known = marks;
            is_changed
        });
        let head = self
            .shared
            .with_database(|database| file::write(database, next, marks, changes))?;
        self.shared
            .transactions
            .store(head.transactions, Ordering::Relaxed);
        self.head = head;
        Ok(())
    }

    /// Keeps the committed events in memory for the publisher.
    fn remember(&self, group: &mut [Pending]) {
        let mut recent = self.shared.recent.write().unwrap_or_else(PoisonError::into_inner);
        for pending in group {
            match &mut pending.change {
                Change::Commit(batch) => recent.add(batch.events.drain(..)),
                Change::Import(_) => *recent = Recent::default(),
                Change::ForgetEvents { .. } | Change::ForgetCommands { .. } | Change::Mark { .. } => {}
            }
        }
    }

    /// Publishes the durable part to its watchers.
    fn announce(&self) {
        self.shared.held.send_if_modified(|held| {
            let now = Held::from(&self.head);
            let changed = *held != now;
            *held = now;
            changed
        });
    }

    fn commit_when_there_is_room(
        &mut self,
        group: &[Pending],
        next: &Head,
        waiting: &mut Vec<Request>,
    ) -> Result<(), CommitError> {
        let since = Timestamp::now();
        tracing::error!(file = %self.shared.file.display(), "the disk is full: the journal waits for room");
        self.shared.health.send_replace(JournalHealth::DiskFull { since });
        let needed = group.iter().map(|pending| pending.bytes as u64).sum::<u64>() + SLACK_BYTES;
        let mut wait = FIRST_WAIT;
        let mut tried = Instant::now();
        let mut usable = false;
        let mut alone = self.closing.is_some();
        loop {
            // The database is unusable after a failed write. A reopened one can be read while the disk is full.
            if !usable {
                match self.reopen_and_check() {
                    Ok(()) => usable = true,
                    Err(error) if error.is_disk_full() => {
                        tracing::warn!(error = %Chain(&error), "can't reopen the journal yet");
                    }
                    Err(error) => return Err(CommitError::Failed(Arc::new(error))),
                }
            }
            if alone {
                return Err(CommitError::DiskFull);
            }
            let pause = Instant::now();
            while let Some(left) = wait.checked_sub(pause.elapsed()) {
                match self.requests.recv_timeout(left) {
                    Ok(request) => waiting.push(request),
                    Err(RecvTimeoutError::Timeout) => break,
                    // The last handle was dropped: a last try.
                    Err(RecvTimeoutError::Disconnected) => {
                        alone = true;
                        break;
                    }
                }
                if waiting.iter().any(|request| matches!(request, Request::Close(_))) {
                    alone = true;
                    break;
                }
            }
            wait = (wait * 2).min(LONGEST_WAIT);
            let room = self.shared.free_bytes().unwrap_or(u64::MAX);
            if room < needed && tried.elapsed() < TRUST_FREE_BYTES && !alone {
                continue;
            }
            tried = Instant::now();
            if !usable {
                continue;
            }
            // A failed write may still be in the file: then one more transaction proves that it is durable, and the
            // changes are not applied twice.
            let result = if self.head.transactions >= next.transactions {
                let mut proof = self.head.clone();
                proof.transactions += 1;
                self.write(&[], &proof)
            } else {
                self.write(group, next)
            };
            match result {
                Ok(()) => {
                    tracing::info!(file = %self.shared.file.display(), "there is room again: the journal commits");
                    self.shared.health.send_replace(JournalHealth::Ok);
                    return Ok(());
                }
                Err(error) if error.is_disk_full() => usable = false,
                Err(error) => return Err(CommitError::Failed(Arc::new(error))),
            }
        }
    }

    /// Reopens the file, and finds out whether the failed transaction is in it.
    fn reopen_and_check(&mut self) -> Result<(), StoreError> {
        self.shared.reopen()?;
        let found = self.shared.with_database(file::head)?;
        // Each attempt has one transaction more than the known ones.
        if found.transactions.wrapping_sub(self.head.transactions) <= 1 {
            self.head = found;
            return Ok(());
        }
        Err(StoreError::Damaged {
            record: "the head record".to_owned(),
            why: format!(
                "after reopening it counts {} transactions, not {}",
                found.transactions, self.head.transactions
            ),
        })
    }
}

/// Checks a change against the head, and advances the head.
fn advance(head: &mut Head, change: &Change) -> Result<(), CommitError> {
    match change {
        Change::Commit(batch) => {
            let last = contiguous(head.epoch, head.last_sequence + 1, &batch.events)?;
            head.last_sequence = last;
        }
        Change::ForgetEvents { through } => {
            head.first_sequence = head.first_sequence.max((*through).min(head.last_sequence) + 1);
        }
        Change::ForgetCommands { .. } | Change::Mark { .. } => {}
        Change::Import(import) => {
            if head.last_sequence != 0
                && (import.epoch != head.epoch || import.last_sequence < head.last_sequence)
            {
                return Err(CommitError::NotAhead {
                    epoch: head.epoch,
                    last_sequence: head.last_sequence,
                });
            }
            let first = import
                .events
                .first()
                .map_or(import.last_sequence.saturating_add(1), |event| event.sequence);
            let last = contiguous(import.epoch, first, &import.events)?;
            if last != import.last_sequence {
                return Err(CommitError::NotContiguous {
                    expected: import.last_sequence,
                    found: last,
                });
            }
            head.epoch = import.epoch;
            head.first_sequence = first;
            head.last_sequence = last;
        }
    }
    Ok(())
}

/// Returns the last sequence number of events that must begin with `first` and have no gap.
fn contiguous(epoch: u64, first: u64, events: &[EventRecord]) -> Result<u64, CommitError> {
    let mut expected = first;
    if expected == 0 {
        return Err(CommitError::NotContiguous {
            expected: 1,
            found: 0,
        });
    }
    for event in events {
        if event.sequence != expected || expected == u64::MAX {
            return Err(CommitError::NotContiguous {
                expected,
                found: event.sequence,
            });
        }
        if let Some(found) = event.epoch().filter(|&found| found != epoch) {
            return Err(CommitError::WrongEpoch {
                expected: epoch,
                found,
            });
        }
        expected += 1;
    }
    Ok(expected - 1)
}

/// Displays an error with its sources on one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut error = self.0.source();
        while let Some(cause) = error {
            write!(f, ": {cause}")?;
            error = cause.source();
        }
        Ok(())
    }
}
