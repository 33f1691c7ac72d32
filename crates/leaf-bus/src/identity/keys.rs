//! The keys of a leaf's own NATS: one file, created once. JWTs, credentials and the server's configuration are derived
//! from it, so that a new version can change permissions without changing a key.

use std::path::Path;

use jiff::Timestamp;
use leaf_core::id::{ContainerName, LeafName};
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};

use super::IdentityError;
use super::container_signer::{self, derive};
use super::files::{read_private, write_private};

const FORMAT: u32 = 2;
/// The previous format, with one account for all users.
const ONE_ACCOUNT: u32 = 1;

/// The file: seeds as NKEYS, which carry a checksum.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    format: u32,
    leaf: LeafName,
    made_at: Timestamp,
    operator: String,
    system: String,
    account: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    callers: Option<String>,
    container_signer: String,
    daemon: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    admin: String,
}

/// The validated keys.
pub(super) struct Keys {
    pub(super) made_at: Timestamp,
    pub(super) operator: KeyPair,
    pub(super) system: KeyPair,
    /// The account of the streams.
    pub(super) account: KeyPair,
    /// The account of the callers.
    pub(super) callers: KeyPair,
    pub(super) container_signer: KeyPair,
    /// The daemon's user in the streams' account.
    pub(super) daemon: KeyPair,
    /// The daemon's user in the callers' account.
    pub(super) service: KeyPair,
    pub(super) admin: KeyPair,
}

impl Keys {
    /// Reads the keys, or returns `None` if the file does not exist.
    pub(super) fn read(path: &Path, leaf: &LeafName) -> Result<Option<Self>, IdentityError> {
        let Some(text) = read_private(path)? else {
            return Ok(None);
        };
        let damaged = |what: String| IdentityError::Damaged {
            path: path.to_owned(),
            what,
        };
        let mut file: KeyFile = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        match file.format {
            FORMAT => {}
            ONE_ACCOUNT if file.callers.is_none() && file.service.is_none() => {
                file.format = FORMAT;
                file.callers = Some(seed(&KeyPair::new_account()));
                file.service = Some(seed(&KeyPair::new_user()));
                file.write(path)?;
            }
            other => {
                return Err(damaged(format!(
                    "it has format {other}, and this version reads only {FORMAT}"
                )));
            }
        }
        if &file.leaf != leaf {
            return Err(IdentityError::OtherLeaf {
                path: path.to_owned(),
                found: file.leaf,
                expected: leaf.clone(),
            });
        }
        let given = |name: &str, seed: &Option<String>| {
            seed.clone()
                .ok_or_else(|| damaged(format!("the key {name:?} is missing")))
        };
        let (callers, service) = (given("callers", &file.callers)?, given("service", &file.service)?);
        let key = |name: &str, seed: &str, kind: KeyPairType| match KeyPair::from_seed(seed) {
            Ok(pair) if pair.key_pair_type() == kind => Ok(pair),
            Ok(_) => Err(damaged(format!("the key {name:?} is one of another kind"))),
            Err(e) => Err(damaged(format!("the key {name:?} can't be read: {e}"))),
        };
        Ok(Some(Self {
            made_at: file.made_at,
            operator: key("operator", &file.operator, KeyPairType::Operator)?,
            system: key("system", &file.system, KeyPairType::Account)?,
            account: key("account", &file.account, KeyPairType::Account)?,
            callers: key("callers", &callers, KeyPairType::Account)?,
            container_signer: key("container_signer", &file.container_signer, KeyPairType::Account)?,
            daemon: key("daemon", &file.daemon, KeyPairType::User)?,
            service: key("service", &service, KeyPairType::User)?,
            admin: key("admin", &file.admin, KeyPairType::User)?,
        }))
    }

    /// Creates the keys and writes the file.
    pub(super) fn make(path: &Path, leaf: &LeafName, now: Timestamp) -> Result<Self, IdentityError> {
        let keys = Self {
            made_at: now,
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            account: KeyPair::new_account(),
            callers: KeyPair::new_account(),
            container_signer: KeyPair::new_account(),
            daemon: KeyPair::new_user(),
            service: KeyPair::new_user(),
            admin: KeyPair::new_user(),
        };
        let file = KeyFile {
            format: FORMAT,
            leaf: leaf.clone(),
            made_at: now,
            operator: seed(&keys.operator),
            system: seed(&keys.system),
            account: seed(&keys.account),
            callers: Some(seed(&keys.callers)),
            container_signer: seed(&keys.container_signer),
            daemon: seed(&keys.daemon),
            service: Some(seed(&keys.service)),
            admin: seed(&keys.admin),
        };
        file.write(path)?;
        Ok(keys)
    }
}

impl Keys {
    /// Returns the key of a container's user.
    pub(super) fn container(&self, container: &ContainerName) -> KeyPair {
        container_signer::user_of(&self.container_signer, container)
    }

    /// Returns the key of the account that holds the connection to a hub. It is derived, so that the file stays readable
    /// for versions that know no hub.
    pub(super) fn link_account(&self) -> KeyPair {
        derive(&self.container_signer, KeyPairType::Account, "link account", "")
    }

    /// Returns the key of the daemon's user in that account.
    pub(super) fn claimant(&self) -> KeyPair {
        derive(&self.container_signer, KeyPairType::User, "link user", "")
    }
}

impl KeyFile {
    fn write(&self, path: &Path) -> Result<(), IdentityError> {
        let text = serde_json::to_string_pretty(self).expect("a struct of texts is JSON");
        write_private(path, &(text + "\n")).map_err(|source| IdentityError::Write {
            path: path.to_owned(),
            source,
        })
    }
}

fn seed(key: &KeyPair) -> String {
    key.seed().expect("a key just made has its seed")
}
