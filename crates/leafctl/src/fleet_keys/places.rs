//! Where each key of a fleet is, and what needs it.

use std::path::PathBuf;

use leaf_bus::identity::fleet::{Account, Role};

use super::directory::Directory;

/// A key, and its place.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Place {
    /// Whose key it is.
    pub(crate) whose: String,
    /// The public key; none for a key of TLS.
    pub(crate) key: Option<String>,
    /// The file of the secret part.
    pub(crate) file: PathBuf,
    /// Whether it is there.
    pub(crate) here: bool,
    /// The commands that need it; none for a key that may be moved away.
    pub(crate) needed_by: Option<&'static str>,
}

impl Directory {
    /// Returns the places of all keys.
    pub(crate) fn places(&self) -> Vec<Place> {
        let manifest = self.manifest();
        let fleet = self.fleet();
        let place = |whose: String, key: &str, needed_by| {
            let file = self.key_file(key);
            Place {
                whose,
                key: Some(key.to_owned()),
                here: file.exists(),
                file,
                needed_by,
            }
        };
        let mut places = vec![
            place("the NATS operator".to_owned(), &manifest.operator, None),
            place(
                "the NATS operator, for signing".to_owned(),
                &manifest.signing_key,
                Some("revoke, rotate --at-once, push"),
            ),
        ];
        for account in Account::ALL {
            places.push(place(
                format!("the account {}", account.name()),
                fleet.account(account),
                None,
            ));
        }
        for (role, key) in &fleet.roles {
            let needed_by = match role {
                Role::Push => "push, revoke",
                Role::AgentInFleet | Role::AgentInLinks => "rotate hub",
                Role::Leaf => "add-leaf, rotate",
                Role::Person => "add-operator, rotate",
            };
            let whose = format!("the role {} in {}", role.name(), role.account().name());
            places.push(place(whose, key, Some(needed_by)));
        }
        let file = self.at("tls/ca.key");
        places.push(Place {
            whose: "the CA".to_owned(),
            key: None,
            here: file.exists(),
            file,
            needed_by: Some("rotate hub"),
        });
        places
    }
}
