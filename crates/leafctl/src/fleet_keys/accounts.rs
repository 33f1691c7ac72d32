//! The JWTs of the accounts, which hold the revocations: signed anew, and pushed to the hub's servers. A revocation is never lost on the way
//! (`docs/keys.md`, *Revocation*).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::connect::{ConnectSettings, Credentials, Tls};
use leaf_bus::identity::Token;
use leaf_bus::identity::fleet::{Account, NatsKey, Revocations, Role, new_user};
use leaf_bus::resolver::{PUSHER, Resolvers};
use leaf_core::subject;

use super::directory::Directory;
use super::error::KeysError;
use super::files;
use super::users::Stands;

/// The life of the user of a push, in seconds. The clocks of the hub and of this machine may differ by it.
const PUSH_LIFE: i64 = 600;

/// What a push did with an account.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Pushed {
    /// The account's name.
    pub(crate) account: &'static str,
    /// Whether a server lacked the JWT.
    pub(crate) pushed: bool,
    /// The number of users that are revoked.
    pub(crate) revoked: usize,
    /// The number of servers that have the JWT now.
    pub(crate) servers: usize,
}

impl Directory {
    /// Revokes all credentials of these keys that were issued until now, in the directory and the preload.
    pub(crate) fn revoke(
        &self,
        account: Account,
        keys: &[(String, i64)],
        now: Timestamp,
    ) -> Result<(), KeysError> {
        let (_, token) = self.account_jwt(account)?;
        let mut revoked = Revocations::in_claims(&token.nats);
        for (key, issued_at) in keys {
            revoked.add(key, now.as_second().max(*issued_at));
        }
        self.sign(account, &revoked, &token, [&token], now, &self.signing_key()?)?;
        self.write_preload()
    }

