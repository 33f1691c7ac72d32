//! The users of containers, as a scoped signing key of the callers' account issues them.
//!
//! On a leaf's own server the key is one of [`Identity`](super::Identity)'s. On a given NATS it is a file
//! ([`ContainerSigner`]), made by whoever manages the account there (`docs/nats.md`). Only in operator mode have servers
//! such keys.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use leaf_core::host_op::Secret;
use leaf_core::id::{ContainerName, LeafName};
use leaf_core::renewal::CONTAINER_VALID;
use nkeys::{KeyPair, KeyPairType};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::jwt::{self, Claims};
use super::permissions::Permissions;
use crate::credentials;

/// Why a given signing key can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The file can't be read.
    #[error("can't read the signing key of containers in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// All users of the host can read the key, or others than its owner can replace it.
    #[error("the signing key of containers in {} has mode {mode:04o}, so users of this host can read or replace it: run `chmod 600` on it, and make a new key if one did", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// The file's mode.
        mode: u32,
    },
    /// The file has no seed of an account's key.
    #[error("{} holds no seed of a signing key of an account: such a seed begins with SA and is the only line (`nsc generate nkey --account`)", path.display())]
    NoSeed {
        /// The file.
        path: PathBuf,
    },
    /// The key of the account itself, which can issue any user.
    #[error("{} holds the key of the account {account} itself, which a leaf must not have: give it a signing key with a scope (docs/nats.md)", path.display())]
    AccountKey {
        /// The file.
        path: PathBuf,
        /// The account's public key.
        account: String,
    },
    /// The credentials don't say of which account their user is.
    #[error("the account of containers is that of the leaf's user in {}, but that file names none: {why}; give the credentials of a user with a JWT, of a server in operator mode", path.display())]
    NoAccount {
        /// The file of the credentials.
        path: PathBuf,
        /// What it lacks.
        why: String,
    },
}

/// A given signing key, and the account that it belongs to.
pub struct ContainerSigner {
    account: String,
    key: KeyPair,
    valid: Duration,
}

impl ContainerSigner {
    /// Reads the seed of a scoped signing key. Its account is that of the user whose credentials the other file holds: the
    /// leaf's own user in the callers' account.
    ///
    /// # Errors
    /// [`SignerError`].
    pub fn open(key_file: &Path, credentials_file: &Path) -> Result<Self, SignerError> {
        let path = key_file.to_owned();
        let read = |source| SignerError::Read {
            path: path.clone(),
            source,
        };
        // The group may read it: systemd gives its credentials to a unit's user by an access list, which shows as the
        // group's bits.
        let mode = std::fs::metadata(key_file).map_err(read)?.mode() & 0o7777;
        if mode & 0o027 != 0 {
            return Err(SignerError::Exposed { path, mode });
        }
        let seed = std::fs::read_to_string(key_file).map_err(read)?;
        let key = KeyPair::from_seed(seed.trim())
            .ok()
            .filter(|key| key.key_pair_type() == KeyPairType::Account);
        let Some(key) = key else {
            return Err(SignerError::NoSeed { path });
        };
        let account = credentials::account(credentials_file).map_err(|why| SignerError::NoAccount {
            path: credentials_file.to_owned(),
            why,
        })?;
        if key.public_key() == account {
            return Err(SignerError::AccountKey { path, account });
        }
        Ok(Self {
            account,
            key,
            valid: CONTAINER_VALID,
        })
    }

    /// Returns it with another life of the [credentials](Self::credentials) than a day.
    #[must_use]
    pub fn with_valid(self, valid: Duration) -> Self {
        Self { valid, ..self }
    }

    /// The public key of the account that the containers' users belong to.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.account
    }

    /// The public half of the signing key, as the account lists it.
    #[must_use]
    pub fn public_key(&self) -> String {
        self.key.public_key()
    }

    /// Returns new credentials of the user of a leaf's container, [`ContainerName::caller`], which are valid for the time that
    /// [`Self::with_valid`] set. Whoever manages the account can revoke them, by the user's [public key](Self::user).
    #[must_use]
    pub fn credentials(&self, leaf: &LeafName, container: &ContainerName) -> Secret {
        let user = user_of(&self.key, container);
        let now = Timestamp::now().as_second();
        let life = (now, ends_at(now, self.valid));
        issue(&self.key, &self.account, (leaf, container), &user, life)
    }

    /// Returns the public key of a container's user.
    #[must_use]
    pub fn user(&self, container: &ContainerName) -> String {
        user_of(&self.key, container).public_key()
    }
}

impl Permissions {
    /// Returns a container's permissions, as the server makes them of the key's template.
    #[must_use]
    pub fn container(leaf: &LeafName, container: &ContainerName) -> Self {
        let fill = |subjects: Vec<String>| {
            let filled = subjects.into_iter().map(|subject| {
                subject
                    .replace("{{tag(container)}}", &container.token())
                    .replace("{{name()}}", container.caller(leaf).as_str())
            });
            filled.collect()
        };
        let template = Self::container_template(leaf);
        Self {
            publish: fill(template.publish),
            publish_denied: fill(template.publish_denied),
            subscribe: fill(template.subscribe),
            responses: template.responses,
        }
    }
}

impl std::fmt::Debug for ContainerSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerSigner")
            .field("account", &self.account)
            .field("public_key", &self.public_key())
            .finish_non_exhaustive()
    }
}

