//! What a leaf remembers, also over a restart, of events that only its hub has.
//!
//! A leaf that continued without them would give their numbers to other events. So the file is written before the first of
//! them is appended to the leaf's stream, and removed when nothing is missing. leafd before this file ignores it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use leaf_core::homecoming::Own;
use leaf_core::json::to_json;
use serde::{Deserialize, Serialize};

/// The name of the file in the state directory.
const FILE: &str = "hub-import.json";

/// The file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    /// The sequence number of the last event that the hub's copy was found to have.
    copy_last: u64,
}

/// The file that says that the hub has events that the leaf lacks.
#[derive(Debug)]
pub(super) struct Lacks {
    path: PathBuf,
}

impl Lacks {
    pub(super) fn in_directory(state_dir: &Path) -> Self {
        Self {
            path: state_dir.join(FILE),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the leaf, which has these events, lacks some that the hub had.
    ///
    /// # Errors
    /// The error of reading the file.
    pub(super) fn are_known(&self, own: Own) -> io::Result<bool> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        // That of a later leafd, or one that was cut off: there was a reason for it.
        let Ok(Content { copy_last }) = serde_json::from_slice(&text) else {
            return Ok(true);
        };
        Ok(own.last().is_none_or(|last| last < copy_last))
    }

    /// Remembers, until [`Lacks::forget`], that the hub's copy ends with this event, and the leaf has less.
    ///
    /// # Errors
    /// The error of writing the file.
    pub(super) fn remember(&self, copy_last: u64) -> io::Result<()> {
        let draft = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&to_json(&Content { copy_last }))?;
        file.sync_all()?;
        fs::rename(&draft, &self.path)?;
        self.sync()
    }

    /// Nothing is missing.
    ///
    /// # Errors
    /// The error of removing the file.
    pub(super) fn forget(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use leaf_core::homecoming::Extent;

    use super::*;

    fn own(last: u64) -> Own {
        Own {
            journal: Extent { first: 1, last },
            stream: Extent { first: 1, last: 0 },
        }
    }

    #[test]
    fn what_is_missing_is_known_until_the_leaf_has_it_or_it_is_forgotten() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let lacks = Lacks::in_directory(directory.path());
        assert!(!lacks.are_known(own(3))?);
        lacks.remember(9)?;
        // As after a restart.
        let lacks = Lacks::in_directory(directory.path());
        assert!(lacks.are_known(own(0))? && lacks.are_known(own(8))?);
        assert!(!lacks.are_known(own(9))?);
        lacks.forget()?;
        lacks.forget()?;
        assert!(!lacks.are_known(own(3))?);
        Ok(())
    }

    #[test]
    fn a_file_that_cant_be_read_is_a_reason_to_wait() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let lacks = Lacks::in_directory(directory.path());
        fs::write(lacks.path(), "")?;
        assert!(lacks.are_known(own(100))?);
        lacks.remember(2)?;
        assert!(!lacks.are_known(own(100))?);
        Ok(())
    }
}
