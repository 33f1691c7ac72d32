//! The age files of a leaf, and the host key that decrypts them.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use leaf_core::error::chain;
use leaf_core::id::{LeafName, SecretName};
use leaf_core::secret::MAX_FILE_BYTES;
use leaf_trust::secret::SecretDocument;

use super::file_name;
use crate::error::{Error, Result};
use crate::files::Directory;

/// The maximum size of a private key's file, in bytes.
const MAX_KEY_BYTES: u64 = 64 * 1024;

/// The age files of a leaf, and the host key that decrypts them.
#[derive(Debug, Clone)]
pub struct SecretStore {
    pub(crate) leaf: LeafName,
    /// The directory of the age files.
    pub(crate) directory: PathBuf,
    /// The file of the private key.
    pub(crate) host_key: PathBuf,
}

impl SecretStore {
    /// Returns a secret that is kept, decrypted.
    pub(super) fn decrypted(&self, name: &SecretName) -> Result<SecretDocument> {
        let Some(file) = self.file(name)? else {
            return Err(Error::Refused(format!(
                "the leaf has no secret {name}; set it with `leafctl secret set {name}`"
            )));
        };
        self.decrypt(name, file.as_bytes())
    }

    pub(super) fn decrypt(&self, name: &SecretName, file: &[u8]) -> Result<SecretDocument> {
        let key = self.private_key()?;
        SecretDocument::decrypt(&key, file, &self.leaf, name)
            .map_err(|e| Error::Refused(format!("the secret {name} can't be used: {}", chain(&e))))
    }

    /// Returns the text of the host's private key, which must be root's alone.
    pub(super) fn private_key(&self) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        let path = &self.host_key;
        let failed = || Error::io(format!("read the host key {}", path.display()));
        let file = match std::fs::File::open(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.unusable_key("it does not exist"));
            }
            other => other.map_err(failed())?,
        };
        let stat = file.metadata().map_err(failed())?;
        if !stat.is_file() || stat.uid() != 0 || stat.mode() & 0o077 != 0 {
            return Err(self.unusable_key("it must be a file of root that no other user may read"));
        }
        // One allocation, so that no piece of the key is left behind when it grows.
        let size = stat.len().min(MAX_KEY_BYTES);
        let mut key = zeroize::Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1));
        file.take(size).read_to_end(&mut key).map_err(failed())?;
        Ok(key)
    }

    pub(super) fn unusable_key(&self, why: &str) -> Error {
        Error::Unsupported(format!(
            "secrets need the host key {}, and {why}; `ssh-keygen -A` makes host keys, and host_key in the helper's settings names \
             another file",
            self.host_key.display()
        ))
    }

    pub(super) fn make_directory(&self) -> Result<Directory> {
        Directory::make_root(&self.directory, 0o700)
    }

    pub(super) fn file(&self, name: &SecretName) -> Result<Option<String>> {
        let Some(directory) = Directory::open_root(&self.directory)? else {
            return Ok(None);
        };
        let file = directory.read(&file_name(name))?;
        if let Some(file) = file.as_ref().filter(|file| file.len() > MAX_FILE_BYTES) {
            return Err(Error::Refused(format!(
                "the age file of the secret {name} has {} bytes, at most {MAX_FILE_BYTES} are allowed",
                file.len()
            )));
        }
        Ok(file)
    }
}
