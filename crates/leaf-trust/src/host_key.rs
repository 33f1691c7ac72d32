//! The SSH host key of a leaf (`/etc/ssh/ssh_host_ed25519_key`), which files are encrypted to.

use std::fmt;
use std::str::FromStr;

use ssh_key::{Algorithm, HashAlg, PrivateKey, PublicKey};

/// The public part of a leaf's SSH host key, an Ed25519 key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKey(PublicKey);

/// Why a text is not a host key that can be used.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// It is not a line of a `.pub` file.
    #[error(
        "this is not an SSH public key; one is a line such as `ssh-ed25519 AAAA…`, as in /etc/ssh/ssh_host_ed25519_key.pub of the leaf"
    )]
    Malformed(#[source] ssh_key::Error),
    /// It is not a private key.
    #[error("this is not an SSH private key")]
    Private(#[source] ssh_key::Error),
    /// It is a key of another type.
    #[error(
        "this is a key of the type {0}; only ssh-ed25519 is used: take /etc/ssh/ssh_host_ed25519_key.pub of the leaf"
    )]
    Algorithm(String),
}

impl HostKey {
    /// Returns the public part of a private key: of the text of `/etc/ssh/ssh_host_ed25519_key`.
    ///
    /// # Errors
    /// [`HostKeyError`] if it is not an ssh-ed25519 key without a passphrase.
    pub fn of_private_key(text: &[u8]) -> Result<Self, HostKeyError> {
        let key = PrivateKey::from_openssh(text).map_err(HostKeyError::Private)?;
        let mut key = key.public_key().clone();
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(HostKeyError::Algorithm(key.algorithm().to_string()));
        }
        key.set_comment("");
        Ok(Self(key))
    }

    /// Returns the fingerprint as `ssh-keygen -l` shows it: `SHA256:…`.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        self.0.fingerprint(HashAlg::Sha256).to_string()
    }
}

impl FromStr for HostKey {
    type Err = HostKeyError;

    /// Parses a line of a `.pub` file. Its comment is dropped.
    fn from_str(line: &str) -> Result<Self, HostKeyError> {
        let mut key = PublicKey::from_openssh(line.trim()).map_err(HostKeyError::Malformed)?;
        if key.algorithm() != Algorithm::Ed25519 {
            return Err(HostKeyError::Algorithm(key.algorithm().to_string()));
        }
        key.set_comment("");
        Ok(Self(key))
    }
}

impl fmt::Display for HostKey {
    /// Writes it as a line of a `.pub` file, without a comment.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_openssh().map_err(|_| fmt::Error)?)
    }
}
