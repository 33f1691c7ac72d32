//! Why the journal can't be opened, written or read.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use leaf_core::id::LeafName;

use crate::file::StoreError;
use crate::lock::LockError;

/// Why a journal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process holds the state directory, or it can't be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The state directory can't be created or read.
    #[error("can't use the state directory {path}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file is damaged.
    #[error(
        "the journal {path} is damaged: move the file away and start again; the leaf then imports what its stream \
         holds, and what the stream lacks is lost"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damaged record.
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
    /// The journal belongs to another leaf.
    #[error(
        "the journal {path} is of the leaf {found}, not of {wanted}: give {wanted} its own state directory, or \
         start with the name {found}"
    )]
    OtherLeaf {
        /// The file.
        path: PathBuf,
        /// The leaf that it belongs to.
        found: LeafName,
        /// This leaf's name.
        wanted: LeafName,
    },
    /// The operating system refuses to open the file.
    #[error("can't open the journal {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The database's error.
        source: StoreError,
    },
    /// The thread can't be started.
    #[error("can't start the journal's thread")]
    Thread(#[source] io::Error),
}

/// Why a change was not committed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// An event has the wrong sequence number. Nothing of the batch was written.
    #[error("the next event must be {expected}, not {found}")]
    NotContiguous {
        /// The next sequence number.
        expected: u64,
        /// The given sequence number or epoch.
        found: u64,
    },
    /// The epoch is another one. Nothing was written.
    #[error("epoch {found} does not match the journal's epoch {expected}")]
    WrongEpoch {
        /// The journal's epoch.
        expected: u64,
        /// The given sequence number or epoch.
        found: u64,
    },
    /// The journal holds events that the import lacks. Nothing was written.
    #[error("an import would overwrite the journal's events up to {last_sequence} of epoch {epoch}")]
    NotAhead {
        /// The journal's epoch.
        epoch: u64,
        /// The journal's last event.
        last_sequence: u64,
    },
    /// Too many bytes are queued already.
    #[error("{waiting_bytes} bytes are queued for the disk already")]
    QueueFull {
        /// The number of queued bytes.
        waiting_bytes: usize,
    },
    /// The journal was closed while the disk was full.
    #[error("the disk is full, and the journal was closed before there was room")]
    DiskFull,
    /// The journal could not write its file and commits nothing more.
    #[error("the journal can't write its file any more: restart the program")]
    Failed(#[source] Arc<StoreError>),
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
}

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The journal has dropped the event; the stream has it.
    #[error("the journal holds events from {first_sequence} on; event {from} is only in the stream")]
    Forgotten {
        /// The requested sequence number.
        from: u64,
        /// The oldest event still held.
        first_sequence: u64,
    },
    /// The file is being reopened, since the disk is or was full. Try again later.
    #[error("the journal waits for room on its disk, and can't be read until its file is reopened")]
    Unavailable,
    /// A record can't be read.
    #[error("can't read the journal {path}")]
    Store {
        /// The file.
        path: PathBuf,
        /// The damaged record.
        source: StoreError,
    },
}
