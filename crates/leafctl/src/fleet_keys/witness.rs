//! The key with which the hub agent confirms, as a witness, changes that can cut a leaf off. The public part is in the settings of each
//! leaf. `docs/security.md` is the contract.

use leaf_trust::ssh_signature::{private_key_of_seed, public_key_of};

use super::directory::Directory;
use super::error::KeysError;
use super::files;

/// The private key.
const KEY: &str = "hub/witness.key";
/// The public key, as a line of OpenSSH.
const PUBLIC: &str = "hub/witness.pub";

impl Directory {
    /// Makes a key for the hub agent as a witness, in the place of the one before, and returns the line of its public part.
    pub(crate) fn new_witness(&self) -> Result<String, KeysError> {
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).expect("the kernel has random bytes once it runs (getrandom(2))");
        let comment = format!("witness of the fleet {}", self.manifest().name);
        let key = private_key_of_seed(&seed, &comment);
        let public = public_line(key.as_bytes()).map_err(|error| KeysError::damaged(&self.at(KEY), error))?;
        // The private part first: without it the public one would be taken for one whose private part is at the hub alone.
        files::replace(&self.at(KEY), &key)?;
        files::replace(&self.at(PUBLIC), &format!("{public}\n"))?;
        Ok(public)
    }

    /// Returns the line of the witness's public key; `None` for a fleet that was made before there were witnesses.
    pub(crate) fn witness(&self) -> Result<Option<String>, KeysError> {
        let path = self.at(KEY);
        if let Some(key) = files::read_private(&path)? {
            let public = public_line(key.as_bytes());
            return public.map(Some).map_err(|error| KeysError::damaged(&path, error));
        }
        let path = self.at(PUBLIC);
        let Some(line) = files::read(&path)? else {
            return Ok(None);
        };
        let key: leaf_trust::ssh_signature::SignerKey =
            line.parse().map_err(|error| KeysError::damaged(&path, error))?;
        Ok(Some(key.to_line()))
    }
}

fn public_line(key: &[u8]) -> Result<String, leaf_trust::ssh_signature::SignError> {
    public_key_of(key).map(|public| public.to_line())
}
