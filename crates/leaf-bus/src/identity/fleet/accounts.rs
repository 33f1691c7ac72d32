//! The JWTs of the NATS operator and of its accounts, and the configuration of a hub's server that trusts them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Account, NatsKey, Revocations, Role};
use crate::identity::hub::{export_claims, import_claims};
use crate::identity::jwt::{self, Claims};
use crate::identity::{account_limits, jetstream_limits, loaded};

/// The public keys of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fleet {
    /// Its accounts.
    pub accounts: BTreeMap<Account, String>,
    /// The signing keys of the roles.
    pub roles: BTreeMap<Role, String>,
}

impl Fleet {
    /// The public key of an account.
    #[must_use]
    pub fn account(&self, account: Account) -> &str {
        self.accounts.get(&account).map_or("", String::as_str)
    }

    /// Returns the claims of an account. `earlier` are those of the JWT before, of which signing keys of others are kept.
    #[must_use]
    pub fn account_claims(&self, account: Account, revoked: &Revocations, earlier: Option<&Value>) -> Value {
        let mut limits = account_limits();
        if account == Account::Fleet {
            jetstream_limits(&mut limits);
        }
        let roles = self.roles.iter().filter(|(role, _)| role.account() == account);
        let mut signing_keys: Vec<Value> = roles.map(|(role, key)| role.signing_key(key)).collect();
        let of_others = earlier.and_then(|nats| nats["signing_keys"].as_array());
        for other in of_others.into_iter().flatten() {
            let key = other.as_str().or(other["key"].as_str());
            if !self.roles.values().any(|ours| Some(ours.as_str()) == key) {
                signing_keys.push(other.clone());
            }
        }
        let mut nats = json!({
            "type": "account",
            "version": 2,
            "limits": limits,
            "signing_keys": signing_keys,
        });
        let key_of = |name: &str| {
            Account::of_name(name).map_or_else(String::new, |account| self.account(account).to_owned())
        };
        let mut exports = export_claims(account.name());
        let mut imports = import_claims(account.name(), key_of);
        if account == Account::System {
            let others = self.accounts.iter().filter(|(other, _)| **other != account);
            imports.extend(others.map(|(other, key)| loaded::import(other.name(), key)));
        } else {
            exports.push(loaded::export());
        }
        for (part, entries) in [("exports", exports), ("imports", imports)] {
            if !entries.is_empty() {
                nats[part] = entries.into();
            }
        }
        if !revoked.is_empty() {
            nats["revocations"] = revoked.to_claim();
        }
        nats
    }

    /// Returns the JWT of an account with these claims, which the signing key of the NATS operator signs.
    #[must_use]
    pub fn account_jwt(&self, account: Account, nats: Value, issued_at: i64, operator: &NatsKey) -> String {
        jwt::sign(
            Claims {
                subject: self.account(account),
                name: account.name(),
                issued_at,
                expires_at: None,
                nats,
            },
            operator.pair(),
        )
    }
}

/// Returns the JWT of the NATS operator: `signer` signs its accounts, and no server takes what another key signed.
#[must_use]
pub fn operator_jwt(
    name: &str,
    operator: &NatsKey,
    signer: &str,
    system: &str,
    service_url: &str,
    issued_at: i64,
) -> String {
    jwt::sign(
        Claims {
            subject: &operator.public_key(),
            name,
            issued_at,
            expires_at: None,
            nats: json!({
                "type": "operator",
                "version": 2,
                "signing_keys": [signer],
                "system_account": system,
                "strict_signing_key_usage": true,
                "operator_service_urls": [service_url],
            }),
        },
        operator.pair(),
    )
}

/// Returns the part of nats-server's configuration with the NATS operator, the resolver with its directory, and the preload: the
/// JWTs of all accounts, by public key.
#[must_use]
pub fn server_config(
    operator: &str,
    system: &str,
    resolver: &str,
    accounts: &BTreeMap<String, String>,
) -> String {
    let mut text = format!(
        "operator: {operator}\nsystem_account: {system}\nresolver {{\n  type: full\n  dir: {dir}\n  allow_delete: false\n  \
         interval: \"2m\"\n}}\nresolver_preload {{\n",
        dir = Value::from(resolver),
    );
    for (key, jwt) in accounts {
        let _ = writeln!(text, "  {key}: {jwt}");
    }
    text + "}\n"
}

/// Returns the same for `services.cim-nats` on NixOS: the values of its options `operator.systemAccount` and `operator.accounts`.
#[must_use]
pub fn preload(system: &str, accounts: &BTreeMap<String, String>) -> Value {
    json!({ "systemAccount": system, "accounts": accounts })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::fleet::KeyKind;
    use crate::identity::jwt::Token;

    #[test]
    fn an_account_has_the_roles_and_keeps_the_signing_keys_of_others() {
        let operator = NatsKey::new(KeyKind::Operator);
        let key = || NatsKey::new(KeyKind::Account).public_key();
        let fleet = Fleet {
            accounts: Account::ALL.map(|account| (account, key())).into(),
            roles: Role::ALL.map(|role| (role, key())).into(),
        };
        let other = key();
        let earlier = json!({ "signing_keys": [other, { "kind": "user_scope", "key": fleet.roles[&Role::Leaf], "role": "old" }] });
        let mut revoked = Revocations::default();
        revoked.add("UX", 5);
        let jwt = fleet.account_jwt(
            Account::Links,
            fleet.account_claims(Account::Links, &revoked, Some(&earlier)),
            7,
            &operator,
        );
        let token = Token::read(&jwt).expect("a JWT");
        assert_eq!(token.issuer, operator.public_key());
        assert_eq!(Revocations::in_claims(&token.nats), revoked);
        let keys = token.nats["signing_keys"].as_array().expect("keys");
        let roles: Vec<_> = keys.iter().filter_map(|key| key["role"].as_str()).collect();
        assert_eq!(roles, ["agent", "leaf"]);
        assert_eq!(keys.last(), Some(&json!(other)));
        assert_eq!(
            keys[1]["template"]["allowed_connection_types"],
            json!(["LEAFNODE", "LEAFNODE_WS"])
        );
        assert!(token.nats["limits"].get("disk_storage").is_none());
        assert_eq!(
            token.nats,
            fleet.account_claims(Account::Links, &revoked, Some(&token.nats)),
            "the claims made again are the same"
        );
        let streams = fleet.account_claims(Account::Fleet, &Revocations::default(), None);
        assert_eq!(streams["limits"]["disk_storage"], -1);
        assert_eq!(streams["imports"][0]["account"], fleet.accounts[&Account::Links]);
    }
}
