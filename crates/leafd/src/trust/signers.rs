//! The files that say who may sign. They are read for each signature, so that a change counts at once.

use std::fs::Metadata;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use leaf_core::error::chain;
use leaf_core::id::Caller;
use leaf_core::signed::NAMESPACE;
use leaf_host::files;
use leaf_trust::allowed_signers::{AllowedSigners, NotAllowed, RevokedSigners, When};
use leaf_trust::ssh_signature::SignerKey;

use crate::settings::TrustSettings;

/// The largest file, in bytes: some thousand keys.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why no signature is accepted where the settings name no file.
const NOT_NAMED: &str = "this leaf's settings name no file of allowed signers (trust.allowed_signers)";

/// The paths of the files.
#[derive(Debug, Clone)]
pub(super) struct SignerFiles {
    allowed: PathBuf,
    revoked: Option<PathBuf>,
}

/// The keys that may sign, and those that may not any more.
#[derive(Debug, Default)]
pub(super) struct Signers {
    allowed: AllowedSigners,
    revoked: RevokedSigners,
}

impl Signers {
    /// Checks that a key may sign for a caller.
    ///
    /// # Errors
    /// [`NotAllowed`].
    pub(super) fn check(&self, key: &SignerKey, caller: &Caller, when: When) -> Result<(), NotAllowed> {
        self.revoked.check(key)?;
        self.allowed.check(key, caller, NAMESPACE, when)
    }

    /// Returns the fingerprints of the keys that may sign for a caller.
    pub(super) fn keys_of(&self, caller: &Caller, when: When) -> Vec<String> {
        let keys = self.allowed.keys_of(caller, NAMESPACE, when).into_iter();
        let keys = keys.filter(|key| self.revoked.check(key).is_ok());
        keys.map(SignerKey::fingerprint).collect()
    }

    /// Returns whether a line names a caller.
    pub(super) fn name(&self, caller: &Caller) -> bool {
        self.allowed.name(caller)
    }
}

impl SignerFiles {
    /// Returns the files that the settings name.
    pub(super) fn of(settings: &TrustSettings) -> Option<Self> {
        Some(Self {
            allowed: settings.allowed_signers.clone()?,
            revoked: settings.revoked_signers.clone(),
        })
    }

    /// Reads them.
    ///
    /// # Errors
    /// Why no signature is accepted.
    fn read(&self) -> Result<Signers, String> {
        Ok(Signers {
            allowed: parse("trust.allowed_signers", &self.allowed)?,
            revoked: match &self.revoked {
                Some(path) => parse("trust.revoked_signers", path)?,
                None => RevokedSigners::default(),
            },
        })
    }
}

/// Reads the files that the settings name.
///
/// # Errors
/// Why no signature is accepted.
pub(super) fn read(files: Option<&SignerFiles>) -> Result<Signers, String> {
    files.ok_or_else(|| NOT_NAMED.to_owned())?.read()
}

/// Returns what is wrong with the files that the settings name, each with its setting.
#[must_use]
pub fn problems_of_files(settings: &TrustSettings) -> Vec<String> {
    let found = SignerFiles::of(settings).map(|files| files.read());
    found.and_then(Result::err).into_iter().collect()
}

/// Reads a file. Links are followed, as NixOS makes them in `/etc`: the opened file counts.
fn parse<T: FromStr>(setting: &str, path: &Path) -> Result<T, String>
where
    T::Err: std::error::Error,
{
    let failed = |why: String| format!("{setting}: {} can't be used: {why}", path.display());
    let file = files::open(path).map_err(|error| failed(error.to_string()))?;
    let stat = file.metadata().map_err(|error| failed(error.to_string()))?;
    check_owner(&stat).map_err(failed)?;
    let mut text = String::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(failed(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    text.parse().map_err(|error: T::Err| failed(chain(&error)))
}

/// Checks that only root can write a file, or the owner of leafd's program, who could replace leafd itself.
fn check_owner(stat: &Metadata) -> Result<(), String> {
    let own = std::env::current_exe().and_then(std::fs::metadata);
    let owns_leafd = own.is_ok_and(|own| own.uid() == stat.uid());
    if stat.uid() != 0 && !owns_leafd {
        return Err(format!(
            "it belongs to user {}, and must belong to root",
            stat.uid()
        ));
    }
    if stat.mode() & 0o022 != 0 {
        return Err("its group or others can write it: chmod go-w".to_owned());
    }
    Ok(())
}
