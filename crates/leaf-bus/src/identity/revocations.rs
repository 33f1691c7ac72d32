//! Revoked users: a directory with one file for each, named by its public key, that holds the second up to which its
//! credentials are revoked. One file for each allows concurrent revocations.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::IdentityError;
use super::files::{private_dir, read_private, write_private};

/// Revokes a user's credentials that were issued up to this second of the Unix epoch.
pub(super) fn add(dir: &Path, user: &str, until: i64) -> Result<(), IdentityError> {
    let path = dir.join(user);
    private_dir(dir)
        .and_then(|()| write_private(&path, &format!("{until}\n")))
        .map_err(|source| IdentityError::Write { path, source })
}

/// Returns the second up to which a user's credentials are revoked.
pub(super) fn of(dir: &Path, user: &str) -> Result<Option<i64>, IdentityError> {
    let path = dir.join(user);
    read_private(&path)?
        .map(|text| {
            text.trim().parse().map_err(|_| IdentityError::Damaged {
                path,
                what: "it holds no time".to_owned(),
            })
        })
        .transpose()
}

/// Returns all revocations, by public key.
pub(super) fn all(dir: &Path) -> Result<BTreeMap<String, i64>, IdentityError> {
    let failed = |source| IdentityError::Read {
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        // The name of a temporary file begins with a dot.
        let Some(user) = name.to_str().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        if let Some(until) = of(dir, user)? {
            found.insert(user.to_owned(), until);
        }
    }
    Ok(found)
}

/// The directory of the revocations, beside the keys.
pub(super) fn directory(identity: &Path) -> PathBuf {
    identity.join("revoked")
}
