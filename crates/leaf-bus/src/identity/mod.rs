//! The identities of a leaf's own NATS: an operator, its accounts and users, created at the first start and stored.
//!
//! Start at [`Identity::open_or_create`]. There are two accounts: `LEAF` with the streams, in which the daemon
//! (`leafd`) is the only user, and `CALLERS`, in which the daemon answers people (`admin` is the first) and containers.
//! A signing key that can issue nothing else issues the containers' users. [`Permissions`] says what each user may do,
//! and why there are two accounts. In a fleet the NATS operator is given: a leaf there has the users that it is given, and
//! issues those of containers with a given key ([`ContainerSigner`]). The keys of a hub's operator are in [`fleet`].

mod container_signer;
mod crossing;
pub(crate) mod files;
pub mod fleet;
mod hub;
mod jwt;
mod keys;
mod loaded;
mod permissions;
mod revocations;
mod user_key;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use leaf_core::host_op::Secret;
use leaf_core::id::{Caller, ContainerName, InstanceId, LeafName};
use leaf_core::renewal::CONTAINER_VALID;
use leaf_core::subject;
use nkeys::KeyPair;
use serde_json::{Value, json};

pub use container_signer::{ContainerSigner, SignerError};
use crossing::link_account_claims;
pub use crossing::{Crossing, Home, Way, crossings};
use files::write_for_group;
pub use files::{private_dir, write_private};
pub use hub::HubUsers;
use jwt::Claims;
pub use jwt::{Token, TokenError};
use keys::Keys;
pub use permissions::Permissions;
use permissions::{READ_SERVICES, heard_by_callers};
pub use user_key::{is_public_user_key, public_user_key, user_key};

/// The scope of the signing key that issues containers' users.
const CONTAINER_ROLE: &str = "container";
/// How long credentials of the first person are valid if nothing else is set.
pub const ADMIN_VALID: Duration = Duration::from_secs(24 * 3600);

/// Why the identity can't be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// An existing file can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file or directory can't be written.
    #[error("can't write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// Other users can read a secret.
    #[error("{} holds secret keys and has mode {mode:04o}, so other users can read it: run `chmod 600` on it. If somebody may have read it, replace the keys: for those of a leaf (keys.json), delete its directory; for a user of a hub, make another file with `leaf-hub key`", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// The file's mode.
        mode: u32,
    },
    /// The file of the keys is damaged.
    #[error("the keys of this leaf in {} are damaged: {what}; restore the file from a backup, or delete its directory to create new keys, which invalidates all credentials issued so far", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        what: String,
    },
    /// The file of the keys is missing, but files derived from it exist.
    #[error("{} is missing, but credentials derived from it are beside it; restore it from a backup, or delete its directory to create new keys, which invalidates all credentials issued so far", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file without a user's seed.
    #[error("{} does not hold the seed of a user's NKEY, which begins with SU: `leaf-hub key FILE` makes one", path.display())]
    NoSeed {
        /// The file.
        path: PathBuf,
    },
    /// The keys of a leaf with another name.
    #[error("{} holds the keys of the leaf {found}, not of {expected}: start it under that name, or give this leaf its own state directory", path.display())]
    OtherLeaf {
        /// The file.
        path: PathBuf,
        /// The leaf that the keys belong to.
        found: LeafName,
        /// This leaf's name.
        expected: LeafName,
    },
}

/// The daemon's name as a caller: `leafd`.
#[must_use]
pub fn daemon_caller() -> Caller {
    Caller::new("leafd").expect("leafd is a token")
}

/// The first person's name as a caller: `admin`.
#[must_use]
pub fn admin_caller() -> Caller {
    Caller::new("admin").expect("admin is a token")
}

/// The hub agent's name as a caller: `hub`.
#[must_use]
pub fn hub_caller() -> Caller {
    Caller::new("hub").expect("hub is a token")
}

/// The operator, account and users of one leaf's own NATS.
#[derive(Clone)]
pub struct Identity {
    leaf: LeafName,
    instance: Option<InstanceId>,
    keys: Arc<Keys>,
    admin_file: PathBuf,
    admin_valid: Duration,
    container_valid: Duration,
    revoked_dir: PathBuf,
}

