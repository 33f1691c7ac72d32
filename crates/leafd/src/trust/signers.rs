//! The files that say who may sign. They are read for each signature, so that a change counts at once, and parsed when their text is another
//! than before.

use std::fs::Metadata;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use leaf_core::error::chain;
use leaf_core::id::Caller;
use leaf_core::signed::NAMESPACE;
use leaf_host::files;
use leaf_trust::allowed_signers::{AllowedSigners, RevokedSigners, When};
#[cfg(feature = "openpgp")]
use leaf_trust::openpgp::AllowedOpenPgp;
use leaf_trust::ssh_signature::SignerKey;
use tokio::sync::watch;

use super::signature::{Signature, WITHOUT_OPENPGP};
use crate::settings::TrustSettings;

/// The largest file, in bytes: some thousand keys.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The settings that name the files.
const ALLOWED: &str = "trust.allowed_signers";
const OPENPGP: &str = "trust.allowed_openpgp";
const REVOKED: &str = "trust.revoked_signers";

/// Why no signature is accepted where the settings name no file.
const NOT_NAMED: &str = "this leaf's settings name no file of allowed signers (trust.allowed_signers)";

/// The files, by their paths.
#[derive(Debug)]
pub(super) struct SignerFiles {
    allowed: Option<PathBuf>,
    openpgp: Option<PathBuf>,
    revoked: Option<PathBuf>,
    /// What they had when they were read last.
    last: watch::Sender<Option<LastRead>>,
}

/// The texts of the files, and what they say.
#[derive(Debug)]
struct LastRead {
    texts: Texts,
    signers: Result<Arc<Signers>, String>,
}

/// The texts of the files that are named.
#[derive(Debug, PartialEq, Eq)]
struct Texts {
    allowed: Option<String>,
    openpgp: Option<String>,
    revoked: Option<String>,
}

/// The keys that may sign, and those that may not any more.
#[derive(Debug, Default)]
pub(super) struct Signers {
    allowed: AllowedSigners,
    #[cfg(feature = "openpgp")]
    openpgp: AllowedOpenPgp,
    revoked: RevokedSigners,
}

impl Signers {
    /// Checks that a signature is over this text, by a key that may sign for a caller.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn verify(
        &self,
        signature: &Signature,
        caller: &Caller,
        when: When,
        text: &str,
    ) -> Result<(), String> {
        match signature {
            Signature::Ssh(signature) => {
                self.revoked
                    .check(signature.key())
                    .and_then(|()| self.allowed.check(signature.key(), caller, NAMESPACE, when))
                    .map_err(|error| chain(&error))?;
                let verified = signature.verify(NAMESPACE, text.as_bytes());
                verified.map_err(|error| chain(&error))
            }
            #[cfg(feature = "openpgp")]
            Signature::OpenPgp(signature) => {
                let key = self
                    .revoked
                    .check_fingerprint(signature.fingerprint())
                    .and_then(|()| self.openpgp.check(signature, caller, when))
                    .and_then(|key| self.revoked.check_fingerprint(key.fingerprint()).map(|()| key))
                    .map_err(|error| chain(&error))?;
                let verified = signature.verify(key, text.as_bytes(), when);
                verified.map_err(|error| chain(&error))
            }
        }
    }

    /// Returns the fingerprints of the keys that may sign for a caller: of an OpenPGP key that of the primary key, and those of the
    /// parts that sign.
    pub(super) fn keys_of(&self, caller: &Caller, when: When) -> Vec<String> {
        let keys = self.allowed.keys_of(caller, NAMESPACE, when).into_iter();
        let keys = keys.map(SignerKey::fingerprint);
        #[cfg(feature = "openpgp")]
        let keys = keys.chain(self.openpgp_keys_of(caller, when));
        keys.filter(|key| self.revoked.check_fingerprint(key).is_ok())
            .collect()
    }

    #[cfg(feature = "openpgp")]
    fn openpgp_keys_of(&self, caller: &Caller, when: When) -> Vec<String> {
        let mut found = Vec::new();
        for (primary, parts) in self.openpgp.keys_of(caller, when) {
            if self.revoked.check_fingerprint(primary).is_ok() {
                let parts = parts.into_iter().filter(|part| *part != primary);
                found.extend(std::iter::once(primary).chain(parts).map(str::to_owned));
            }
        }
        found
    }

    /// Returns whether a line names a caller literally.
    pub(super) fn name(&self, caller: &Caller) -> bool {
        #[cfg(feature = "openpgp")]
        let is_in_openpgp = self.openpgp.name(caller);
        #[cfg(not(feature = "openpgp"))]
        let is_in_openpgp = false;
        self.allowed.name(caller) || is_in_openpgp
    }
}

impl SignerFiles {
    /// Returns the files that the settings name, which are read now.
    pub(super) fn of(settings: &TrustSettings) -> Option<Self> {
        let files = Self {
            allowed: settings.allowed_signers.clone(),
            openpgp: settings
                .allowed_openpgp
                .clone()
                .filter(|_| cfg!(feature = "openpgp")),
            revoked: settings.revoked_signers.clone(),
            last: watch::channel(None).0,
        };
        if files.allowed.is_none() && files.openpgp.is_none() {
            return None;
        }
        // What is wrong with them is said where they are needed.
        drop(files.read());
        Some(files)
    }

