//! The agent as a witness: it signs that a leaf has reached it, for a change that can cut the leaf off. `docs/security.md` is the contract.
//!
//! It looks at no state, and needs no stream: whether the leaf is known, or the hub's store works, says nothing about the leaf's way to
//! it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::BASE64;
use leaf_core::change::{NAMESPACE, witness_text};
use leaf_core::error::chain;
use leaf_core::fleet::witness::{WitnessReply, WitnessRequest};
use leaf_core::id::LeafName;
use leaf_trust::ssh_signature::{SignError, SshSignature, public_key_of};
use tokio::time::Instant;
use zeroize::Zeroizing;

/// How many signatures a leaf gets in [`WINDOW`]: a change needs two, and is asked for again every 2 s.
const AT_ONCE: u32 = 10;
const WINDOW: Duration = Duration::from_secs(5);

/// Why the key of the witness can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WitnessKeyError {
    /// The file can't be read.
    #[error("can't read the key of the witness in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Other users can read it.
    #[error("the key of the witness in {} has mode {mode:04o}, so other users can read it: run `chmod 600` on it", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It is no key that signs by itself.
    #[error("the key of the witness in {} can't sign", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: SignError,
    },
}

/// Reads the private key, an `ssh-ed25519` key of OpenSSH without a passphrase.
pub(crate) fn read_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, WitnessKeyError> {
    let failed = |source| WitnessKeyError::Read {
        path: path.to_owned(),
        source,
    };
    let meta = path.metadata().map_err(failed)?;
    let mode = meta.mode() & 0o7777;
    // As ssh does. The credentials of a unit of systemd can be root's, with a list that lets the unit's user read them: that list shows
    // as the rights of the group.
    let is_own = meta.uid() == rustix::process::geteuid().as_raw();
    if mode & 0o007 != 0 || is_own && mode & 0o077 != 0 {
        return Err(WitnessKeyError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let key = Zeroizing::new(std::fs::read(path).map_err(failed)?);
    // Whether it signs is seen now.
    SshSignature::sign(&key, NAMESPACE, b"").map_err(|source| WitnessKeyError::Unusable {
        path: path.to_owned(),
        source,
    })?;
    Ok(key)
}

/// Signs for leaves, as often as each may ask.
pub(crate) struct Witness {
    key: Option<Zeroizing<Vec<u8>>>,
    asked: BTreeMap<LeafName, Asked>,
}

/// How often a leaf has asked, since when.
struct Asked {
    since: Instant,
    times: u32,
}

impl Witness {
    /// Takes the key of the settings. Without one it refuses each request.
    pub(crate) fn new(path: Option<&Path>) -> Result<Self, WitnessKeyError> {
        let key = path.map(read_key).transpose()?;
        if let Some(public) = key.as_ref().and_then(|key| public_key_of(key).ok()) {
            tracing::info!(key = public.to_line(), "a witness of changes");
        }
        Ok(Self {
            key,
            asked: BTreeMap::new(),
        })
    }

    /// Returns the reply to a request of the leaf on whose subject it came; `None` where that asks too often.
    pub(crate) fn answer(
        &mut self,
        leaf: &LeafName,
        request: &WitnessRequest,
        now: Instant,
    ) -> Option<WitnessReply> {
        if !self.may_ask(leaf, now) {
            return None;
        }
        let Some(key) = &self.key else {
            let why = "this hub is no witness: its leaf-hub.toml has no witness_key";
            return Some(WitnessReply::Refused { why: why.to_owned() });
        };
        let text = witness_text(leaf, request.change, &request.nonce);
        Some(match SshSignature::sign(key, NAMESPACE, text.as_bytes()) {
            Ok(signature) => {
                tracing::info!(%leaf, change = %request.change, "signed as a witness of this leaf's change");
                WitnessReply::Signed {
                    signature: BASE64.encode(&signature.to_bytes()),
                }
            }
            Err(error) => WitnessReply::Refused { why: chain(&error) },
        })
    }

    fn may_ask(&mut self, leaf: &LeafName, now: Instant) -> bool {
        self.asked
            .retain(|_, asked| now.saturating_duration_since(asked.since) < WINDOW);
        let asked = self
            .asked
            .entry(leaf.clone())
            .or_insert(Asked { since: now, times: 0 });
        asked.times = asked.times.saturating_add(1);
        if asked.times == AT_ONCE + 1 {
            tracing::warn!(%leaf, "the leaf asks for more signatures of a witness than it gets");
        }
        asked.times <= AT_ONCE
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use leaf_core::change::WitnessNonce;
    use leaf_trust::ssh_signature::private_key_of_seed;

    use super::*;

    fn request() -> WitnessRequest {
        WitnessRequest {
            change: "0193f6b0-4c1e-7000-8000-000000000000".parse().expect("an id"),
            nonce: WitnessNonce::from([7; 32]),
        }
    }

    fn key_file(seed: u8) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), &*private_key_of_seed(&[seed; 32], "a witness")).expect("written");
        file
    }

    fn leaf(name: &str) -> LeafName {
        LeafName::new(name).expect("a name")
    }

    #[test]
    fn the_signature_is_over_the_leaf_of_the_subject_the_change_and_the_nonce() {
        let file = key_file(1);
        let mut witness = Witness::new(Some(file.path())).expect("a key");
        let reply = witness.answer(&leaf("edge-1"), &request(), Instant::now());
        let Some(WitnessReply::Signed { signature }) = reply else {
            panic!("{reply:?}");
        };
        let bytes = BASE64.decode(signature.as_bytes()).expect("base64");
        let signature = SshSignature::from_bytes(&bytes).expect("a signature");
        let key = public_key_of(&read_key(file.path()).expect("a key")).expect("a key");
        assert_eq!(signature.key(), &key);
        let verify = |name: &str, request: &WitnessRequest| {
            let text = witness_text(&leaf(name), request.change, &request.nonce);
            signature.verify(NAMESPACE, text.as_bytes()).is_ok()
        };
        assert!(verify("edge-1", &request()));
        assert!(!verify("edge-2", &request()));
        let other = WitnessRequest {
            nonce: WitnessNonce::from([8; 32]),
            ..request()
        };
        assert!(!verify("edge-1", &other));
    }

    #[tokio::test]
    async fn a_leaf_that_asks_without_end_gets_few_signatures_and_the_others_theirs() {
        let mut witness = Witness::new(Some(key_file(1).path())).expect("a key");
        let now = Instant::now();
        let mut signed = |name: &str, now| witness.answer(&leaf(name), &request(), now).is_some();
        assert_eq!((0..1000).filter(|_| signed("edge-1", now)).count(), 10);
        assert!(signed("edge-2", now));
        assert!(signed("edge-1", now + WINDOW));
    }

    #[test]
    fn a_hub_without_a_key_says_so() {
        let mut witness = Witness::new(None).expect("none is needed");
        let reply = witness.answer(&leaf("edge-1"), &request(), Instant::now());
        assert!(matches!(reply, Some(WitnessReply::Refused { why }) if why.contains("witness_key")));
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_not_used() {
        let file = key_file(1);
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).expect("set");
        assert!(matches!(
            read_key(file.path()),
            Err(WitnessKeyError::Exposed { mode: 0o640, .. })
        ));
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "no key").expect("written");
        assert!(matches!(
            read_key(file.path()),
            Err(WitnessKeyError::Unusable { .. })
        ));
        assert!(matches!(
            read_key(Path::new("/nowhere")),
            Err(WitnessKeyError::Read { .. })
        ));
    }
}
