//! Files that are made once, or replaced as a whole.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use leaf_bus::identity::{private_dir, write_private};

use super::error::KeysError;

/// Replaces a file that only its owner may read, or makes it; also the directories above it.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), KeysError> {
    above(path)
        .and_then(|()| write_private(path, text))
        .map_err(KeysError::write(path))
}

/// Makes a file that only its owner may read, or fails if there is one.
pub(super) fn create(path: &Path, text: &str) -> Result<(), KeysError> {
    above(path).map_err(KeysError::write(path))?;
    make(path, text, 0o600)
}

/// Makes a file of a configuration, which everybody may read, or fails if there is one.
pub(super) fn create_public(path: &Path, text: &str) -> Result<(), KeysError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(KeysError::write(path))?;
    }
    make(path, text, 0o644)
}

/// Replaces a file of a configuration, or makes it.
pub(super) fn replace_public(path: &Path, text: &str) -> Result<(), KeysError> {
    replace_outside(path, text, 0o644)
}

/// Replaces a file outside of the fleet's directory, or makes it: a directory that is there keeps its mode.
pub(super) fn replace_outside(path: &Path, text: &str, mode: u32) -> Result<(), KeysError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(KeysError::write(path))?;
    }
    let temporary = beside(path);
    let written = whole(&temporary, text, mode).and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        KeysError::write(path)(error)
    })
}

/// Fails if there is something under this path.
pub(super) fn is_free(path: &Path) -> Result<(), KeysError> {
    match path.symlink_metadata() {
        Ok(_) => Err(KeysError::Exists(path.to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(KeysError::read(path)(error)),
    }
}

/// Returns the text of a file, or `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, KeysError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KeysError::read(path)(error)),
    }
}

/// Returns the text of a file that only its owner may read, or `None` if there is none.
pub(super) fn read_private(path: &Path) -> Result<Option<String>, KeysError> {
    let mode = match path.metadata() {
        Ok(meta) => meta.mode() & 0o7777,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(KeysError::read(path)(error)),
    };
    if mode & 0o077 != 0 {
        return Err(KeysError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    read(path)
}

/// Returns the names of a directory's entries, sorted; none if there is no directory. What begins with a dot is not one.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, KeysError> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(KeysError::read(directory)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(KeysError::read(directory))?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn above(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), private_dir)
}

/// Writes a file beside its place, whole, and links it there: a link replaces nothing.
fn make(path: &Path, text: &str, mode: u32) -> Result<(), KeysError> {
    let temporary = beside(path);
    let made = whole(&temporary, text, mode).and_then(|()| std::fs::hard_link(&temporary, path));
    let _ = std::fs::remove_file(&temporary);
    made.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => KeysError::Exists(path.to_owned()),
        _ => KeysError::write(path)(error),
    })
}

fn whole(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

fn beside(path: &Path) -> PathBuf {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}
