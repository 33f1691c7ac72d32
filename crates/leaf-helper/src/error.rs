//! The errors of host operations, on the helper's side.

use std::io;
use std::path::PathBuf;

use leaf_core::error::chain;
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind};
use leaf_host::cgroup::CgroupError;
use leaf_host::lock::LockError;
use leaf_host::process::RunError;
use leaf_host::systemd::SystemdError;

/// An error of a host operation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The helper refuses it.
    #[error("{0}")]
    Refused(String),
    /// The host lacks something.
    #[error("{0}")]
    Unsupported(String),
    /// The container ended before it was ready, or was not ready in time.
    #[error("{0}")]
    NotReady(String),
    /// The host is in an unexpected state.
    #[error("{0}")]
    Failed(String),
    /// A system call failed.
    #[error("can't {what}")]
    Io {
        /// The attempted action, with its path: `read /etc/passwd`.
        what: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A call to systemd failed.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// An operation on a cgroup failed.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A lock could not be taken.
    #[error("can't lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        source: LockError,
    },
    /// A program could not be run, or failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A netlink request failed.
    #[error("can't {what}")]
    Netlink {
        /// The attempted action.
        what: String,
        /// The kernel's error.
        source: rtnetlink::Error,
    },
}

/// The result type of this crate.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns whether a disk, or the quota of whoever writes, is full.
    pub(crate) fn is_full_disk(&self) -> bool {
        use rustix::io::Errno;

        match self {
            Self::Io { source, .. } => source.raw_os_error().is_some_and(|code| {
                [Errno::NOSPC, Errno::DQUOT]
                    .iter()
                    .any(|errno| errno.raw_os_error() == code)
            }),
            _ => false,
        }
    }

    /// Returns a function that turns an I/O error into an [`Error`]; `what` is the attempted action: `read
    /// /etc/passwd`.
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }

    /// Returns the error for the caller of the operation.
    pub(crate) fn about(&self, op: &HostOp) -> HostOpError {
        HostOpError {
            op: op.summary(),
            kind: match self {
                Self::Refused(_) => HostOpErrorKind::Refused,
                Self::Unsupported(_) => HostOpErrorKind::Unsupported,
                Self::NotReady(_) => HostOpErrorKind::NotReady,
                Self::Cgroup(CgroupError::NotMounted) => HostOpErrorKind::Unsupported,
                Self::Failed(_)
                | Self::Io { .. }
                | Self::Systemd(_)
                | Self::Cgroup(_)
                | Self::Lock { .. }
                | Self::Run(_)
                | Self::Netlink { .. } => HostOpErrorKind::Failed,
            },
            reason: chain(self),
        }
    }
}
