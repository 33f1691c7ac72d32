//! Why an operation was not carried out, on this side of the contract.

use std::io;
use std::path::PathBuf;

use leaf_core::error::chain;
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind};
use leaf_host::cgroup::CgroupError;
use leaf_host::lock::LockError;
use leaf_host::process::RunError;
use leaf_host::systemd::SystemdError;

/// Why an operation was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The helper doesn't do that.
    #[error("{0}")]
    Refused(String),
    /// The host lacks something.
    #[error("{0}")]
    Unsupported(String),
    /// The container ended before it was ready, or was not ready in time.
    #[error("{0}")]
    NotReady(String),
    /// A state of the host that should not be.
    #[error("{0}")]
    Failed(String),
    /// A call to the kernel about something.
    #[error("{what}")]
    Io {
        /// What was tried, with its path.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A call to systemd.
    #[error(transparent)]
    Systemd(#[from] SystemdError),
    /// Something about a cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A lock between programs.
    #[error("can't lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why not.
        source: LockError,
    },
    /// A program could not be run to its end.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A netlink request.
    #[error("{what}")]
    Netlink {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
}

/// What the functions of this crate return.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Returns a function that says what an I/O error was about.
    pub(crate) fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Io {
            what,
            source: source.into(),
        }
    }

    /// Returns the error as the contract has it.
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