impl Identity {
    /// Returns the identity stored in this directory; creates it (directory 0700, files 0600) if there is none. Never
    /// replaces a key.
    ///
    /// # Errors
    /// [`IdentityError`] if a file is damaged, missing, readable by other users, of another leaf, or can't be written.
    pub fn open_or_create(dir: &Path, leaf: &LeafName) -> Result<Self, IdentityError> {
        let dir = std::path::absolute(dir)
            .and_then(|dir| private_dir(&dir).map(|()| dir))
            .map_err(|source| IdentityError::Write {
                path: dir.to_owned(),
                source,
            })?;
        let key_file = dir.join("keys.json");
        let admin_file = dir.join("admin.creds");
        let keys = match Keys::read(&key_file, leaf)? {
            Some(keys) => keys,
            None if admin_file.exists() => return Err(IdentityError::Missing { path: key_file }),
            None => Keys::make(&key_file, leaf, Timestamp::now())?,
        };
        let identity = Self {
            leaf: leaf.clone(),
            instance: None,
            keys: Arc::new(keys),
            admin_file,
            admin_valid: ADMIN_VALID,
            container_valid: CONTAINER_VALID,
            revoked_dir: revocations::directory(&dir),
        };
        identity.write_admin_credentials()?;
        Ok(identity)
    }

    /// Returns it with another life of the [admin's credentials](Self::admin_credentials) than a day.
    #[must_use]
    pub fn with_admin_valid(self, admin_valid: Duration) -> Self {
        Self { admin_valid, ..self }
    }

    /// Returns it with another life of [containers' credentials](Self::container_credentials) than a day.
    #[must_use]
    pub fn with_container_valid(self, container_valid: Duration) -> Self {
        Self {
            container_valid,
            ..self
        }
    }

    /// Returns it with the instance of leafd that runs the server. A hub agent reads from that instance by its name.
    #[must_use]
    pub fn of_instance(self, instance: InstanceId) -> Self {
        Self {
            instance: Some(instance),
            ..self
        }
    }

    /// The leaf's name.
    #[must_use]
    pub fn leaf(&self) -> &LeafName {
        &self.leaf
    }

    /// The public key of the streams' account.
    #[must_use]
    pub fn account(&self) -> String {
        self.keys.account.public_key()
    }

    /// The public key of the callers' account.
    #[must_use]
    pub fn callers_account(&self) -> String {
        self.keys.callers.public_key()
    }

    /// Returns the daemon's credentials in the streams' account (user [`daemon_caller`]), in the format of a
    /// credentials file.
    #[must_use]
    pub fn leaf_credentials(&self) -> Secret {
        self.issue(
            &self.keys.account,
            &self.keys.daemon,
            &daemon_caller(),
            &Permissions::keeper(&self.leaf),
            self.issued_at(),
        )
    }

    /// Returns the daemon's credentials in the callers' account (also user [`daemon_caller`]).
    #[must_use]
    pub fn service_credentials(&self) -> Secret {
        self.issue(
            &self.keys.callers,
            &self.keys.service,
            &daemon_caller(),
            &Permissions::service(&self.leaf),
            self.issued_at(),
        )
    }

    /// Returns the daemon's credentials in the account of the connection to a hub (also user [`daemon_caller`]), whose inboxes
    /// are below [`subject::leaf_inbox_prefix`].
    #[must_use]
    pub fn claimant_credentials(&self) -> Secret {
        self.issue(
            &self.keys.link_account(),
            &self.keys.claimant(),
            &daemon_caller(),
            &Permissions::claimant(&self.leaf),
            self.issued_at(),
        )
    }

    /// The public key of the account that holds the connection to a hub.
    #[must_use]
    pub fn link_account(&self) -> String {
        self.keys.link_account().public_key()
    }

    /// Returns credentials of the first person (user [`admin_caller`]), which are valid from now on for the time that
    /// [`Self::with_admin_valid`] set.
    #[must_use]
    pub fn admin_credentials(&self) -> Secret {
        let admin = admin_caller();
        let now = Timestamp::now().as_second();
        let valid = i64::try_from(self.admin_valid.as_secs()).unwrap_or(i64::MAX);
        let user = User {
            account: &self.keys.callers,
            key: &self.keys.admin,
            caller: &admin,
            permissions: &Permissions::person(&admin),
        };
        user.issue(now, Some(now.saturating_add(valid)))
    }

    /// Writes [new credentials](Self::admin_credentials) into the [file of the admin](Self::admin_credentials_file).
    ///
    /// # Errors
    /// [`IdentityError::Write`].
    pub fn write_admin_credentials(&self) -> Result<(), IdentityError> {
        write_private(&self.admin_file, self.admin_credentials().expose()).map_err(|source| {
            IdentityError::Write {
                path: self.admin_file.clone(),
                source,
            }
        })
    }

    /// The absolute path of the file with the [admin's credentials](Self::admin_credentials).
    #[must_use]
    pub fn admin_credentials_file(&self) -> &Path {
        &self.admin_file
    }

    /// Returns credentials of a new user in the callers' account with these permissions: another person
    /// ([`Permissions::person`]) or a program.
    #[must_use]
    pub fn user_credentials(&self, caller: &Caller, permissions: &Permissions) -> Secret {
        let now = Timestamp::now().as_second();
        self.issue(&self.keys.callers, &KeyPair::new_user(), caller, permissions, now)
    }