/// Returns the key of a container's user. It is derived from the signing key and the name, so that destroying the container
/// can revoke it without stored data.
pub(super) fn user_of(signer: &KeyPair, container: &ContainerName) -> KeyPair {
    derive(signer, KeyPairType::User, "container user", &container.token())
}

/// Returns a key that is derived from another one, for a purpose and a name.
pub(super) fn derive(from: &KeyPair, kind: KeyPairType, purpose: &str, name: &str) -> KeyPair {
    let seed = from.seed().expect("the key has its seed");
    let mut hash = Sha256::new();
    hash.update(b"cim-leaf ");
    hash.update(purpose);
    hash.update(b"\0");
    hash.update(seed);
    hash.update(b"\0");
    hash.update(name);
    KeyPair::new_from_raw(kind, hash.finalize().into()).expect("32 bytes make a key")
}

/// Returns when credentials end that were issued then, in seconds of the Unix epoch.
pub(super) fn ends_at(issued_at: i64, valid: Duration) -> i64 {
    issued_at.saturating_add(i64::try_from(valid.as_secs()).unwrap_or(i64::MAX))
}

/// Returns the credentials of a container's user, issued by a scoped signing key of the account: the server itself limits
/// them to the container's own subjects. They are valid from one time to another, in seconds of the Unix epoch.
pub(super) fn issue(
    signer: &KeyPair,
    account: &str,
    (leaf, container): (&LeafName, &ContainerName),
    user: &KeyPair,
    (issued_at, ends_at): (i64, i64),
) -> Secret {
    // A user of a scoped key must have no permissions or limits: the scope has them.
    let claims = json!({
        "type": "user",
        "version": 2,
        "issuer_account": account,
        "tags": [format!("container:{}", container.token())],
    });
    let jwt = jwt::sign(
        Claims {
            subject: &user.public_key(),
            name: container.caller(leaf).as_str(),
            issued_at,
            expires_at: Some(ends_at),
            nats: claims,
        },
        signer,
    );
    Secret::new(jwt::credentials(&jwt, user))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::identity::{Identity, daemon_caller};

    struct Site {
        dir: tempfile::TempDir,
        identity: Identity,
    }

    impl Site {
        fn new() -> Self {
            let dir = tempfile::tempdir().expect("a directory");
            let leaf = LeafName::new("edge").expect("a name");
            let identity = Identity::open_or_create(&dir.path().join("identity"), &leaf).expect("keys");
            let site = Self { dir, identity };
            site.write("leafd.creds", site.identity.service_credentials().expose(), 0o600);
            site
        }

        fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
            let file = self.dir.path().join(name);
            std::fs::write(&file, text).expect("a file");
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("a mode");
            file
        }

        fn open(&self, key: &str, mode: u32) -> Result<ContainerSigner, SignerError> {
            let key = self.write("key", key, mode);
            ContainerSigner::open(&key, &self.dir.path().join("leafd.creds"))
        }
    }

    fn seed(key: &KeyPair) -> String {
        key.seed().expect("a seed")
    }

    #[test]
    fn the_account_is_that_of_the_leafs_own_user() {
        let site = Site::new();
        let key = KeyPair::new_account();
        let signer = site.open(&format!("{}\n", seed(&key)), 0o440).expect("a key");
        assert_eq!(signer.account(), site.identity.callers_account());
        assert_eq!(signer.public_key(), key.public_key());

        // Where a signing key issued the leaf's user, the account is named beside it.
        let account = KeyPair::new_account().public_key();
        let leafd = ContainerName::new("leafd").expect("a name");
        let user = KeyPair::new_user();
        let leaf = LeafName::new("edge").expect("a leaf");
        let credentials = issue(&KeyPair::new_account(), &account, (&leaf, &leafd), &user, (7, 9));
        site.write("leafd.creds", credentials.expose(), 0o600);
        assert_eq!(site.open(&seed(&key), 0o400).expect("a key").account(), account);
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_no_signing_key_is_refused() {
        let site = Site::new();
        let key = seed(&KeyPair::new_account());
        for mode in [0o644, 0o604, 0o620, 0o602] {
            assert!(
                matches!(site.open(&key, mode), Err(SignerError::Exposed { .. })),
                "{mode:o}"
            );
        }
        for other in [
            seed(&KeyPair::new_user()),
            seed(&KeyPair::new_operator()),
            KeyPair::new_account().public_key(),
            "SAAX".to_owned(),
            String::new(),
        ] {
            assert!(
                matches!(site.open(&other, 0o600), Err(SignerError::NoSeed { .. })),
                "{other}"
            );
        }
        let own = KeyPair::from_seed(&key).expect("a key");
        let caller = daemon_caller();
        let container = ContainerName::new(caller.as_str()).expect("a name");
        let leaf = LeafName::new("edge").expect("a leaf");
        let of = (&leaf, &container);
        let leafd = issue(&own, &own.public_key(), of, &KeyPair::new_user(), (7, 9));
        site.write("leafd.creds", leafd.expose(), 0o600);
        assert!(matches!(
            site.open(&key, 0o600),
            Err(SignerError::AccountKey { .. })
        ));
        site.write("leafd.creds", "SUANOJWT", 0o600);
        assert!(matches!(
            site.open(&key, 0o600),
            Err(SignerError::NoAccount { .. })
        ));
        assert!(matches!(
            ContainerSigner::open(Path::new("/nowhere"), Path::new("/nowhere")),
            Err(SignerError::Read { .. })
        ));
    }
}
