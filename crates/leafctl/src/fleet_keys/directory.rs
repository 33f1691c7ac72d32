//! The directory of a fleet's keys: where each file is, in the layout of `nsc` (github.com/nats-io/nsc, `cmd/store`).

use std::fs::File;
use std::path::{Path, PathBuf};

use leaf_bus::identity::Token;
use leaf_bus::identity::fleet::{Account, Fleet, KeyKind, NatsKey, Role};

use super::error::KeysError;
use super::files;
use super::manifest::Manifest;

/// A directory with the keys of a fleet.
#[derive(Debug)]
pub(crate) struct Directory {
    root: PathBuf,
    manifest: Manifest,
    /// Held by a command that writes.
    _lock: Option<File>,
}

impl Directory {
    /// Opens a directory to read in it.
    pub(crate) fn open(root: &Path) -> Result<Self, KeysError> {
        let root = std::path::absolute(root).map_err(KeysError::read(root))?;
        let manifest = Manifest::read(&root.join("fleet.json"))?;
        Ok(Self {
            manifest: manifest.ok_or_else(|| KeysError::NoFleet(root.clone()))?,
            root,
            _lock: None,
        })
    }

    /// Opens a directory to change it: no other command can meanwhile.
    pub(crate) fn open_to_write(root: &Path) -> Result<Self, KeysError> {
        // It is one of a fleet, or nothing is written into it.
        let path = Self::open(root)?.root.join(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let file = file.map_err(KeysError::write(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(KeysError::InUse(root.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => return Err(KeysError::write(&path)(error)),
        }
        // Read again: the command before may have changed it.
        Ok(Self {
            _lock: Some(file),
            ..Self::open(root)?
        })
    }

    /// Returns a directory that is being made.
    pub(super) fn made(root: PathBuf, manifest: Manifest) -> Self {
        Self {
            root,
            manifest,
            _lock: None,
        }
    }

    /// Its path.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What `fleet.json` says.
    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The public keys.
    pub(crate) fn fleet(&self) -> Fleet {
        self.manifest.fleet()
    }

    /// Returns a path in it.
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// Writes `fleet.json`.
    pub(super) fn write_manifest(&self) -> Result<(), KeysError> {
        files::replace(&self.at("fleet.json"), &self.manifest.text())
    }

    /// Notes that a credential was given this life.
    pub(super) fn note_life(&mut self, seconds: u64) -> Result<(), KeysError> {
        if seconds <= self.manifest.longest_life_seconds {
            return Ok(());
        }
        self.manifest.longest_life_seconds = seconds;
        self.write_manifest()
    }

    /// Returns the file of a key.
    pub(crate) fn key_file(&self, public: &str) -> PathBuf {
        let (kind, shard) = (public.get(..1).unwrap_or("_"), public.get(1..3).unwrap_or("_"));
        self.at("keys/keys")
            .join(kind)
            .join(shard)
            .join(format!("{public}.nk"))
    }

    /// Stores a new key.
    pub(super) fn store_key(&self, key: &NatsKey) -> Result<(), KeysError> {
        files::create(&self.key_file(&key.public_key()), key.seed().expose())
    }

    /// Returns the operator's signing key.
    pub(super) fn signing_key(&self) -> Result<NatsKey, KeysError> {
        let public = &self.manifest.signing_key;
        let key = self.key(
            KeyKind::Operator,
            public,
            "the signing key of the NATS operator",
            "show, add-leaf, add-operator, and a push of what is signed already",
        )?;
        let path = self.operator_file();
        let operator = read_token(&path, &self.operator_jwt()?)?;
        let mut listed = operator.nats["signing_keys"].as_array().into_iter().flatten();
        if !listed.any(|listed| listed.as_str() == Some(public)) {
            let what = format!(
                "it does not list the signing key {public} of fleet.json, so no server takes what that signs: put the JWT before in its place"
            );
            return Err(KeysError::damaged(&path, what));
        }
        Ok(key)
    }

    /// Returns the signing key of a role.
    pub(super) fn role_key(&self, role: Role) -> Result<NatsKey, KeysError> {
        let (whose, works) = match role {
            Role::Push => (
                "the key of the role push",
                "show, add-leaf, add-operator; revoke and rotate change the directory and hub/, and not the hub",
            ),
            Role::AgentInFleet | Role::AgentInLinks => ("the key of the role agent", "all but rotate hub"),
            Role::Leaf => (
                "the key of the role leaf",
                "all for people and the hub, and revoke",
            ),
            Role::Person => (
                "the key of the role person",
                "all for leaves and the hub, and revoke",
            ),
        };
        let fleet = self.fleet();
        let public = fleet.roles.get(&role).map_or("", String::as_str);
        self.key(KeyKind::Account, public, whose, works)
    }

    fn key(
        &self,
        kind: KeyKind,
        public: &str,
        whose: &'static str,
        works: &'static str,
    ) -> Result<NatsKey, KeysError> {
        let path = self.key_file(public);
        let Some(seed) = files::read_private(&path)? else {
            return Err(KeysError::MissingKey {
                whose,
                key: public.to_owned(),
                path,
                works,
            });
        };
        let key = NatsKey::from_seed(&seed, kind).map_err(|error| KeysError::damaged(&path, error))?;
        if key.public_key() != public {
            let what = format!("it holds the key {}", key.public_key());
            return Err(KeysError::damaged(&path, what));
        }
        Ok(key)
    }

    /// Returns the file of the operator's JWT.
    pub(super) fn operator_file(&self) -> PathBuf {
        let name = &self.manifest.name;
        self.at("stores").join(name).join(format!("{name}.jwt"))
    }

    fn account_directory(&self, account: Account) -> PathBuf {
        self.at("stores")
            .join(&self.manifest.name)
            .join("accounts")
            .join(account.name())
    }

    /// Returns the file of an account's JWT.
    pub(super) fn account_file(&self, account: Account) -> PathBuf {
        self.account_directory(account)
            .join(format!("{}.jwt", account.name()))
    }

    /// Returns the directory of the JWTs of an account's users.
    pub(super) fn users_directory(&self, account: Account) -> PathBuf {
        self.account_directory(account).join("users")
    }

    /// Returns the directory of the former JWTs of an account's users.
    pub(super) fn former_directory(&self, account: Account) -> PathBuf {
        self.at("former").join(account.name())
    }

    /// Returns the JWT of the operator.
    pub(super) fn operator_jwt(&self) -> Result<String, KeysError> {
        let path = self.operator_file();
        let jwt = files::read(&path)?.ok_or_else(|| KeysError::damaged(&path, "it is missing"))?;
        Ok(jwt.trim().to_owned())
    }

    /// Returns the JWT of an account, and what it says.
    pub(super) fn account_jwt(&self, account: Account) -> Result<(String, Token), KeysError> {
        let path = self.account_file(account);
        let jwt = files::read(&path)?.ok_or_else(|| KeysError::damaged(&path, "it is missing"))?;
        let token = read_token(&path, &jwt)?;
        Ok((jwt.trim().to_owned(), token))
    }
}

/// Reads a JWT from the text of a file.
pub(super) fn read_token(path: &Path, jwt: &str) -> Result<Token, KeysError> {
    Token::read(jwt).map_err(|error| KeysError::damaged(path, error))
}
