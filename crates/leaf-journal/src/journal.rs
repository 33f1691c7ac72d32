//! The handle of the journal: opens it, queues changes, reads.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::task::{Context, Poll, ready};
use std::thread;

use jiff::Timestamp;
use leaf_core::command::CommandRecord;
use leaf_core::event::EventRecord;
use leaf_core::id::{Caller, CommandId, LeafName};
use leaf_core::signed::Marks;
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::change::Change;
use crate::encode::FORMAT;
use crate::error::{CommitError, OpenError, ReadError};
use crate::file::{self, Found, StoreError};
use crate::lock::DirectoryLock;
use crate::writer::{Request, Shared, Writer};
use crate::{Batch, Held, Import, JournalHealth};

/// The file's name in the state directory.
pub const FILE: &str = "journal.redb";

/// The most bytes that may be queued in memory.
const QUEUE_BYTES: usize = 32 << 20;

/// The options for opening a journal.
#[derive(Debug, Clone)]
pub struct Options {
    /// The leaf that the journal belongs to.
    pub leaf: LeafName,
    /// The epoch of a journal that is created: milliseconds since 1970.
    pub epoch_if_new: u64,
    /// The size of the cache in bytes, which is about what it adds to the resident size: 2 MiB are enough.
    pub cache_bytes: usize,
    /// The holder's instance id, for the error message of a second holder.
    pub holder: String,
}

/// The contents of the journal when it was opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// Whether the file was created.
    pub created: bool,
    /// The part of a history that it holds.
    pub held: Held,
    /// The state, by key.
    pub entries: BTreeMap<String, Value>,
    /// The commands without an outcome, the oldest first.
    pub unfinished: Vec<CommandRecord>,
}

/// A handle of the leaf's journal, cheap to clone. Dropping the last one writes the queued changes and closes the file,
/// which may block for the time of one write.
#[derive(Clone)]
pub struct Journal(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            // If it panicked, its receipts have failed.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Journal")
            .field("file", &self.0.shared.file)
            .field("held", &self.held())
            .finish_non_exhaustive()
    }
}

/// Resolves when its change is durable. Dropping it does not cancel the change.
#[derive(Debug)]
#[must_use = "nothing is durable before it resolves"]
pub struct Receipt(Result<oneshot::Receiver<Result<(), CommitError>>, Option<CommitError>>);

impl Future for Receipt {
    type Output = Result<(), CommitError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(done) => Poll::Ready(ready!(Pin::new(done).poll(context)).unwrap_or(Err(CommitError::Closed))),
            Err(refused) => Poll::Ready(Err(refused.take().unwrap_or(CommitError::Closed))),
        }
    }
}

impl Journal {
    /// Opens or creates the journal of a leaf in its state directory, verifies it, and locks the directory. Blocks for
    /// about the time of reading the file.
    ///
    /// # Errors
    /// [`OpenError`], whose message says what to do.
    pub fn open(directory: &Path, options: &Options) -> Result<(Self, Opened), OpenError> {
        std::fs::create_dir_all(directory).map_err(|source| OpenError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        let lock = DirectoryLock::take(directory, &options.holder)?;
        let path = directory.join(FILE);
        let error = |source| open_error(&path, source);
        let created = !path.try_exists().map_err(|source| OpenError::Directory {
            path: directory.to_owned(),
            source,
        })?;
        if created {
            file::create(&path, &options.leaf, options.epoch_if_new).map_err(error)?;
        }
        let mut database = file::open(&path, options.cache_bytes).map_err(error)?;
        let contents = match file::load(&database) {
            Ok(contents) => contents,
            Err(source) => {
                file::close(database);
                return Err(error(source));
            }
        };
        if contents.head.leaf != options.leaf {
            return Err(OpenError::OtherLeaf {
                path,
                found: contents.head.leaf,
                wanted: options.leaf.clone(),
            });
        }
        if let Err(failed) = file::shrink(&mut database, &path, contents.record_bytes) {
            tracing::warn!(error = %failed, "can't compact the journal's file");
            file::close(database);
            database = file::open(&path, options.cache_bytes).map_err(error)?;
        }
        let held = Held::from(&contents.head);
        let shared = Arc::new(Shared {
            directory: directory.to_owned(),
            file: path,
            cache_bytes: options.cache_bytes,
            database: RwLock::new(Some(database)),
            recent: RwLock::default(),
            held: watch::Sender::new(held),
            marks: watch::Sender::new(contents.marks),
            health: watch::Sender::new(JournalHealth::Ok),
            transactions: AtomicU64::new(contents.head.transactions),
            queued_bytes: AtomicUsize::new(0),
        });
        let (requests, receiver) = mpsc::channel();
        let writer = Writer {
            shared: Arc::clone(&shared),
            requests: receiver,
            head: contents.head,
            lock,
            closing: None,
        };
        let thread = thread::Builder::new()
            .name("leaf-journal".to_owned())
            .spawn(move || writer.run())
            .map_err(OpenError::Thread)?;
        let opened = Opened {
            created,
            held,
            entries: contents.entries,
            unfinished: contents.unfinished,
        };
        let inner = Inner {
            shared,
            requests: Some(requests),
            thread: Some(thread),
        };
        Ok((Self(Arc::new(inner)), opened))
    }

    /// Queues a batch, in the order of the calls, and returns at once; the [`Receipt`] resolves after the fsync. It
    /// stays pending while the disk is full; see [`health`](Self::health).
    pub fn commit(&self, batch: Batch) -> Receipt {
        self.queue(Change::Commit(batch))
    }

    /// Queues dropping all events up to this one, which the stream has on its disk.
    pub fn forget_events(&self, through: u64) -> Receipt {
        self.queue(Change::ForgetEvents { through })
    }

    /// Queues dropping the commands that were accepted before this time and have an outcome. `trusted` is the clock, if it is trusted:
    /// without it, the journal does not know any more since when it knows all commands.
    pub fn forget_commands(&self, before: Timestamp, trusted: Option<Timestamp>) -> Receipt {
        self.queue(Change::ForgetCommands { before, trusted })
    }

    /// Queues a mark: the clock is trusted, and says this. If the journal does not know since when it knows all commands, it is
    /// since now.
    pub fn mark(&self, now: Timestamp) -> Receipt {
        self.queue(Change::Mark { now })
    }

    /// Queues an import from the stream: its epoch, last sequence number, newest events, and the state. It replaces the
    /// journal's events and state. Refused if the journal holds an event that the stream lacks, or has another epoch.
    pub fn import(&self, import: Import) -> Receipt {
        self.queue(Change::Import(import))
    }

    fn queue(&self, change: Change) -> Receipt {
        let shared = &self.0.shared;
        let bytes = change.bytes();
        let waiting_bytes = shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        // A change larger than the limit is queued only if the queue is empty.
        if waiting_bytes > 0 && waiting_bytes + bytes > QUEUE_BYTES {
            shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return Receipt(Err(Some(CommitError::QueueFull { waiting_bytes })));
        }
        let (done, receiver) = oneshot::channel();
        match self.send(Request::Change { change, bytes, done }) {
            Ok(()) => Receipt(Ok(receiver)),
            Err(error) => {
                shared.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
                Receipt(Err(Some(error)))
            }
        }
    }

    fn send(&self, request: Request) -> Result<(), CommitError> {
        let requests = self.0.requests.as_ref().ok_or(CommitError::Closed)?;
        requests.send(request).map_err(|_| CommitError::Closed)
    }

    /// Reads and verifies events from a sequence number on, in order and without a gap: as many as `max_bytes` allows,
    /// but at least one if there is one. Blocks while reading.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(&self, from: u64, max_bytes: usize) -> Result<Vec<EventRecord>, ReadError> {
        let found = self
            .0
            .shared
            .with_database(|database| file::read(database, from, max_bytes));
        match found.map_err(|source| self.read_error(source))? {
            Found::Events(events) => Ok(events),
            Found::Forgotten { first_sequence } => Err(ReadError::Forgotten { from, first_sequence }),
        }
    }