    /// Returns credentials of a new user in the streams' account with these permissions, for clients that are trusted
    /// like the daemon, such as a program that sources the streams. A user who may send JetStream requests there can make
    /// the server write into the streams.
    #[must_use]
    pub fn trusted_credentials(&self, caller: &Caller, permissions: &Permissions) -> Secret {
        let now = Timestamp::now().as_second();
        self.issue(&self.keys.account, &KeyPair::new_user(), caller, permissions, now)
    }

    /// Returns credentials for a container, of the user [`ContainerName::caller`]. The signing key for containers
    /// issues them, so that the server itself limits them to the container's own subjects. They are valid for the time that
    /// [`Self::with_container_valid`] set, or until they are [revoked](Self::revoke_container); those issued after that are valid
    /// again.
    #[must_use]
    pub fn container_credentials(&self, container: &ContainerName) -> Secret {
        let user = self.keys.container(container);
        // An unreadable revocation is ignored here: it makes the start or reload of the server fail.
        let revoked = revocations::of(&self.revoked_dir, &user.public_key())
            .ok()
            .flatten();
        let now = Timestamp::now().as_second();
        let issued_at = revoked.map_or(now, |until| now.max(until + 1));
        container_signer::issue(
            &self.keys.container_signer,
            &self.callers_account(),
            (&self.leaf, container),
            &user,
            (
                issued_at,
                container_signer::ends_at(issued_at, self.container_valid),
            ),
        )
    }

    /// Revokes all credentials issued for a container so far. Takes effect when the server is started or
    /// [reloaded](crate::embedded::Reloader::reload).
    ///
    /// # Errors
    /// [`IdentityError`] if the revocation can't be written.
    pub fn revoke_container(&self, container: &ContainerName) -> Result<(), IdentityError> {
        let user = self.keys.container(container).public_key();
        // Credentials issued in this second may have a later time: see above.
        let before = revocations::of(&self.revoked_dir, &user)?;
        let now = Timestamp::now().as_second();
        revocations::add(
            &self.revoked_dir,
            &user,
            before.map_or(now, |until| now.max(until + 1)),
        )
    }

    /// Returns the part of nats-server's configuration with the identities: operator, system account, and all accounts
    /// preloaded into a memory resolver. It holds no secret.
    ///
    /// # Errors
    /// [`IdentityError`] if the revocations can't be read.
    pub fn server_config(&self) -> Result<String, IdentityError> {
        let system = self.keys.system.public_key();
        let revoked = revocations::all(&self.revoked_dir)?;
        let (account, callers, link) = (self.account(), self.callers_account(), self.keys.link_account());
        let link_claims =
            link_account_claims(&self.leaf, self.instance, &account, &callers, &account_limits());
        Ok(format!(
            "operator: {operator}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload {{\n  {system}: {system_jwt}\n  \
             {account}: {account_jwt}\n  {callers}: {callers_jwt}\n  {link}: {link_jwt}\n}}\n",
            operator = self.operator_jwt(),
            system_jwt = self.account_jwt(&self.keys.system, "SYS", system_account_claims(&callers)),
            account_jwt = self.account_jwt(&self.keys.account, "LEAF", leaf_account_claims()),
            callers_jwt = self.account_jwt(
                &self.keys.callers,
                "CALLERS",
                self.callers_account_claims(&revoked)
            ),
            link_jwt = self.account_jwt(&link, "LINK", link_claims),
            link = link.public_key(),
        ))
    }

