//! The keys of a leaf's own NATS: one file, made once. Everything else (JWTs, credentials, the server's
//! configuration) follows from it, so that what is allowed can change with the program and no key with it.

use std::path::Path;

use jiff::Timestamp;
use leaf_core::id::LeafName;
use nkeys::{KeyPair, KeyPairType};
use serde::{Deserialize, Serialize};

use super::IdentityError;
use super::files::{read_private, write_private};

const FORMAT: u32 = 1;

/// The file: seeds in the form of NKEYS, which carry a checksum each.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    format: u32,
    leaf: LeafName,
    made_at: Timestamp,
    operator: String,
    system: String,
    account: String,
    container_signer: String,
    daemon: String,
    admin: String,
}

/// The keys, read and checked.
pub(super) struct Keys {
    pub(super) made_at: Timestamp,
    pub(super) operator: KeyPair,
    pub(super) system: KeyPair,
    pub(super) account: KeyPair,
    pub(super) container_signer: KeyPair,
    pub(super) daemon: KeyPair,
    pub(super) admin: KeyPair,
}

impl Keys {
    /// Reads the keys, or nothing if there is no file.
    pub(super) fn read(path: &Path, leaf: &LeafName) -> Result<Option<Self>, IdentityError> {
        let Some(text) = read_private(path)? else {
            return Ok(None);
        };
        let damaged = |what: String| IdentityError::Damaged {
            path: path.to_owned(),
            what,
        };
        let file: KeyFile = serde_json::from_str(&text).map_err(|e| damaged(e.to_string()))?;
        if file.format != FORMAT {
            return Err(damaged(format!(
                "it has format {}, and only {FORMAT} is known here",
                file.format
            )));
        }
        if &file.leaf != leaf {
            return Err(IdentityError::OtherLeaf {
                path: path.to_owned(),
                found: file.leaf,
                wanted: leaf.clone(),
            });
        }
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
            container_signer: key("container_signer", &file.container_signer, KeyPairType::Account)?,
            daemon: key("daemon", &file.daemon, KeyPairType::User)?,
            admin: key("admin", &file.admin, KeyPairType::User)?,
        }))
    }

    /// Makes the keys and writes them down.
    pub(super) fn make(path: &Path, leaf: &LeafName, now: Timestamp) -> Result<Self, IdentityError> {
        let keys = Self {
            made_at: now,
            operator: KeyPair::new_operator(),
            system: KeyPair::new_account(),
            account: KeyPair::new_account(),
            container_signer: KeyPair::new_account(),
            daemon: KeyPair::new_user(),
            admin: KeyPair::new_user(),
        };
        let seed = |key: &KeyPair| key.seed().expect("a key just made has its seed");
        let file = KeyFile {
            format: FORMAT,
            leaf: leaf.clone(),
            made_at: now,
            operator: seed(&keys.operator),
            system: seed(&keys.system),
            account: seed(&keys.account),
            container_signer: seed(&keys.container_signer),
            daemon: seed(&keys.daemon),
            admin: seed(&keys.admin),
        };
        let text = serde_json::to_string_pretty(&file).expect("a struct of texts is JSON");
        write_private(path, &(text + "\n")).map_err(|source| IdentityError::Write {
            path: path.to_owned(),
            source,
        })?;
        Ok(keys)
    }
}