    /// Removes and returns recently committed events from this one on, up to about `max_bytes`; none if this one is not
    /// in memory, then use [`read`](Self::read). For one publisher.
    #[must_use]
    pub fn take_recent(&self, from: u64, max_bytes: usize) -> Vec<EventRecord> {
        let mut recent = self
            .0
            .shared
            .recent
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        recent.take(from, max_bytes)
    }

    /// Reads the accepted command of this caller with this id, if there is one.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn command(&self, caller: &Caller, id: &CommandId) -> Result<Option<CommandRecord>, ReadError> {
        self.0
            .shared
            .with_database(|database| file::command(database, caller, id))
            .map_err(|source| self.read_error(source))
    }

    fn read_error(&self, source: StoreError) -> ReadError {
        if source.is_of_a_dead_database() {
            return ReadError::Unavailable;
        }
        ReadError::Store {
            path: self.0.shared.file.clone(),
            source,
        }
    }

    /// The part of a history that is durable in the journal.
    #[must_use]
    pub fn held(&self) -> Held {
        *self.0.shared.held.borrow()
    }

    /// What the journal remembers of the time. It may be ahead of the disk, where it is less than what is here.
    #[must_use]
    pub fn marks(&self) -> Marks {
        *self.0.shared.marks.borrow()
    }

    /// The epoch of the journal's history.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.held().epoch
    }

    /// The oldest event still held; one more than the last if none is.
    #[must_use]
    pub fn first_sequence(&self) -> u64 {
        self.held().first_sequence
    }

    /// The last durable event; 0 before the first.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.held().last_sequence
    }

    /// Watches the durable part of the history.
    #[must_use]
    pub fn committed(&self) -> watch::Receiver<Held> {
        self.0.shared.held.subscribe()
    }

    /// Watches the journal's health: commands must be refused while it is not [`JournalHealth::Ok`].
    #[must_use]
    pub fn health(&self) -> watch::Receiver<JournalHealth> {
        self.0.shared.health.subscribe()
    }

    /// The number of transactions of the file, each with an fsync.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.0.shared.transactions.load(Ordering::Relaxed)
    }

    /// The number of bytes that are queued and not durable yet; at 32 MiB further changes are refused.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.0.shared.queued_bytes.load(Ordering::Relaxed)
    }

    /// Returns how many bytes are free for this user on the journal's file system.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.0.shared.free_bytes()
    }

    /// Closes the file and unlocks the directory when everything queued before is durable. Other handles then get
    /// [`CommitError::Closed`]. If the disk is full, the queued changes are dropped.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.send(Request::Close(done)).is_ok() {
            // An error means that another handle closed it.
            let _ = closed.await;
        }
    }
}

fn open_error(path: &Path, source: StoreError) -> OpenError {
    let path = path.to_owned();
    match source {
        StoreError::Newer { found } => OpenError::Newer {
            path,
            found,
            supported: FORMAT,
        },
        source if source.is_damage() => OpenError::Damaged { path, source },
        source => OpenError::Io { path, source },
    }
}
