//! The JWTs of the accounts, which hold the revocations: signed anew, and pushed to the hub's servers. A revocation is never lost on the way
//! (`docs/keys.md`, *Revocation*).

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::connect::{ConnectSettings, Credentials, Tls};
use leaf_bus::identity::Token;
use leaf_bus::identity::fleet::{Account, LONGEST_LIFE, Revocations, Role, new_user};
use leaf_bus::resolver::{PUSHER, Resolvers};
use leaf_core::subject;
use serde_json::Value;

use super::directory::Directory;
use super::error::KeysError;
use super::files;
use super::users::{Life, Stands};

/// What a tag of an account begins with that says the longest life of a credential of the fleet, in seconds: a directory from a backup
/// learns it from the servers.
const LIFE_TAG: &str = "cim-leaf-longest-life:";

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
    /// What was wrong with a JWT that a server had, and that this one replaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) foreign: Option<String>,
}

/// The JWT of an account that is to be at all servers.
#[derive(Debug)]
struct Merged {
    jwt: String,
    revoked: usize,
    foreign: Option<String>,
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
        self.sign(account, &revoked, &token, [&token], now.as_second(), None)?;
        self.write_preload()
    }

    /// Signs an account anew, at this second or later, unless it would lack a revocation of those that were seen. What may be dropped at
    /// the second `dropped_at` may be missing.
    fn sign<'a>(
        &self,
        account: Account,
        revoked: &Revocations,
        local: &Token,
        seen: impl IntoIterator<Item = &'a Token>,
        mut issued_at: i64,
        dropped_at: Option<i64>,
    ) -> Result<String, KeysError> {
        let signer = self.signing_key()?;
        for token in seen {
            let mut others = Revocations::in_claims(&token.nats);
            if let Some(at) = dropped_at {
                self.prune(account, &mut others, at)?;
            }
            revoked.includes(&others).map_err(|source| KeysError::Shrinks {
                account: account.name(),
                source,
            })?;
            issued_at = issued_at.max(token.issued_at.saturating_add(1));
        }
        let claims = self.account_claims(account, revoked, Some(local));
        let jwt = self.fleet().account_jwt(account, claims, issued_at, &signer);
        files::replace(&self.account_file(account), &jwt)?;
        Ok(jwt)
    }

    /// Returns the claims of an account: what the fleet's keys say, the revocations, and the longest life.
    pub(super) fn account_claims(
        &self,
        account: Account,
        revoked: &Revocations,
        earlier: Option<&Token>,
    ) -> Value {
        let earlier = earlier.map(|token| &token.nats);
        let mut claims = self.fleet().account_claims(account, revoked, earlier);
        let of_others = earlier
            .and_then(|nats| nats["tags"].as_array())
            .into_iter()
            .flatten();
        let of_others = of_others.filter(|tag| tag.as_str().is_none_or(|tag| !tag.starts_with(LIFE_TAG)));
        let own = format!("{LIFE_TAG}{}", self.manifest().longest_life_seconds);
        claims["tags"] = of_others.cloned().chain([own.into()]).collect();
        claims
    }

    /// Takes over the longest life of a credential that this fleet's accounts at the servers tell of, if it is longer.
    fn learn_life(&mut self, found: &BTreeMap<Account, Vec<String>>) -> Result<(), KeysError> {
        let mut longest = 0;
        for (account, jwts) in found {
            for token in jwts
                .iter()
                .filter_map(|jwt| self.of_this_fleet(*account, jwt).ok())
            {
                let tags = token.nats["tags"].as_array().into_iter().flatten();
                let lives = tags.filter_map(|tag| tag.as_str()?.strip_prefix(LIFE_TAG)?.parse::<u64>().ok());
                longest = lives.fold(longest, u64::max);
            }
        }
        self.note_life(longest.min(LONGEST_LIFE.as_secs()))
    }

    /// Drops the revocations of an account that no credential can be concerned by any more.
    fn prune(&self, account: Account, revoked: &mut Revocations, now: i64) -> Result<(), KeysError> {
        let life = Duration::from_secs(self.manifest().longest_life_seconds);
        let users = self.users()?;
        let users = users.iter().filter(|user| user.role.account() == account);
        let lives: Vec<&Life> = users
            .flat_map(|user| user.former.iter().chain([&user.current]))
            .collect();
        // `*` is one of each; it stays while the account has any user.
        let not_ended = |key: &str| {
            lives.iter().any(|life| {
                (key == "*" || life.key == key)
                    && life.stands(now) != Stands::Ended
                    && life.expires_at.is_none_or(|end| end > now)
            })
        };
        revoked.prune(now, life, not_ended);
        Ok(())
    }

    /// Brings the JWTs of all accounts to the hub's servers, with the revocations of all sides, and reads them back.
    pub(crate) async fn push(
        &mut self,
        server: Option<&str>,
        limit: Duration,
        now: Timestamp,
    ) -> Result<Vec<Pushed>, KeysError> {
        let resolvers = Resolvers::connect(&self.pusher(server, now)?, limit).await?;
        let dropped_at = agreed(now, resolvers.times())?;
        let fleet = self.fleet();
        let mut found = BTreeMap::new();
        for account in Account::ALL {
            found.insert(account, resolvers.lookup(fleet.account(account)).await?);
        }
        self.learn_life(&found)?;
        let mut pushed = Vec::new();
        let mut jwts = BTreeMap::new();
        for (account, there) in &found {
            let merged = self.merged(*account, there, now.as_second(), dropped_at)?;
            pushed.push(Pushed {
                account: account.name(),
                pushed: there.len() < resolvers.servers() || there.iter().any(|other| *other != merged.jwt),
                revoked: merged.revoked,
                servers: resolvers.servers(),
                foreign: merged.foreign,
            });
            jwts.insert(*account, merged.jwt);
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

    /// Returns the JWT of an account that has the revocations of the directory and of all servers, and is newer than theirs. It is in the
    /// directory then. What a server has that is not of this fleet counts as absent: servers take whatever is well-formed.
    fn merged(
        &self,
        account: Account,
        there: &[String],
        now: i64,
        dropped_at: i64,
    ) -> Result<Merged, KeysError> {
        let (jwt, local) = self.account_jwt(account)?;
        let (mut seen, mut foreign, mut issued_at) = (Vec::new(), None, now);
        for other in there {
            match self.of_this_fleet(account, other) {
                Ok(token) => seen.push((other, token)),
                Err(error @ KeysError::Foreign { .. }) => {
                    foreign = Some(error.to_string());
                    // Servers of a cluster take the newer one of each other. One of the far future would make all later ones so.
                    let at = Token::read(other).map_or(i64::MIN, |token| token.issued_at.saturating_add(1));
                    if at <= now.saturating_add(86_400) {
                        issued_at = issued_at.max(at);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let mut revoked = Revocations::in_claims(&local.nats);
        for (_, token) in &seen {
            revoked.merge(&Revocations::in_claims(&token.nats));
        }
        self.prune(account, &mut revoked, dropped_at)?;
        let is_newest = foreign.is_none()
            && seen
                .iter()
                .all(|(other, token)| **other == jwt || token.issued_at < local.issued_at);
        let claims = self.account_claims(account, &revoked, Some(&local));
        let jwt = if is_newest && claims == local.nats {
            jwt
        } else {
            let all = seen.iter().map(|(_, token)| token).chain([&local]);
            self.sign(account, &revoked, &local, all, issued_at, Some(dropped_at))?
        };
        Ok(Merged {
            jwt,
            revoked: revoked.len(),
            foreign,
        })
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

/// Returns the earliest of all clocks, in seconds of the Unix epoch, if they agree: by one that is ahead, revocations would be dropped.
fn agreed(now: Timestamp, servers: &[Timestamp]) -> Result<i64, KeysError> {
    let mut earliest = now.as_second();
    for server in servers {
        let ahead = now.as_second() - server.as_second();
        if ahead.abs() > PUSH_LIFE {
            return Err(KeysError::Clock { ahead });
        }
        earliest = earliest.min(server.as_second());
    }
    Ok(earliest)
}

#[cfg(test)]
mod tests {
    use leaf_core::id::Caller;

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
        let none = Revocations::default();
        let refused = directory.sign(Account::Callers, &none, &local, [&local], now.as_second(), None);
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
        let merge = |there: &[String], at: i64| {
            let second = now.as_second() + at;
            directory
                .merged(Account::Callers, there, second, second)
                .expect("merged")
        };
        let merged = merge(&there, 0);
        assert_eq!(merged.revoked, 2);
        let token = Token::read(&merged.jwt).expect("a JWT");
        assert!(token.issued_at > now.as_second() + 99);
        // It is the same when it comes back, and nothing is dropped before a credential's longest life is over.
        for (at, left) in [(0, 2), (YEAR, 2), (2 * YEAR, 0)] {
            let again = merge(std::slice::from_ref(&merged.jwt), at);
            assert_eq!(again.revoked, left, "after {at} seconds");
        }
        // What another operator signed counts as absent, whatever its time.
        let (_other, stranger, _) = self::fleet();
        let foreign = stranger
            .merged(
                Account::Callers,
                &[with("UX", i64::MAX)],
                now.as_second(),
                now.as_second(),
            )
            .expect("merged");
        assert!(foreign.foreign.is_some() && foreign.revoked == 0);
        let token = Token::read(&foreign.jwt).expect("a JWT");
        assert!(token.issued_at < now.as_second() + 60, "{}", token.issued_at);
    }

    #[test]
    fn a_directory_from_a_backup_learns_the_longest_life_from_the_servers() {
        let (_parent, mut directory, now) = fleet();
        let there = directory.account_jwt(Account::Callers).expect("a JWT").0;
        // A longer life was given, and what it concerns revoked, after the backup.
        let before = directory.manifest().longest_life_seconds;
        directory.note_life(3 * before).expect("noted");
        directory
            .revoke(Account::Callers, &[("UX".to_owned(), 0)], now)
            .expect("revoked");
        let pushed = directory.account_jwt(Account::Callers).expect("a JWT").0;
        let write = |directory: &Directory, jwt: &str| {
            files::replace(&directory.account_file(Account::Callers), jwt).expect("written");
        };
        // The backup: an account without the revocation, and a shorter life.
        write(&directory, &there);
        let manifest = directory
            .manifest()
            .text()
            .replace(&(3 * before).to_string(), &before.to_string());
        let root = directory.root().to_owned();
        files::replace(&root.join("fleet.json"), &manifest).expect("written");
        let mut directory = Directory::open(&root).expect("a directory");
        assert_eq!(directory.manifest().longest_life_seconds, before);
        directory
            .learn_life(&BTreeMap::from([(Account::Callers, vec![pushed.clone()])]))
            .expect("learned");
        assert_eq!(directory.manifest().longest_life_seconds, 3 * before);
        let after = now.as_second() + 2 * i64::try_from(before).expect("small");
        let merged = directory
            .merged(Account::Callers, &[pushed], after, after)
            .expect("merged");
        assert_eq!(merged.revoked, 1, "what the life of the backup would drop stays");
        // What others have signed teaches nothing.
        let (_other, mut stranger, _) = fleet();
        let found = BTreeMap::from([(Account::Callers, vec![merged.jwt])]);
        stranger.learn_life(&found).expect("learned");
        assert_eq!(stranger.manifest().longest_life_seconds, before);
    }

    #[test]
    fn a_revocation_of_all_users_stays_while_there_are_any_and_new_credentials_are_issued_after_it() {
        let (parent, mut directory, now) = fleet();
        let ann = Caller::new("ann").expect("a name");
        directory
            .add_person(&ann, 30, parent.path(), now)
            .expect("a person");
        let all = [("*".to_owned(), 0)];
        directory.revoke(Account::Callers, &all, now).expect("revoked");
        let users = directory.users_named("ann").expect("a user");
        assert_eq!(users[0].current.stands(now.as_second()), Stands::Revoked);
        // In the same second.
        directory
            .rotate_person(&ann, 30, parent.path(), now)
            .expect("a new key");
        let users = directory.users_named("ann").expect("a user");
        assert_eq!(users[0].current.stands(now.as_second()), Stands::Valid);
        assert_eq!(users[0].current.issued_at, now.as_second() + 1);
        let at = now.as_second() + 2 * YEAR;
        let token = directory.account_jwt(Account::Callers).expect("a JWT").1;
        let mut revoked = Revocations::in_claims(&token.nats);
        directory
            .prune(Account::Callers, &mut revoked, at)
            .expect("pruned");
        assert_eq!(revoked.len(), 0, "all have ended");
        // As `nsc` can make one: a user without an end.
        let signer = directory.role_key(Role::Person).expect("a key");
        let callers = directory.fleet().account(Account::Callers).to_owned();
        let user = new_user("eve", &callers, &signer, now.as_second(), i64::MAX);
        let stored = directory.users_directory(Account::Callers).join("eve.jwt");
        files::create(&stored, &user.jwt).expect("stored");
        let mut revoked = Revocations::in_claims(&token.nats);
        directory
            .prune(Account::Callers, &mut revoked, at)
            .expect("pruned");
        assert_eq!(revoked.of(&user.key), Some(now.as_second()));
        // Nobody is given credentials that are void at once, or issued far in the future.
        let future = [("*".to_owned(), now.as_second() + 2 * 3600)];
        directory.revoke(Account::Callers, &future, now).expect("revoked");
        let refused = directory.rotate_person(&ann, 30, parent.path(), now);
        assert!(
            matches!(refused, Err(KeysError::AllRevoked { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn what_the_operator_no_longer_lets_sign_signs_nothing() {
        let (_parent, directory, now) = fleet();
        let before = directory.account_jwt(Account::Callers).expect("a JWT").0;
        // As `nsc edit operator --rm-sk` leaves it.
        let (_other, stranger, _) = fleet();
        let jwt = stranger.operator_jwt().expect("a JWT");
        files::replace(&directory.operator_file(), &jwt).expect("written");
        let refused = directory.revoke(Account::Callers, &[("UX".to_owned(), 0)], now);
        let refused = refused.expect_err("no server would take it").to_string();
        assert!(refused.contains("does not list the signing key"), "{refused}");
        assert_eq!(directory.account_jwt(Account::Callers).expect("a JWT").0, before);
    }

    #[test]
    fn nothing_is_dropped_by_a_clock_that_differs_from_the_servers() {
        let now = Timestamp::now();
        let at = |seconds: i64| Timestamp::from_second(now.as_second() + seconds).expect("a time");
        assert_eq!(
            agreed(now, &[at(5), at(-7)]).expect("they agree"),
            now.as_second() - 7
        );
        for wrong in [-YEAR, PUSH_LIFE + 1] {
            let error = agreed(now, &[at(0), at(wrong)]).expect_err("they differ");
            assert!(
                matches!(error, KeysError::Clock { ahead } if ahead == -wrong),
                "{error}"
            );
        }
        // Without a hub nothing is dropped, however late it is.
        let (_parent, directory, now) = fleet();
        directory
            .revoke(Account::Callers, &[("UX".to_owned(), 0)], now)
            .expect("revoked");
        let later = Timestamp::from_second(now.as_second() + 9 * YEAR).expect("a time");
        directory
            .revoke(Account::Callers, &[("UY".to_owned(), 0)], later)
            .expect("revoked");
        let claims = directory.account_jwt(Account::Callers).expect("a JWT").1.nats;
        assert_eq!(Revocations::in_claims(&claims).len(), 2);
    }
}
