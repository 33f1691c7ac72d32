//! The handle: opening, queueing, reading.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::task::{Context, Poll, ready};
use std::thread;

use jiff::Timestamp;
use leaf_core::event::EventRecord;
use leaf_core::id::{Caller, CommandId, LeafName};
use serde_json::Value;
use tokio::sync::{oneshot, watch};

use crate::change::Change;
use crate::encode::FORMAT;
use crate::file::{self, Found, StoreError};
use crate::lock::{FolderLock, LockError};
use crate::writer::{Request, Shared, Writer};
use crate::{Batch, CommandRecord, Held, Import, JournalHealth};

/// The file's name in the state folder.
pub const FILE: &str = "journal.redb";

/// How much may wait in memory for the disk.
const QUEUE_BYTES: usize = 32 << 20;

/// How to open a journal.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose journal it is.
    pub leaf: LeafName,
    /// The epoch of a journal that is made now: milliseconds since 1970.
    pub epoch_if_new: u64,
    /// How much of the file is kept in memory, and about what it adds to the resident size: 2 MiB are enough.
    pub cache_bytes: usize,
    /// What the holder says of itself (its instance id), for the error of a second one.
    pub holder: String,
}

/// What was found on opening.
#[derive(Debug, Clone, PartialEq)]
pub struct Opened {
    /// Whether the file was made now: nothing was there.
    pub created: bool,
    /// Which part of which history it holds.
    pub held: Held,
    /// The state, by key.
    pub entries: BTreeMap<String, Value>,
    /// Commands that have no outcome yet, the oldest first.
    pub unfinished: Vec<CommandRecord>,
}

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The state folder is held by another process, or can't be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The state folder can't be made or looked into.
    #[error("the state folder {path} can't be used")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error(
        "the journal {path} is damaged: move the file away and start again; the leaf then imports what its stream \
         holds, and what the stream lacks is lost"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Which record, and what is wrong with it.
        source: StoreError,
    },
    /// A newer program wrote the file.
    #[error(
        "the journal {path} has format {found}, and this program reads formats up to {supported}: start the newer \
         leafd that wrote it, or move the file away to begin from what the stream holds"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The file's format.
        found: u64,
        /// The newest format that this program reads.
        supported: u64,
    },
    /// It belongs to another leaf.
    #[error(
        "the journal {path} is of the leaf {found}, not of {wanted}: give {wanted} a state folder of its own, or \
         start with the name {found}"
    )]
    OtherLeaf {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: LeafName,
        /// Whose it should be.
        wanted: LeafName,
    },
    /// The system does not let us.
    #[error("the journal {path} can't be opened")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the store says.
        source: StoreError,
    },
    /// No thread can be started.
    #[error("the journal's thread can't be started")]
    Thread(#[source] io::Error),
}

/// Why something is not durable.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// An event is not the next one. Nothing of the batch was written.
    #[error("event {expected} has to come next, not {found}")]
    NotContiguous {
        /// The next sequence number.
        expected: u64,
        /// What came instead.
        found: u64,
    },
    /// The epoch does not fit. Nothing was written.
    #[error("epoch {found} does not fit a journal of epoch {expected}")]
    WrongEpoch {
        /// The journal's epoch.
        expected: u64,
        /// What came instead.
        found: u64,
    },
    /// The journal holds events that the import lacks. Nothing was written.
    #[error("the journal has events up to {last_sequence} in epoch {epoch}, which an import would overwrite")]
    NotAhead {
        /// The journal's epoch.
        epoch: u64,
        /// Its last event.
        last_sequence: u64,
    },
    /// Too much waits for the disk already.
    #[error("{waiting_bytes} bytes wait for the disk already")]
    QueueFull {
        /// How much waits.
        waiting_bytes: usize,
    },
    /// The journal was closed while the disk was full.
    #[error("the disk is full, and the journal was closed before there was room")]
    DiskFull,
    /// The journal could not write its file; it takes nothing more.
    #[error("the journal can't write its file any more: end the program, and start it again")]
    Failed(#[source] Arc<StoreError>),
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The journal has let go of the event; the stream has it.
    #[error("the journal holds events from {first_sequence} on, {from} is in the stream only")]
    Forgotten {
        /// What was asked for.
        from: u64,
        /// The oldest event still held.
        first_sequence: u64,
    },
    /// The file is being reopened, because the disk is or was full. Try again later.
    #[error("the journal waits for room on its disk, and can't be read until its file is open again")]
    Unavailable,
    /// A record can't be read.
    #[error("the journal {path} can't be read")]
    Store {
        /// The file.
        path: PathBuf,
        /// Which record, and what is wrong with it.
        source: StoreError,
    },
}

/// The leaf's journal: a cheap handle. When the last one goes, what is queued is written and the file is closed;
/// that may block for as long as one write takes.
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
            // It never panics; if it did, its receipts have said so.
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

