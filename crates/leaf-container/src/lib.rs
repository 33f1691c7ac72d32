//! What containers of a leaf there are on this host, and how they do: a look, and hints when to look again.
//!
//! Start at [`Containers`]. The host is the truth: everything is read from the files that [`HostPaths`] names, nothing
//! is remembered, nothing is changed. A supervisor lives exactly while its lock is held; a status without an end below
//! a free lock is that of a supervisor that was killed.

mod logs;
mod observe;
mod stats;
mod watch;

use std::path::{Path, PathBuf};

use leaf_core::host_op::HostPaths;
use leaf_core::id::LeafName;

pub use watch::Hints;

/// The containers of one leaf on this host.
#[derive(Debug, Clone)]
pub struct Containers {
    leaf: LeafName,
    paths: HostPaths,
}

/// A look at the host did not work.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// A file or folder could not be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A supervisor's status is not one.
    #[error("{} is not a supervisor's status", path.display())]
    Status {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The kernel would not tell of changes.
    #[error("can't watch {}", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl LookError {
    fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }
}

impl Containers {
    /// Returns the containers of a leaf; nothing is read yet.
    #[must_use]
    pub fn new(leaf: LeafName, paths: HostPaths) -> Self {
        Self { leaf, paths }
    }
}
