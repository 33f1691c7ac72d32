//! Pairs of keys for tests, as `ssh-keygen` makes them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host_key::HostKey;

/// A pair of keys in a directory of its own.
pub(crate) struct KeyPair {
    _directory: tempfile::TempDir,
    /// The content of the private key's file.
    pub(crate) private: Vec<u8>,
    /// The public key.
    pub(crate) public: HostKey,
    /// The private key's file; that of the public key is beside it.
    pub(crate) file: PathBuf,
}

impl KeyPair {
    /// Returns a new Ed25519 pair without a passphrase.
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("key");
        make_key(&file, &["-t", "ed25519", "-N", ""]);
        Self {
            private: std::fs::read(&file).expect("a private key"),
            public: public_line(&file).parse().expect("a host key"),
            _directory: directory,
            file,
        }
    }
}

/// Has `ssh-keygen` make a pair, with these options.
pub(crate) fn make_key(file: &Path, options: &[&str]) {
    let mut make = Command::new("ssh-keygen");
    make.args(["-q", "-C", "", "-f"]).arg(file).args(options);
    let made = make.status().expect("ssh-keygen runs (Debian: openssh-client)");
    assert!(made.success(), "{made}");
}

/// Returns the line of the public key beside a private one.
pub(crate) fn public_line(file: &Path) -> String {
    let text = std::fs::read_to_string(file.with_extension("pub")).expect("a public key");
    text.trim().to_owned()
}
