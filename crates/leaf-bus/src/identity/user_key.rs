//! NKEYS of users, where a server knows its users by public keys and not by JWTs.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nkeys::{KeyPair, KeyPairType};

use super::IdentityError;
use super::files::read_private;

/// Returns the public key of the user whose seed is in a file. If there is no such file, makes an NKEY and writes its seed into it
/// (mode 0600).
///
/// # Errors
/// [`IdentityError`] if the file can't be written, or is there and is not one that [`public_user_key`] reads: a key is never
/// replaced.
pub fn user_key(path: &Path) -> Result<String, IdentityError> {
    let key = KeyPair::new_user();
    let seed = key.seed().expect("a key just made has its seed");
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            writeln!(file, "{seed}")?;
            file.sync_all()
        });
    match written {
        Ok(()) => Ok(key.public_key()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => public_user_key(path),
        Err(source) => Err(IdentityError::Write {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Returns the public key of the user whose seed is in a file.
///
/// # Errors
/// [`IdentityError`] if there is no such file, if other users can read it, or if it holds no user's seed.
pub fn public_user_key(path: &Path) -> Result<String, IdentityError> {
    let text = read_private(path)?.ok_or_else(|| IdentityError::Read {
        path: path.to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    match KeyPair::from_seed(text.trim()) {
        Ok(key) if key.key_pair_type() == KeyPairType::User => Ok(key.public_key()),
        _ => Err(IdentityError::NoSeed {
            path: path.to_owned(),
        }),
    }
}

/// Returns whether a text is the public key of a user.
#[must_use]
pub fn is_public_user_key(text: &str) -> bool {
    KeyPair::from_public_key(text).is_ok_and(|key| key.key_pair_type() == KeyPairType::User)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn a_key_is_made_once_and_read_by_its_owner() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("edge-1.seed");
        let public = user_key(&path).expect("a key");
        assert!(is_public_user_key(&public), "{public}");
        assert_eq!(path.metadata().expect("the file").mode() & 0o7777, 0o600);
        assert_eq!(public_user_key(&path).expect("its public key"), public);
        assert_eq!(user_key(&path).expect("a key is never replaced"), public);
        assert_eq!(public_user_key(&path).expect("its public key"), public);
    }

    #[test]
    fn what_is_no_users_seed_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("seed");
        let account = KeyPair::new_account();
        for text in ["", "SUNOTHING", &account.seed().expect("a seed")] {
            super::super::files::write_private(&path, text).expect("written");
            let error = public_user_key(&path).expect_err(text).to_string();
            assert!(error.contains("seed of a user"), "{error}");
        }
        for text in ["", "U", "UABC", account.public_key().as_str()] {
            assert!(!is_public_user_key(text), "{text}");
        }
    }
}