    /// Writes a context of the `nats` command line (mode 0600), which connects a client as the caller `admin`.
    ///
    /// # Errors
    /// [`IdentityError::Write`].
    pub fn write_context(&self, path: &Path, url: &str) -> Result<(), IdentityError> {
        write_private(path, &self.context(url, &self.admin_file)).map_err(|source| IdentityError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// Writes `context.json` as [`Identity::write_context`] does, and the credentials that it names, into a directory whose
    /// group may act as the caller `admin` (mode 0640).
    ///
    /// # Errors
    /// [`IdentityError::Write`].
    pub fn write_access(&self, directory: &Path, url: &str) -> Result<(), IdentityError> {
        let (context, credentials) = (directory.join("context.json"), directory.join("admin.creds"));
        let admin = self.admin_credentials();
        for (path, text) in [
            (&credentials, admin.expose()),
            (&context, &*self.context(url, &credentials)),
        ] {
            write_for_group(path, text).map_err(|source| IdentityError::Write {
                path: path.clone(),
                source,
            })?;
        }
        Ok(())
    }

    /// Returns the text of a context that connects as the caller `admin` with a credentials file.
    fn context(&self, url: &str, credentials: &Path) -> String {
        // The fields of github.com/nats-io/jsm.go, natscontext; omitted ones are empty there as well.
        let context = json!({
            "description": format!("the leaf {} as admin", self.leaf),
            "url": url,
            "creds": credentials,
            "inbox_prefix": subject::inbox_prefix(&admin_caller()),
        });
        format!("{context:#}\n")
    }

    fn issued_at(&self) -> i64 {
        self.keys.made_at.as_second()
    }

    /// Returns credentials that don't end.
    fn issue(
        &self,
        account: &KeyPair,
        user: &KeyPair,
        caller: &Caller,
        permissions: &Permissions,
        issued_at: i64,
    ) -> Secret {
        let user = User {
            account,
            key: user,
            caller,
            permissions,
        };
        user.issue(issued_at, None)
    }

    fn operator_jwt(&self) -> String {
        jwt::sign(
            Claims {
                subject: &self.keys.operator.public_key(),
                name: self.leaf.as_str(),
                issued_at: self.issued_at(),
                expires_at: None,
                nats: json!({
                    "type": "operator",
                    "version": 2,
                    "system_account": self.keys.system.public_key(),
                }),
            },
            &self.keys.operator,
        )
    }

    fn account_jwt(&self, account: &KeyPair, name: &str, nats: Value) -> String {
        jwt::sign(
            Claims {
                subject: &account.public_key(),
                name,
                issued_at: self.issued_at(),
                expires_at: None,
                nats,
            },
            &self.keys.operator,
        )
    }

    /// The callers' account has no streams. It imports what [`leaf_account_claims`] exports.
    fn callers_account_claims(&self, revoked: &BTreeMap<String, i64>) -> Value {
        let account = self.account();
        let import = |(kind, subject): (&str, String)| json!({ "name": subject, "subject": subject, "account": account, "type": kind });
        let services = READ_SERVICES.map(|(subject, _)| ("service", subject.to_owned()));
        let streams = heard_by_callers().map(|subject| ("stream", subject));
        let mut exports = crossing::callers_exports(&self.leaf);
        exports.push(loaded::export());
        json!({
            "type": "account",
            "version": 2,
            "limits": account_limits(),
            "exports": exports,
            "imports": services.into_iter().chain(streams).map(import).collect::<Vec<_>>(),
            "revocations": revoked,
            "signing_keys": [{
                "kind": "user_scope",
                "key": self.keys.container_signer.public_key(),
                "role": CONTAINER_ROLE,
                "template": Permissions::container_template(&self.leaf).to_claims(),
            }],
        })
    }
}

/// A user of an account, whose key itself issues it.
struct User<'a> {
    account: &'a KeyPair,
    key: &'a KeyPair,
    caller: &'a Caller,
    permissions: &'a Permissions,
}

impl User<'_> {
    /// Returns its credentials from one time to another, in seconds of the Unix epoch.
    fn issue(&self, issued_at: i64, expires_at: Option<i64>) -> Secret {
        let mut claims = self.permissions.to_claims();
        claims.insert("type".to_owned(), json!("user"));
        claims.insert("version".to_owned(), json!(2));
        let jwt = jwt::sign(
            Claims {
                subject: &self.key.public_key(),
                name: self.caller.as_str(),
                issued_at,
                expires_at,
                nats: Value::Object(claims),
            },
            self.account,
        );
        Secret::new(jwt::credentials(&jwt, self.key))
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("leaf", &self.leaf)
            .field("account", &self.account())
            .finish_non_exhaustive()
    }
}

fn account_limits() -> Value {
    json!({
        "subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1,
        "imports": -1, "exports": -1, "wildcards": true,
    })
}

/// Adds JetStream without limits to the limits of an account.
fn jetstream_limits(limits: &mut Value) {
    for unlimited in [
        "mem_storage",
        "disk_storage",
        "streams",
        "consumer",
        "max_ack_pending",
    ] {
        limits[unlimited] = json!(-1);
    }
}

/// The streams' account, in which the daemon is the only user. It exports reading, to the callers and to the
/// connection to a hub.
fn leaf_account_claims() -> Value {
    let mut limits = account_limits();
    jetstream_limits(&mut limits);
    let services = READ_SERVICES.map(|(subject, answers)| {
        json!({ "name": subject, "subject": subject, "type": "service", "response_type": answers.response_type() })
    });
    let streams = heard_by_callers()
        .into_iter()
        .chain([subject::state_changes()])
        .map(|subject| json!({ "name": subject, "subject": subject, "type": "stream" }));
    json!({
        "type": "account",
        "version": 2,
        "limits": limits,
        "exports": services.into_iter().chain(streams).collect::<Vec<_>>(),
    })
}

/// The system account has no streams: it has no JetStream limits.
fn system_account_claims(callers: &str) -> Value {
    json!({
        "type": "account",
        "version": 2,
        "limits": account_limits(),
        "imports": [loaded::import("CALLERS", callers)],
    })
}

#[cfg(test)]
mod tests;