/// Resolves when what it stands for is on the disk. Dropping it takes nothing back.
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
    /// Opens or makes the journal of a leaf in its state folder, verifies it, and holds the folder from then on.
    /// It blocks, for about as long as reading the file takes.
    ///
    /// # Errors
    /// [`OpenError`], which says what to do.
    pub fn open(folder: &Path, options: &Options) -> Result<(Self, Opened), OpenError> {
        std::fs::create_dir_all(folder).map_err(|source| OpenError::Folder {
            path: folder.to_owned(),
            source,
        })?;
        let lock = FolderLock::take(folder, &options.holder)?;
        let path = folder.join(FILE);
        let error = |source| open_error(&path, source);
        let created = !path.try_exists().map_err(|source| OpenError::Folder {
            path: folder.to_owned(),
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
            tracing::warn!(error = %failed, "the journal's file can't give room back to the disk");
            file::close(database);
            database = file::open(&path, options.cache_bytes).map_err(error)?;
        }
        let held = Held::from(&contents.head);
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            file: path,
            cache_bytes: options.cache_bytes,
            database: RwLock::new(Some(database)),
            recent: RwLock::default(),
            held: watch::Sender::new(held),
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

    /// Queues a batch, in the order of the calls, and returns at once; the [`Receipt`] resolves after the fsync.
    /// While the disk is full it stays pending; see [`health`](Self::health).
    pub fn commit(&self, batch: Batch) -> Receipt {
        self.queue(Change::Commit(batch))
    }

    /// Queues that all events up to this one are let go of; the stream has them on its disk.
    pub fn forget_events(&self, through: u64) -> Receipt {
        self.queue(Change::ForgetEvents { through })
    }

    /// Queues that commands which were accepted before this time, and have their outcome, are let go of.
    pub fn forget_commands(&self, before: Timestamp) -> Receipt {
        self.queue(Change::ForgetCommands { before })
    }

    /// Queues that the journal takes over what the stream has: its epoch, last sequence number, newest events, and
    /// the state. What it held of events and state is replaced. Refused where it holds an event that the stream
    /// lacks, or another epoch.
    pub fn import(&self, import: Import) -> Receipt {
        self.queue(Change::Import(import))
    }

    fn queue(&self, change: Change) -> Receipt {
        let shared = &self.0.shared;
        let bytes = change.bytes();
        let waiting_bytes = shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        // One that is larger than the whole queue has to pass through an empty one.
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

    /// Reads events from a sequence number on, in order and without a gap, verified: as many as `max_bytes` allow,
    /// but at least one if there is one; none after the last. It blocks for as long as the reading takes.
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

    /// Gives away events that were committed a moment ago and that nobody took yet, from this one on: as many as about
    /// `max_bytes` allow, none if this one is not at hand; then [`read`](Self::read) has it. For one publisher.
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

    /// Reads a command that was accepted from this caller under this id, if there is one.
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

    /// Which part of which history is durable in the journal.
    #[must_use]
    pub fn held(&self) -> Held {
        *self.0.shared.held.borrow()
    }

    /// The epoch of its history.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.held().epoch
    }

    /// The oldest event still held; one more than the last where none is.
    #[must_use]
    pub fn first_sequence(&self) -> u64 {
        self.held().first_sequence
    }

    /// The last durable event; 0 before the first.
    #[must_use]
    pub fn last_sequence(&self) -> u64 {
        self.held().last_sequence
    }

    /// Follows what is durable, for whoever publishes it.
    #[must_use]
    pub fn committed(&self) -> watch::Receiver<Held> {
        self.0.shared.held.subscribe()
    }

    /// Follows how the journal is: commands are to be refused while it is not [`JournalHealth::Ok`].
    #[must_use]
    pub fn health(&self) -> watch::Receiver<JournalHealth> {
        self.0.shared.health.subscribe()
    }

    /// How many transactions, each with its fsync, the file has seen.
    #[must_use]
    pub fn transactions(&self) -> u64 {
        self.0.shared.transactions.load(Ordering::Relaxed)
    }

    /// How many bytes are queued and not durable yet; at 32 MiB more is refused.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.0.shared.queued_bytes.load(Ordering::Relaxed)
    }

    /// How many bytes the file system of the journal has left for this user.
    ///
    /// # Errors
    /// What the system says.
    pub fn free_bytes(&self) -> io::Result<u64> {
        self.0.shared.free_bytes()
    }

    /// How many bytes the file has.
    ///
    /// # Errors
    /// What the system says.
    pub fn file_bytes(&self) -> io::Result<u64> {
        Ok(std::fs::metadata(&self.0.shared.file)?.len())
    }

    /// Closes the file and lets go of the folder, once all that was queued before is durable. Other handles get
    /// [`CommitError::Closed`] from then on. While the disk is full it gives up what is queued.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        if self.send(Request::Close(done)).is_ok() {
            // An error means that it was closed by another handle.
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
