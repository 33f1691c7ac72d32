//! The errors of observations.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::id::ContainerName;
use leaf_host::systemd::SystemdError;

/// An error of an observation.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// A file or directory could not be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A container's status can't be parsed.
    #[error("can't parse the container status {}", path.display())]
    Status {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// Changes can't be watched.
    #[error("can't watch {}", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A call to systemd failed.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// The container is not running, so it uses no resources.
    #[error("container {0} is not running, so it has no resource usage")]
    NotRunning(ContainerName),
    /// The given cursor does not belong to this log.
    #[error("{0:?} is not a cursor of this container's log; use the one from the previous page, or none")]
    Cursor(String),
    /// The log has no timestamps to select by.
    #[error(
        "the console log of container {0} has no timestamps (it does not run as a systemd unit), so `since` can't be \
        used; select by a number of lines, or follow by the cursor"
    )]
    NoTimes(ContainerName),
    /// The program that reads the journal could not be run.
    #[error("can't run {program}; it is part of systemd, and must be on PATH")]
    Program {
        /// The program.
        program: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The program that reads the journal did not end in time.
    #[error("{program} did not end within {} s", limit.as_secs())]
    Slow {
        /// The program.
        program: &'static str,
        /// Its time limit.
        limit: Duration,
    },
    /// The program that reads the journal failed.
    #[error("{program} can't read the journal: {said}")]
    Journal {
        /// The program.
        program: &'static str,
        /// Its message and its exit status.
        said: String,
    },
}

/// The kind of an [`ObserveError`], for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObserveErrorKind {
    /// The container's state does not allow it now.
    NotNow,
    /// The query is invalid.
    Invalid,
    /// This host's runtime doesn't support it.
    Unsupported,
    /// The observation failed.
    Failed,
}

impl ObserveError {
    /// Returns the kind of the error.
    #[must_use]
    pub fn kind(&self) -> ObserveErrorKind {
        match self {
            Self::NotRunning(_) => ObserveErrorKind::NotNow,
            Self::Cursor(_) => ObserveErrorKind::Invalid,
            Self::NoTimes(_) => ObserveErrorKind::Unsupported,
            _ => ObserveErrorKind::Failed,
        }
    }

    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }
}
