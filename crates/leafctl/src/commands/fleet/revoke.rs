use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use jiff::Timestamp;
use leaf_bus::identity::fleet::Account;

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
    name: String,
    /// Only the keys before, which `fleet rotate` replaced.
    #[arg(long)]
    former: bool,
}

impl Revoke {
    pub(super) async fn run(self, dir: &Path, global: &Global, output: Output) -> Result<(), Error> {
        let directory = open_to_write(dir)?;
        let users = directory.users_named(&self.name)?;
        let keys = revoke(&directory, &users, self.former)?;
        if keys == 0 && self.former {
            return Err(KeysError::NoFormer(self.name).into());
        }
        push_change(&directory, global, output).await?;
        let document = serde_json::json!({ "name": self.name, "revoked": keys });
        output.document(&document, |_| {
            let keys = if keys == 1 {
                "1 key".to_owned()
            } else {
                format!("{keys} keys")
            };
            format!("{}: {keys} revoked, and the hub's servers know it", self.name)
        })
    }
}

/// Revokes keys of users in the directory, and returns how many.
pub(super) fn revoke(directory: &Directory, users: &[User], only_former: bool) -> Result<usize, KeysError> {
    let now = Timestamp::now();
    let mut keys: BTreeMap<Account, Vec<(String, i64)>> = BTreeMap::new();
    for user in users {
        let current = (!only_former).then_some(&user.current);
        let valid = user
            .former
            .iter()
            .chain(current)
            .filter(|life| life.stands(now.as_second()) == Stands::Valid);
        keys.entry(user.role.account())
            .or_default()
            .extend(valid.map(|life| (life.key.clone(), life.issued_at)));
    }
    for (account, keys) in &keys {
        if !keys.is_empty() {
            directory.revoke(*account, keys, now)?;
        }
    }
    Ok(keys.values().map(Vec::len).sum())
}