    /// Reads them.
    ///
    /// # Errors
    /// Why no signature is accepted.
    fn read(&self) -> Result<Arc<Signers>, String> {
        let text =
            |setting, path: &Option<PathBuf>| path.as_deref().map(|path| text(setting, path)).transpose();
        let texts = Texts {
            allowed: text(ALLOWED, &self.allowed)?,
            openpgp: text(OPENPGP, &self.openpgp)?,
            revoked: text(REVOKED, &self.revoked)?,
        };
        if let Some(last) = &*self.last.borrow()
            && last.texts == texts
        {
            return last.signers.clone();
        }
        let signers = self.parse(&texts).map(Arc::new);
        self.last.send_replace(Some(LastRead {
            texts,
            signers: signers.clone(),
        }));
        signers
    }

    fn parse(&self, texts: &Texts) -> Result<Signers, String> {
        Ok(Signers {
            allowed: parse(ALLOWED, &self.allowed, &texts.allowed)?,
            #[cfg(feature = "openpgp")]
            openpgp: parse(OPENPGP, &self.openpgp, &texts.openpgp)?,
            revoked: parse(REVOKED, &self.revoked, &texts.revoked)?,
        })
    }

    /// Returns whether the files name a caller literally, as they were when they were read last.
    pub(super) fn name(&self, caller: &Caller) -> bool {
        let last = self.last.borrow();
        let signers = last.as_ref().and_then(|last| last.signers.as_ref().ok());
        signers.is_some_and(|signers| signers.name(caller))
    }
}

/// Reads the files that the settings name.
///
/// # Errors
/// Why no signature is accepted.
pub(super) fn read(files: Option<&SignerFiles>) -> Result<Arc<Signers>, String> {
    files.ok_or_else(|| NOT_NAMED.to_owned())?.read()
}

/// Returns what is wrong with the files that the settings name, each with its setting.
#[must_use]
pub fn problems_of_files(settings: &TrustSettings) -> Vec<String> {
    let unread = settings
        .allowed_openpgp
        .as_ref()
        .filter(|_| !cfg!(feature = "openpgp"));
    let unread = unread.map(|path| unusable(OPENPGP, path, WITHOUT_OPENPGP));
    let found = SignerFiles::of(settings).map(|files| files.read());
    let found = found.and_then(Result::err);
    unread.into_iter().chain(found).collect()
}

/// Returns a file's text. Links are followed, as NixOS makes them in `/etc`: the opened file counts.
fn text(setting: &str, path: &Path) -> Result<String, String> {
    let failed = |why: String| unusable(setting, path, &why);
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
    Ok(text)
}

/// Parses the text of a file; one that is not named has nothing.
fn parse<T: FromStr + Default>(
    setting: &str,
    path: &Option<PathBuf>,
    text: &Option<String>,
) -> Result<T, String>
where
    T::Err: std::error::Error,
{
    let (Some(path), Some(text)) = (path, text) else {
        return Ok(T::default());
    };
    text.parse()
        .map_err(|error: T::Err| unusable(setting, path, &chain(&error)))
}

fn unusable(setting: &str, path: &Path, why: &str) -> String {
    format!("{setting}: {} can't be used: {why}", path.display())
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

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJo1s1ZhVJTGBQVSfKHLAd4c8hXzGEOwkaFjQ9D0eR6L";

    #[test]
    fn files_are_parsed_again_once_their_text_is_another_whatever_their_time_says() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        let time = std::time::SystemTime::UNIX_EPOCH;
        let write = |name: &str, text: &str| {
            std::fs::write(path(name), text).expect("written");
            let file = std::fs::File::options().write(true).open(path(name));
            file.and_then(|file| file.set_modified(time)).expect("its time");
        };
        write("allowed", &format!("ann {KEY}\n"));
        write("revoked", "# none\n");
        let settings = TrustSettings {
            allowed_signers: Some(path("allowed")),
            revoked_signers: Some(path("revoked")),
            ..TrustSettings::default()
        };
        let files = SignerFiles::of(&settings).expect("they are named");
        let [ann, bob] = ["ann", "bob"].map(|name| Caller::new(name).expect("a caller"));
        assert!(files.name(&ann) && !files.name(&bob));
        let first = files.read().expect("signers");
        assert!(
            Arc::ptr_eq(&first, &files.read().expect("signers")),
            "the same text is not parsed again"
        );
        // Of the same length and time.
        write("allowed", &format!("bob {KEY}\n"));
        files.read().expect("signers");
        assert!(files.name(&bob) && !files.name(&ann));
        let when = When::NotBefore(jiff::Timestamp::UNIX_EPOCH);
        let keys = || files.read().expect("signers").keys_of(&bob, when);
        let key: SignerKey = KEY.parse().expect("a key");
        assert_eq!(keys(), [key.fingerprint()]);
        write("revoked", &format!("{}\n", key.fingerprint()));
        assert!(keys().is_empty());
        write("revoked", "what is this\n");
        for _ in 0..2 {
            let why = files.read().expect_err("no key");
            assert!(why.contains("line 1 can't be used"), "{why}");
        }
    }
}
