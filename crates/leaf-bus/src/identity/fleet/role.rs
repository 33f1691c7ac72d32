//! The accounts of a hub, and the roles of their users.

use leaf_core::id::{Caller, LeafName};
use serde_json::{Value, json};

use crate::identity::permissions::{Permissions, below_inbox};

/// An account of a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// The servers' own.
    System,
    /// The streams.
    Fleet,
    /// The connections of leaves.
    Links,
    /// People.
    Callers,
}

impl Account {
    /// All accounts.
    pub const ALL: [Self; 4] = [Self::System, Self::Fleet, Self::Links, Self::Callers];

    /// The account's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "SYS",
            Self::Fleet => "FLEET",
            Self::Links => "LINKS",
            Self::Callers => "CALLERS",
        }
    }

    /// Returns the account of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|account| account.name() == name)
    }
}

/// A role: the scope of a signing key, which limits the users that the key issues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Push the JWTs of accounts, in `SYS`.
    Push,
    /// The hub agent, in `FLEET`.
    AgentInFleet,
    /// The hub agent, in `LINKS`.
    AgentInLinks,
    /// A leaf, in `LINKS`.
    Leaf,
    /// A person, in `CALLERS`.
    Person,
}

/// The placeholder in a scope's subjects for which the server puts the name in a user's JWT.
const NAME: &str = "{{name()}}";
/// The name that a role's subjects are made with, before it is replaced by [`NAME`]. No subject of ours has this token.
const STANDS_FOR_NAME: &str = "name-of-the-user";

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::Push,
        Self::AgentInFleet,
        Self::AgentInLinks,
        Self::Leaf,
        Self::Person,
    ];

    /// The name of the signing key's scope.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::AgentInFleet | Self::AgentInLinks => "agent",
            Self::Leaf => "leaf",
            Self::Person => "person",
        }
    }

    /// The account of its users.
    #[must_use]
    pub fn account(self) -> Account {
        match self {
            Self::Push => Account::System,
            Self::AgentInFleet => Account::Fleet,
            Self::AgentInLinks | Self::Leaf => Account::Links,
            Self::Person => Account::Callers,
        }
    }

    /// Returns what a user of this name may do.
    #[must_use]
    pub fn permissions(self, name: &str) -> Permissions {
        let fill = |subjects: Vec<String>| {
            subjects
                .into_iter()
                .map(|subject| subject.replace(NAME, name))
                .collect()
        };
        let template = self.template();
        Permissions {
            publish: fill(template.publish),
            subscribe: fill(template.subscribe),
            ..template
        }
    }

    /// Returns what its users may do, with [`NAME`] in the place of their own.
    fn template(self) -> Permissions {
        let of_name = match self {
            Self::Push => {
                return Permissions {
                    publish: [
                        "$SYS.REQ.CLAIMS.UPDATE",
                        "$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP",
                        "$SYS.REQ.SERVER.PING.STATSZ",
                    ]
                    .map(str::to_owned)
                    .to_vec(),
                    subscribe: vec![below_inbox(NAME)],
                    ..Permissions::default()
                };
            }
            Self::AgentInFleet => return Permissions::hub_agent(),
            Self::AgentInLinks => return Permissions::hub_agent_in_links(),
            Self::Leaf => Permissions::leaf_at_hub(&LeafName::new(STANDS_FOR_NAME).expect("it is a token")),
            Self::Person => Permissions::person(&Caller::new(STANDS_FOR_NAME).expect("it is a token")),
        };
        let replace = |subjects: Vec<String>| {
            let replaced = subjects.into_iter().map(|subject| {
                let tokens = subject
                    .split('.')
                    .map(|token| if token == STANDS_FOR_NAME { NAME } else { token });
                tokens.collect::<Vec<_>>().join(".")
            });
            replaced.collect()
        };
        Permissions {
            publish: replace(of_name.publish),
            subscribe: replace(of_name.subscribe),
            ..of_name
        }
    }

    /// Returns the role's signing key as an account's claims list it.
    pub(super) fn signing_key(self, key: &str) -> Value {
        let mut template = self.template().to_claims();
        let connections = match self {
            Self::Leaf => json!(["LEAFNODE", "LEAFNODE_WS"]),
            Self::Person => json!(["STANDARD", "WEBSOCKET"]),
            _ => json!(["STANDARD"]),
        };
        template.insert("allowed_connection_types".to_owned(), connections);
        json!({ "kind": "user_scope", "key": key, "role": self.name(), "template": template })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_gives_a_user_the_rights_that_its_name_had_in_a_configuration() {
        let leaf = LeafName::new("edge-1").expect("a leaf");
        let ann = Caller::new("ann").expect("a caller");
        assert_eq!(Role::Leaf.permissions("edge-1"), Permissions::leaf_at_hub(&leaf));
        assert_eq!(Role::Person.permissions("ann"), Permissions::person(&ann));
        for role in [Role::Leaf, Role::Person] {
            let template = role.template();
            let own = template.publish.iter().chain(&template.subscribe);
            for subject in own {
                assert!(!subject.contains(STANDS_FOR_NAME), "{subject}");
            }
            assert!(template.subscribe.iter().any(|subject| subject.contains(NAME)));
        }
    }
}
