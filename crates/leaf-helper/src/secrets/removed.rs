//! Notes of removed secrets: when each was made, so that its age file is not taken again, nor an older one.
//!
//! `NAME.removed` has that time. A newer secret of this name takes the note's place. Of more than [`MAX`] notes the oldest are dropped,
//! by when they were written.

use std::os::unix::fs::MetadataExt as _;

use jiff::Timestamp;
use leaf_core::id::SecretName;

use super::names_with;
use crate::error::{Error, Result};
use crate::files::Directory;

/// The end of the names of the notes.
const NOTE: &str = ".removed";
/// The maximum number of notes.
const MAX: usize = 1024;

pub(super) fn file_name(name: &SecretName) -> String {
    format!("{name}{NOTE}")
}

/// Notes that a secret made at this time is removed. A note of a newer one stays.
pub(super) fn note(directory: &Directory, name: &SecretName, made: Timestamp) -> Result<()> {
    let made = time(directory, name)?.map_or(made, |before| before.max(made));
    directory.write(&file_name(name), format!("{made}\n").as_bytes(), 0o600)?;
    drop_oldest(directory, MAX)
}

/// Returns when the secret of this name was made that was removed last.
pub(super) fn time(directory: &Directory, name: &SecretName) -> Result<Option<Timestamp>> {
    let file = file_name(name);
    let Some(text) = directory.read(&file)? else {
        return Ok(None);
    };
    text.trim().parse().map(Some).map_err(|_| {
        Error::Refused(format!(
            "{} has no time of a removed secret: root removes it to have the secret {name} set again",
            directory.path().join(&file).display()
        ))
    })
}

/// Removes the note of a secret.
pub(super) fn forget(directory: &Directory, name: &SecretName) -> Result<()> {
    directory.remove_file(&file_name(name))
}

fn drop_oldest(directory: &Directory, most: usize) -> Result<()> {
    let names = names_with(directory, NOTE)?;
    let Some(spare @ 1..) = names.len().checked_sub(most) else {
        return Ok(());
    };
    let mut notes = Vec::new();
    for name in names {
        let path = directory.path().join(file_name(&name));
        let stat = std::fs::symlink_metadata(&path).map_err(Error::io(format!("read {}", path.display())))?;
        notes.push(((stat.mtime(), stat.mtime_nsec()), name));
    }
    notes.sort();
    for (_, name) in notes.iter().take(spare) {
        forget(directory, name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SecretName {
        SecretName::new(text).expect("a name")
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn directory() -> (tempfile::TempDir, Directory) {
        let root = tempfile::tempdir().expect("a directory");
        let directory = Directory::make_root(&root.path().join("secrets"), 0o700).expect("a directory");
        (root, directory)
    }

    #[test]
    fn a_note_has_the_latest_time_and_is_forgotten_with_the_next_secret() {
        let (_root, directory) = directory();
        let db = name("db");
        assert_eq!(time(&directory, &db).expect("read"), None);
        for (made, expected) in [(100, 100), (50, 100), (200, 200)] {
            note(&directory, &db, at(made)).expect("noted");
            assert_eq!(time(&directory, &db).expect("read"), Some(at(expected)));
        }
        forget(&directory, &db).expect("forgotten");
        assert_eq!(time(&directory, &db).expect("read"), None);
        // One that can't be read lets nothing in.
        directory
            .write("db.removed", b"yesterday", 0o600)
            .expect("written");
        time(&directory, &db).expect_err("no time");
    }

    #[test]
    fn of_too_many_notes_the_oldest_are_dropped() {
        let (_root, directory) = directory();
        for number in 0..5i64 {
            let name = name(&format!("s{number}"));
            note(&directory, &name, at(100)).expect("noted");
            let file = std::fs::File::open(directory.path().join(file_name(&name))).expect("a file");
            // s4 is the oldest.
            let written =
                std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000 - number.unsigned_abs());
            file.set_modified(written).expect("a time");
        }
        drop_oldest(&directory, 5).expect("nothing to drop");
        assert_eq!(names_with(&directory, NOTE).expect("names").len(), 5);
        drop_oldest(&directory, 3).expect("dropped");
        let left = names_with(&directory, NOTE).expect("names");
        assert_eq!(left, [name("s0"), name("s1"), name("s2")]);
    }
}
