//! Secrets of a leaf: what is recorded of them, who may have one, and what its users do when it changes. No record has
//! their content: only the helper decrypts it (docs/security.md, *Secrets*). [`Secret`] is a text on its way to the helper.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{Caller, ContainerName, InvalidId, SecretName, UnitName};
use crate::spec::{ContainerOptions, OnChange, SecretSource};

/// The maximum size of a secret's content, in bytes.
pub const MAX_CONTENT_BYTES: usize = 64 * 1024;
/// The maximum size of a secret's age file, in bytes: room for the largest content and header, armored.
pub const MAX_FILE_BYTES: usize = 128 * 1024;
/// The maximum number of secrets of a leaf.
pub const MAX_SECRETS: usize = 256;
/// The maximum number of users that a secret names.
pub const MAX_USERS: usize = 32;

/// What is recorded of a secret: the entry `secret.<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRecord {
    /// The secret's name.
    pub name: SecretName,
    /// How often it was set since it was removed last, from 1.
    pub generation: u64,
    /// The size of its age file, in bytes.
    pub file_bytes: u64,
    /// The SHA-256 of its age file, as 64 hexadecimal digits. It differs each time the secret is set, also to the same content.
    pub digest: String,
    /// The users that it names. Nothing else gets it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<SecretUser>,
    /// The caller that set it last; `leafd` if its file was replaced on the host.
    pub set_by: Caller,
    /// When it was set last.
    pub set_at: Timestamp,
}

/// A user that a secret names: `container web`, or `unit postgresql.service reload`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretUser {
    /// A container of the leaf.
    Container {
        /// Its name.
        name: ContainerName,
    },
    /// A unit of the host's systemd.
    Unit {
        /// Its name: `postgresql.service`.
        name: UnitName,
        /// What is done with it when the secret changes.
        #[serde(default)]
        on_change: OnUnitChange,
    },
}

/// What is done with a unit when a secret that it uses changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUnitChange {
    /// It is restarted, if it is active.
    #[default]
    Restart,
    /// It is reloaded, if it is active.
    Reload,
    /// Nothing: it gets the secret at its next start.
    Nothing,
}

/// A text that names no user of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretUserError {
    /// It has another form.
    #[error(
        "a user of a secret is `container NAME`, or `unit NAME` with `restart`, `reload` or `nothing` behind it"
    )]
    Form,
    /// The name is not valid.
    #[error(transparent)]
    Name(#[from] InvalidId),
}

impl fmt::Display for OnUnitChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restart => "restart",
            Self::Reload => "reload",
            Self::Nothing => "nothing",
        })
    }
}

impl FromStr for OnUnitChange {
    type Err = SecretUserError;

    fn from_str(text: &str) -> Result<Self, SecretUserError> {
        match text {
            "restart" => Ok(Self::Restart),
            "reload" => Ok(Self::Reload),
            "nothing" => Ok(Self::Nothing),
            _ => Err(SecretUserError::Form),
        }
    }
}

impl fmt::Display for SecretUser {
    /// Writes it in its only form, that of a `for` line in a secret's header.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container { name } => write!(f, "container {name}"),
            Self::Unit { name, on_change } => write!(f, "unit {name} {on_change}"),
        }
    }
}

impl FromStr for SecretUser {
    type Err = SecretUserError;

    fn from_str(text: &str) -> Result<Self, SecretUserError> {
        let parts: Vec<&str> = text.split(' ').collect();
        match parts[..] {
            ["container", name] => Ok(Self::Container {
                name: ContainerName::new(name)?,
            }),
            ["unit", name] => Ok(Self::Unit {
                name: UnitName::new(name)?,
                on_change: OnUnitChange::default(),
            }),
            ["unit", name, on_change] => Ok(Self::Unit {
                name: UnitName::new(name)?,
                on_change: on_change.parse()?,
            }),
            _ => Err(SecretUserError::Form),
        }
    }
}

/// Returns whether a secret that names these users may be given to a container.
#[must_use]
pub fn allows_container(users: &[SecretUser], container: &ContainerName) -> bool {
    let is_it = |user: &SecretUser| matches!(user, SecretUser::Container { name } if name == container);
    users.iter().any(is_it)
}

/// Returns what is done with a unit when a secret that names these users changes; `None` if the unit may not have it.
#[must_use]
pub fn allowed_unit(users: &[SecretUser], unit: &str) -> Option<OnUnitChange> {
    users.iter().find_map(|user| match user {
        SecretUser::Unit { name, on_change } if name.as_str() == unit => Some(*on_change),
        _ => None,
    })
}

/// Returns the secrets whose change restarts a container with these options, each with the digest of its present age file.
/// One that is not set, or that names other users, is left out.
#[must_use]
pub fn restarting(
    secrets: &BTreeMap<SecretName, SecretRecord>,
    container: &ContainerName,
    options: &ContainerOptions,
) -> BTreeMap<SecretName, String> {
    let named = options.secrets.values().filter_map(|source| match source {
        SecretSource::Secret(named) if named.on_change == OnChange::Restart => secrets.get(&named.secret),
        SecretSource::Secret(_) | SecretSource::File(_) => None,
    });
    named
        .filter(|record| allows_container(&record.users, container))
        .map(|record| (record.name.clone(), record.digest.clone()))
        .collect()
}

/// Returns [`restarting`] for a container that exists, with the digests that it has. Of a secret that is gone, or names other users now,
/// its digest stays: that restarts nobody.
#[must_use]
pub fn restarting_again(
    secrets: &BTreeMap<SecretName, SecretRecord>,
    container: &ContainerName,
    options: &ContainerOptions,
    before: &BTreeMap<SecretName, String>,
) -> BTreeMap<SecretName, String> {
    let mut all = restarting(secrets, container, options);
    for source in options.secrets.values() {
        if let SecretSource::Secret(named) = source
            && named.on_change == OnChange::Restart
            && let Some(digest) = before.get(&named.secret)
        {
            all.entry(named.secret.clone()).or_insert_with(|| digest.clone());
        }
    }
    all
}

/// A secret text, which `{:?}` does not show.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns a secret with this text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the secret's text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user() -> impl Strategy<Value = SecretUser> {
        let container = "[a-zA-Z0-9_][a-zA-Z0-9_-]{0,10}".prop_map(|name| SecretUser::Container {
            name: ContainerName::new(name).expect("a name"),
        });
        let on_change = prop_oneof![
            Just(OnUnitChange::Restart),
            Just(OnUnitChange::Reload),
            Just(OnUnitChange::Nothing)
        ];
        let unit = ("[a-zA-Z0-9:_.][a-zA-Z0-9:_.@-]{0,40}", on_change).prop_map(|(name, on_change)| {
            SecretUser::Unit {
                name: UnitName::new(format!("{name}.service")).expect("a unit"),
                on_change,
            }
        });
        prop_oneof![container, unit]
    }

    proptest! {
        #[test]
        fn a_user_is_read_back_from_its_text(user in user()) {
            prop_assert_eq!(user.to_string().parse(), Ok(user));
        }
    }

    #[test]
    fn a_text_that_names_no_user_is_refused() {
        for bad in [
            "",
            "container",
            "container a b",
            "container ../a",
            "container  a",
            "unit a",
            "unit a.socket",
            "unit ../a.service",
            "unit a.service sometimes",
            "unit a.service restart now",
            "unit a.service\nfor: container b",
            "user a",
        ] {
            assert!(bad.parse::<SecretUser>().is_err(), "{bad:?}");
        }
    }
}
