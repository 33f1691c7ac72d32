//! Why an observation failed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::id::ContainerName;
use leaf_host::systemd::SystemdError;

/// An observation of the host failed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// A file or directory could not be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A container's status is not one.
    #[error("{} is not a container's status", path.display())]
    Status {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The kernel would not tell of changes.
    #[error("can't watch {}", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// systemd could not be asked, or refused.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// The container does not run, and so uses nothing.
    #[error("container {0} does not run: it uses nothing until it is started")]
    NotRunning(ContainerName),
    /// What was given as a cursor is none of this log.
    #[error("{0:?} is no cursor of this container's log; take the one that the last answer gave, or none")]
    Cursor(String),
    /// The log has no times to choose by.
    #[error(
        "the console log of container {0} has no times (systemd is not what runs it), so `since` can't be used; \
         choose by a number of lines, or follow by the cursor"
    )]
    NoTimes(ContainerName),
    /// The program that reads the journal could not be run.
    #[error("can't run {program}; it is part of systemd, and must be on PATH")]
    Program {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program that reads the journal did not come to its end in time.
    #[error("{program} did not end within {} s", limit.as_secs())]
    Slow {
        /// The program.
        program: &'static str,
        /// How long it was given.
        limit: Duration,
    },
    /// The program that reads the journal did not work.
    #[error("{program} can't read the journal: {said}")]
    Journal {
        /// The program.
        program: &'static str,
        /// What it said, and how it ended.
        said: String,
    },
}

/// What kind of error a [`ObserveError`] is for whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObserveErrorKind {
    /// The container's state does not allow it now.
    NotNow,
    /// What was asked for can't be used.
    Invalid,
    /// This host's runtime can't do that.
    Unsupported,
    /// It did not work.
    Failed,
}

impl ObserveError {
    /// Returns what kind of error it is.
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