    /// Signs an account anew, unless it would lack a revocation of those that were seen.
    fn sign<'a>(
        &self,
        account: Account,
        revoked: &Revocations,
        local: &Token,
        seen: impl IntoIterator<Item = &'a Token>,
        now: Timestamp,
        signer: &NatsKey,
    ) -> Result<String, KeysError> {
        let mut issued_at = now.as_second();
        for token in seen {
            let mut others = Revocations::in_claims(&token.nats);
            self.prune(&mut others, now)?;
            revoked.includes(&others).map_err(|source| KeysError::Shrinks {
                account: account.name(),
                source,
            })?;
            issued_at = issued_at.max(token.issued_at + 1);
        }
        let fleet = self.fleet();
        let claims = fleet.account_claims(account, revoked, Some(&local.nats));
        let jwt = fleet.account_jwt(account, claims, issued_at, signer);
        files::replace(&self.account_file(account), &jwt)?;
        Ok(jwt)
    }

    /// Drops the revocations that no credential can be concerned by any more.
    fn prune(&self, revoked: &mut Revocations, now: Timestamp) -> Result<(), KeysError> {
        let life = Duration::from_secs(self.manifest().longest_life_seconds);
        let now = now.as_second();
        let users = self.users()?;
        let not_ended = |key: &str| {
            users
                .iter()
                .flat_map(|user| user.former.iter().chain([&user.current]))
                .any(|life| {
                    life.key == key
                        && life.stands(now) != Stands::Ended
                        && life.expires_at.is_none_or(|end| end > now)
                })
        };
        revoked.prune(now, life, not_ended);
        Ok(())
    }

    /// Brings the JWTs of all accounts to the hub's servers, with the revocations of all sides, and reads them back.
    pub(crate) async fn push(
        &self,
        server: Option<&str>,
        limit: Duration,
        now: Timestamp,
    ) -> Result<Vec<Pushed>, KeysError> {
        let resolvers = Resolvers::connect(&self.pusher(server, now)?, limit).await?;
        let fleet = self.fleet();
        let mut found = BTreeMap::new();
        for account in Account::ALL {
            found.insert(account, resolvers.lookup(fleet.account(account)).await?);
        }
        let mut pushed = Vec::new();
        let mut jwts = BTreeMap::new();
        for (account, there) in &found {
            let (jwt, revoked) = self.merged(*account, there, now)?;
            pushed.push(Pushed {
                account: account.name(),
                pushed: there.len() < resolvers.servers() || there.iter().any(|other| *other != jwt),
                revoked,
                servers: resolvers.servers(),
            });
            jwts.insert(*account, jwt);
        }
        // A server that loses what is pushed starts from the preload.
        self.write_preload()?;
        for (account, pushed) in jwts.keys().zip(&pushed) {
            if pushed.pushed {
                resolvers.push(&jwts[account]).await?;
            }
        }
        for (account, jwt) in &jwts {
            let there = resolvers.lookup(fleet.account(*account)).await?;
            if there.len() < resolvers.servers() || there.iter().any(|other| other != jwt) {
                return Err(KeysError::Other {
                    account: account.name(),
                });
            }
        }
        Ok(pushed)
    }

    /// Returns the JWT of an account that has the revocations of the directory and of all servers, and is newer than theirs, and the number
    /// of its revocations. It is in the directory then.
    fn merged(
        &self,
        account: Account,
        there: &[String],
        now: Timestamp,
    ) -> Result<(String, usize), KeysError> {
        let (jwt, local) = self.account_jwt(account)?;
        let mut seen = Vec::new();
        for other in there {
            seen.push(self.of_this_fleet(account, other)?);
        }
        let mut revoked = Revocations::in_claims(&local.nats);
        for token in &seen {
            revoked.merge(&Revocations::in_claims(&token.nats));
        }
        self.prune(&mut revoked, now)?;
        let is_newest = there
            .iter()
            .zip(&seen)
            .all(|(other, token)| *other == jwt || token.issued_at < local.issued_at);
        let claims = self.fleet().account_claims(account, &revoked, Some(&local.nats));
        let number = revoked.len();
        if is_newest && claims == local.nats {
            return Ok((jwt, number));
        }
        let all = seen.iter().chain([&local]);
        let jwt = self.sign(account, &revoked, &local, all, now, &self.signing_key()?)?;
        Ok((jwt, number))
    }

    /// Reads the JWT of a server, which the operator of this fleet signed.
    fn of_this_fleet(&self, account: Account, jwt: &str) -> Result<Token, KeysError> {
        let foreign = |why: String| KeysError::Foreign {
            account: account.name(),
            why,
        };
        let token = Token::read(jwt).map_err(|error| foreign(error.to_string()))?;
        let path = self.operator_file();
        let operator =
            Token::read(&self.operator_jwt()?).map_err(|error| KeysError::damaged(&path, error))?;
        let mut signers = operator.nats["signing_keys"].as_array().into_iter().flatten();
        let is_ours = signers.any(|key| key.as_str() == Some(&token.issuer));
        if !is_ours || token.subject != self.fleet().account(account) {
            return Err(foreign(format!(
                "{} signed it, which is no key of this fleet's operator",
                token.issuer
            )));
        }
        Ok(token)
    }

    /// Returns the settings of a connection in the system account, as a user who ends soon.
    fn pusher(&self, server: Option<&str>, now: Timestamp) -> Result<ConnectSettings, KeysError> {
        let signer = self.role_key(Role::Push)?;
        let issued_at = now.as_second();
        let system = self.fleet().account(Account::System).to_owned();
        let user = new_user(PUSHER, &system, &signer, issued_at, issued_at + PUSH_LIFE);
        let url = server.unwrap_or(&self.manifest().clients);
        let is_encrypted = url.starts_with("tls://");
        Ok(ConnectSettings {
            credentials: Credentials::Text(user.credentials),
            inbox_prefix: subject::inbox_prefix_of_token(PUSHER),
            tls: Tls {
                ca: is_encrypted.then(|| self.at("tls/ca.pem")),
                required: is_encrypted,
                ..Tls::default()
            },
            name: "leafctl fleet".to_owned(),
            ..ConnectSettings::new(url)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet_keys::init::{NewFleet, init};

    const YEAR: i64 = 365 * 86_400;

    fn fleet() -> (tempfile::TempDir, Directory, Timestamp) {
        let parent = tempfile::tempdir().expect("a directory");
        let new = NewFleet {
            name: "fleet",
            hub: "tls://hub.example:7422",
            clients: None,
            hub_directory: "/etc/cim-hub",
            hub_state: "/var/lib/cim-hub",
            days: 400,
        };
        let now = Timestamp::now();
        let directory = init(&parent.path().join("fleet"), &new, now).expect("a fleet");
        (parent, directory, now)
    }

    fn later(now: Timestamp, seconds: i64) -> Timestamp {
        Timestamp::from_second(now.as_second() + seconds).expect("a time")
    }

    #[test]
    fn an_account_that_would_lose_a_revocation_is_not_signed() {
        let (_parent, directory, now) = fleet();
        let older = directory.account_jwt(Account::Callers).expect("a JWT").1;
        directory
            .revoke(Account::Callers, &[("UX".to_owned(), 0)], now)
            .expect("revoked");
        let (jwt, local) = directory.account_jwt(Account::Callers).expect("a JWT");
        assert!(
            local.issued_at > older.issued_at,
            "it is newer, also in the same second"
        );
        let signer = directory.signing_key().expect("a key");
        let none = Revocations::default();
        let refused = directory.sign(Account::Callers, &none, &local, [&local], now, &signer);
        assert!(matches!(
            refused,
            Err(KeysError::Shrinks {
                account: "CALLERS",
                ..
            })
        ));
        assert_eq!(directory.account_jwt(Account::Callers).expect("a JWT").0, jwt);
    }

    #[test]
    fn what_a_server_has_is_merged_whatever_its_age_and_dropped_when_all_has_ended() {
        let (_parent, directory, now) = fleet();
        let (first, _) = directory.account_jwt(Account::Callers).expect("a JWT");
        let fleet = directory.fleet();
        let signer = directory.signing_key().expect("a key");
        let with = |user: &str, at: i64| {
            let mut revoked = Revocations::default();
            revoked.add(user, now.as_second());
            let claims = fleet.account_claims(Account::Callers, &revoked, None);
            fleet.account_jwt(Account::Callers, claims, at, &signer)
        };
        // One that is older than ours, and one of the future.
        let there = [
            with("UOLD", now.as_second() - 9),
            with("UNEW", now.as_second() + 99),
        ];
        let (jwt, number) = directory.merged(Account::Callers, &there, now).expect("merged");
        assert_eq!(number, 2);
        let token = Token::read(&jwt).expect("a JWT");
        assert!(token.issued_at > now.as_second() + 99);
        // It is the same when it comes back, and nothing is dropped before a credential's longest life is over.
        for (at, left) in [(0, 2), (YEAR, 2), (2 * YEAR, 0)] {
            let (_, number) = directory
                .merged(Account::Callers, std::slice::from_ref(&jwt), later(now, at))
                .expect("merged");
            assert_eq!(number, left, "after {at} seconds");
        }
        // The operator of another fleet signs nothing here.
        let (_other, stranger, _) = self::fleet();
        let foreign = stranger.merged(Account::Callers, &[first], now);
        assert!(matches!(foreign, Err(KeysError::Foreign { .. })));
    }
}
