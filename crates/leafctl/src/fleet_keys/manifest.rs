//! `fleet.json`: the names, public keys and URLs of a fleet. It holds no secret.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use leaf_bus::identity::fleet::{Account, Fleet, Role};
use serde::{Deserialize, Serialize};

use super::error::KeysError;
use super::files;

/// The format that this version writes.
const FORMAT: u64 = 1;

/// The content of `fleet.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The format.
    pub(crate) format: u64,
    /// The name of the NATS operator.
    pub(crate) name: String,
    /// When it was made.
    pub(crate) made_at: Timestamp,
    /// The URL that leaves connect to.
    pub(crate) hub: String,
    /// The URL that people, and whoever pushes, connect to.
    pub(crate) clients: String,
    /// The directory of the hub's files on its host.
    pub(crate) hub_directory: String,
    /// The directory of the hub's state on its host.
    pub(crate) hub_state: String,
    /// The public key of the NATS operator.
    pub(crate) operator: String,
    /// The public key of its signing key.
    pub(crate) signing_key: String,
    /// The public keys of the accounts, by name.
    pub(crate) accounts: BTreeMap<String, String>,
    /// The public keys of the roles, by `ACCOUNT/ROLE`.
    pub(crate) roles: BTreeMap<String, String>,
    /// The longest life that a credential was given, in seconds.
    pub(crate) longest_life_seconds: u64,
}

impl Manifest {
    /// Returns that of a new fleet, without URLs.
    pub(crate) fn new(
        name: &str,
        fleet: &Fleet,
        operator: String,
        signing_key: String,
        now: Timestamp,
    ) -> Self {
        let accounts = fleet.accounts.iter();
        let roles = fleet.roles.iter();
        Self {
            format: FORMAT,
            name: name.to_owned(),
            made_at: now,
            hub: String::new(),
            clients: String::new(),
            hub_directory: String::new(),
            hub_state: String::new(),
            operator,
            signing_key,
            accounts: accounts
                .map(|(account, key)| (account.name().to_owned(), key.clone()))
                .collect(),
            roles: roles.map(|(role, key)| (name_of(*role), key.clone())).collect(),
            longest_life_seconds: 0,
        }
    }

    /// Reads it, if it is there.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, KeysError> {
        let Some(text) = files::read(path)? else {
            return Ok(None);
        };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| KeysError::damaged(path, error))?;
        let found = value["format"].as_u64().unwrap_or(0);
        if found != FORMAT {
            return Err(KeysError::Newer {
                path: path.to_owned(),
                found,
                known: FORMAT,
            });
        }
        let manifest: Self =
            serde_json::from_value(value).map_err(|error| KeysError::damaged(path, error))?;
        let fleet = manifest.fleet();
        if fleet.accounts.len() < Account::ALL.len() || fleet.roles.len() < Role::ALL.len() {
            return Err(KeysError::damaged(path, "an account or a role is missing"));
        }
        Ok(Some(manifest))
    }

    /// Returns it as text.
    pub(super) fn text(&self) -> String {
        serde_json::to_string_pretty(self).expect("its keys are texts") + "\n"
    }

    /// Returns the public keys.
    pub(crate) fn fleet(&self) -> Fleet {
        let accounts = Account::ALL
            .into_iter()
            .filter_map(|account| Some((account, self.accounts.get(account.name())?.clone())));
        let roles = Role::ALL
            .into_iter()
            .filter_map(|role| Some((role, self.roles.get(&name_of(role))?.clone())));
        Fleet {
            accounts: accounts.collect(),
            roles: roles.collect(),
        }
    }
}

/// Returns the name of a role with its account: two accounts have an agent.
fn name_of(role: Role) -> String {
    format!("{}/{}", role.account().name(), role.name())
}
