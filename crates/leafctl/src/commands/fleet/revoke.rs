use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use jiff::Timestamp;
use leaf_bus::identity::fleet::Account;
use leaf_bus::identity::is_public_user_key;

use super::shared::{open_to_write, push_change};
use crate::error::Error;
use crate::fleet_keys::users::{Stands, User};
use crate::fleet_keys::{Directory, KeysError};
use crate::global::Global;
use crate::output::Output;

/// Revoke the credentials of a leaf, a person or the hub agent, and push that to the hub: open connections are cut.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// The name of the leaf or person; `hub` for the hub agent.
    #[arg(required_unless_present = "key", conflicts_with = "key")]
    name: Option<String>,
    /// Only the keys before, which `fleet rotate` replaced.
    #[arg(long, conflicts_with = "key")]
    former: bool,
    /// The public key of a user that this directory does not know, such as one that was made after a backup.
    #[arg(long, value_name = "KEY", requires = "account")]
    key: Option<String>,
    /// The account of that user: LINKS for a leaf, CALLERS for a person.
    #[arg(long, value_parser = ["FLEET", "LINKS", "CALLERS"], requires = "key")]
    account: Option<String>,
}

impl Revoke {
    pub(super) async fn run(self, dir: &Path, global: &Global, output: Output) -> Result<(), Error> {
        let mut directory = open_to_write(dir)?;
        let (what, keys) = match (&self.name, &self.key) {
            (Some(name), _) => {
                let users = directory.users_named(name)?;
                let keys = revoke(&directory, &users, self.former)?;
                let former_revoked = users
                    .iter()
                    .flat_map(|user| &user.former)
                    .any(|life| life.revoked.is_some());
                if keys == 0 && self.former && !former_revoked {
                    return Err(KeysError::NoFormer(name.clone()).into());
                }
                (name.clone(), keys)
            }
            (None, key) => {
                let key = key.clone().unwrap_or_default();
                if !is_public_user_key(&key) {
                    return Err(KeysError::NoUserKey(key).into());
                }
                let account = self.account.as_deref().and_then(Account::of_name);
                let account = account.unwrap_or(Account::Callers);
                directory.revoke(account, &[(key.clone(), 0)], Timestamp::now())?;
                (key, 1)
            }
        };
        push_change(&mut directory, global, output).await?;
        let document = serde_json::json!({ "name": what, "revoked": keys });
        output.document(&document, |_| match keys {
            0 => format!("{what}: revoked already, and the hub's servers know it"),
            1 => format!("{what}: 1 key revoked, and the hub's servers know it"),
            _ => format!("{what}: {keys} keys revoked, and the hub's servers know it"),
        })
    }
}

/// Revokes the keys of users in the directory that are not revoked, and returns how many. Those that have ended as well: they may have ended by a
/// wrong clock.
pub(super) fn revoke(directory: &Directory, users: &[User], only_former: bool) -> Result<usize, KeysError> {
    let now = Timestamp::now();
    let mut keys: BTreeMap<Account, Vec<(String, i64)>> = BTreeMap::new();
    for user in users {
        let current = (!only_former).then_some(&user.current);
        let left = user
            .former
            .iter()
            .chain(current)
            .filter(|life| life.stands(now.as_second()) != Stands::Revoked);
        keys.entry(user.role.account())
            .or_default()
            .extend(left.map(|life| (life.key.clone(), life.issued_at)));
    }
    for (account, keys) in &keys {
        if !keys.is_empty() {
            directory.revoke(*account, keys, now)?;
        }
    }
    Ok(keys.values().map(Vec::len).sum())
}
