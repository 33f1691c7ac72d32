//! The accounts of a hub, as a part of nats-server's configuration, for users with NKEYS. A hub with a NATS operator has the
//! same exports and imports as claims of JWTs ([`export_claims`], [`import_claims`]). `docs/fleet.md` is the contract.

use std::fmt::Write as _;

use leaf_core::id::{Caller, LeafName};
use leaf_core::subject;
use serde_json::{Value, json};

use super::permissions::{Answers, DISCOVERY, READ_SERVICES, below_inbox};
use super::{Permissions, hub_caller};

/// The users of a hub: the public key of each one's NKEY, which begins with `U`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubUsers {
    /// The hub agent's user in `FLEET`.
    pub agent: String,
    /// The hub agent's user in `LINKS`.
    pub agent_in_links: String,
    /// The leaves' users.
    pub leaves: Vec<(LeafName, String)>,
    /// People.
    pub people: Vec<(Caller, String)>,
}

impl HubUsers {
    /// Returns the block `accounts` of nats-server's configuration.
    #[must_use]
    pub fn accounts(&self) -> String {
        let mut text = String::from("accounts {\n");
        for (name, jetstream, users, exports, imports) in [
            (
                "FLEET",
                true,
                self.fleet_users(),
                fleet_exports(),
                fleet_imports(),
            ),
            ("LINKS", false, self.link_users(), link_exports(), Vec::new()),
            (
                "CALLERS",
                false,
                self.caller_users(),
                Vec::new(),
                caller_imports(),
            ),
        ] {
            let _ = writeln!(text, "  {name} {{");
            if jetstream {
                text.push_str("    jetstream: enabled\n");
            }
            for (part, entries) in [("users", users), ("exports", exports), ("imports", imports)] {
                if entries.is_empty() {
                    continue;
                }
                let _ = writeln!(text, "    {part}: [");
                for entry in entries {
                    // The configuration's language includes JSON.
                    let _ = writeln!(text, "      {entry}");
                }
                text.push_str("    ]\n");
            }
            text.push_str("  }\n");
        }
        text + "}\n"
    }

    /// Returns the commands of `nsc` that make the same accounts and users for a hub with a NATS operator, as a shell script.
    #[must_use]
    pub fn nsc(&self) -> String {
        let mut text =
            String::from("#!/bin/sh\n# Run it once, where the keys of the NATS operator are.\nset -eu\n");
        for account in ["FLEET", "LINKS", "CALLERS"] {
            let _ = writeln!(text, "nsc add account --name {account}");
        }
        text.push_str(
            "nsc edit account --name FLEET --js-mem-storage -1 --js-disk-storage -1 --js-streams -1 --js-consumer -1\n",
        );
        for account in ["FLEET", "LINKS"] {
            let _ = writeln!(
                text,
                "{account}=$(nsc describe account --name {account} --field sub | tr -d '\"')"
            );
        }
        for (account, exports) in [("FLEET", fleet_exports()), ("LINKS", link_exports())] {
            for export in exports {
                let (subject, kind) = match (export["service"].as_str(), export["response_type"].as_str()) {
                    (Some(subject), Some("stream")) => (subject, " --service --response-type Stream"),
                    (Some(subject), _) => (subject, " --service"),
                    (None, _) => (export["stream"].as_str().unwrap_or_default(), ""),
                };
                let _ = writeln!(
                    text,
                    "nsc add export --account {account} --name '{subject}' --subject '{subject}'{kind}"
                );
            }
        }
        for (account, imports) in [("FLEET", fleet_imports()), ("CALLERS", caller_imports())] {
            for import in imports {
                let (part, kind) = if import["service"].is_object() {
                    (&import["service"], " --service")
                } else {
                    (&import["stream"], "")
                };
                let (from, subject) = (
                    part["account"].as_str().unwrap_or_default(),
                    part["subject"].as_str().unwrap_or_default(),
                );
                let local = import["to"].as_str().unwrap_or(subject);
                let _ = writeln!(
                    text,
                    "nsc add import --account {account} --name '{local}' --src-account \"${from}\" --remote-subject '{subject}' \
                     --local-subject '{local}'{kind}"
                );
            }
        }
        let hub = hub_caller();
        text.push_str(&nsc_user(
            "FLEET",
            hub.as_str(),
            &self.agent,
            &Permissions::hub_agent(),
        ));
        let in_links = Permissions::hub_agent_in_links();
        text.push_str(&nsc_user("LINKS", hub.as_str(), &self.agent_in_links, &in_links));
        for (leaf, key) in &self.leaves {
            text.push_str(&nsc_user(
                "LINKS",
                leaf.as_str(),
                key,
                &Permissions::leaf_at_hub(leaf),
            ));
            let _ = writeln!(
                text,
                "nsc edit user --account LINKS --name {leaf} --conn-type LEAFNODE,LEAFNODE_WS"
            );
        }
        for (caller, key) in &self.people {
            text.push_str(&nsc_user(
                "CALLERS",
                caller.as_str(),
                key,
                &Permissions::person(caller),
            ));
        }
        text
    }

    fn fleet_users(&self) -> Vec<Value> {
        vec![user(&self.agent, &Permissions::hub_agent())]
    }

    fn link_users(&self) -> Vec<Value> {
        let agent = user(&self.agent_in_links, &Permissions::hub_agent_in_links());
        let leaves = self
            .leaves
            .iter()
            .map(|(leaf, key)| leaf_node(user(key, &Permissions::leaf_at_hub(leaf))));
        [agent].into_iter().chain(leaves).collect()
    }

    fn caller_users(&self) -> Vec<Value> {
        let people = self.people.iter();
        people
            .map(|(caller, key)| user(key, &Permissions::person(caller)))
            .collect()
    }
}

impl Permissions {
    /// Returns the hub agent's permissions in the account of the copies: keep them, write the state, hear the leaves, read from
    /// them.
    #[must_use]
    pub fn hub_agent() -> Self {
        Self {
            publish: vec!["$JS.API.>".to_owned(), subject::copies(), subject::link_reads()],
            subscribe: vec![
                subject::state_changes(),
                subject::fleet_facts(),
                below_inbox(hub_caller().as_str()),
            ],
            ..Self::default()
        }
    }

    /// Returns the hub agent's permissions in the account of the leaves' connections: answer their requests.
    #[must_use]
    pub fn hub_agent_in_links() -> Self {
        Self {
            publish: vec![format!("{}.>", subject::INBOX)],
            subscribe: vec![subject::hub_requests()],
            ..Self::default()
        }
    }

    /// Returns the block `permissions` of a user in nats-server's configuration.
    fn to_config(&self) -> Value {
        let claims = self.to_claims();
        json!({ "publish": claims["pub"], "subscribe": claims["sub"] })
    }
}

/// Returns the command that makes a user. Without a public key `nsc` makes one.
fn nsc_user(account: &str, name: &str, key: &str, permissions: &Permissions) -> String {
    let key = if key.is_empty() {
        String::new()
    } else {
        format!(" --public-key {key}")
    };
    format!(
        "nsc add user --account {account} --name {name}{key} --allow-pub '{}' --allow-sub '{}'\n",
        permissions.publish.join(","),
        permissions.subscribe.join(",")
    )
}

fn user(key: &str, permissions: &Permissions) -> Value {
    json!({ "nkey": key, "permissions": permissions.to_config() })
}

/// Returns a user that only a server may connect as.
fn leaf_node(mut user: Value) -> Value {
    user["allowed_connection_types"] = json!(["LEAFNODE", "LEAFNODE_WS"]);
    user
}

fn stream(subject: impl Into<String>) -> Value {
    json!({ "stream": subject.into() })
}

fn service(subject: impl Into<String>, answers: Answers) -> Value {
    json!({ "service": subject.into(), "response_type": answers.response_type().to_lowercase() })
}

fn import_stream(account: &str, subject: impl Into<String>) -> Value {
    json!({ "stream": { "account": account, "subject": subject.into() } })
}

fn import_service(account: &str, subject: impl Into<String>) -> Value {
    json!({ "service": { "account": account, "subject": subject.into() } })
}

/// The subjects on which people send requests to leaves.
fn asked_of_leaves() -> [(String, Answers); 4] {
    [
        (subject::commands(), Answers::One),
        (subject::asks(), Answers::Several),
        (subject::container_healths(), Answers::One),
        (DISCOVERY.to_owned(), Answers::Several),
    ]
}

fn fleet_exports() -> Vec<Value> {
    let read = READ_SERVICES.into_iter();
    read.map(|(subject, answers)| service(subject, answers))
        .chain([stream(subject::events())])
        .collect()
}

fn fleet_imports() -> Vec<Value> {
    let heard = [subject::ups(), subject::state_changes()];
    let heard = heard.into_iter().map(|subject| import_stream("LINKS", subject));
    heard
        .chain([import_service("LINKS", subject::link_reads())])
        .collect()
}

fn link_exports() -> Vec<Value> {
    let heard = [
        subject::ups(),
        subject::beats(),
        subject::state_changes(),
        subject::jobs(),
        subject::containers(),
    ];
    let asked = asked_of_leaves()
        .into_iter()
        .chain([(subject::link_reads(), Answers::Several)]);
    heard
        .into_iter()
        .map(stream)
        .chain(asked.map(|(subject, answers)| service(subject, answers)))
        .collect()
}

fn caller_imports() -> Vec<Value> {
    let heard = [subject::beats(), subject::jobs(), subject::containers()];
    let mut state = import_stream("LINKS", subject::state_changes());
    state["to"] = format!("$KV.{}.$1.>", subject::STATE_BUCKET).into();
    let heard = heard.into_iter().map(|subject| import_stream("LINKS", subject));
    let asked = asked_of_leaves().map(|(subject, _)| import_service("LINKS", subject));
    let read = READ_SERVICES.map(|(subject, _)| import_service("FLEET", subject));
    // The copies publish what they store.
    let events = import_stream("FLEET", subject::events());
    heard.chain([state, events]).chain(asked).chain(read).collect()
}

/// Returns the exports of an account of the hub as claims.
pub(super) fn export_claims(account: &str) -> Vec<Value> {
    let exports = match account {
        "FLEET" => fleet_exports(),
        "LINKS" => link_exports(),
        _ => Vec::new(),
    };
    let claim = |export: Value| match (export["service"].as_str(), export["stream"].as_str()) {
        (Some(subject), _) => {
            let answers = match export["response_type"].as_str() {
                Some("stream") => Answers::Several,
                _ => Answers::One,
            };
            json!({ "name": subject, "subject": subject, "type": "service", "response_type": answers.response_type() })
        }
        (None, stream) => json!({ "name": stream, "subject": stream, "type": "stream" }),
    };
    exports.into_iter().map(claim).collect()
}

/// Returns the imports of an account of the hub as claims. `key_of` returns the public key of an account.
pub(super) fn import_claims(account: &str, key_of: impl Fn(&str) -> String) -> Vec<Value> {
    let imports = match account {
        "FLEET" => fleet_imports(),
        "CALLERS" => caller_imports(),
        _ => Vec::new(),
    };
    let claim = |import: Value| {
        let (kind, part) = if import["service"].is_object() {
            ("service", &import["service"])
        } else {
            ("stream", &import["stream"])
        };
        let subject = &part["subject"];
        let local = import.get("to").unwrap_or(subject);
        let mut claim = json!({
            "name": local,
            "subject": subject,
            "account": key_of(part["account"].as_str().unwrap_or_default()),
            "type": kind,
        });
        if local != subject {
            claim["local_subject"] = local.clone();
        }
        claim
    };
    imports.into_iter().map(claim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> HubUsers {
        HubUsers {
            agent: "UAGENT".to_owned(),
            agent_in_links: String::new(),
            leaves: vec![(LeafName::new("edge-1").expect("a leaf"), "ULEAF".to_owned())],
            people: vec![(Caller::new("ann").expect("a caller"), "UANN".to_owned())],
        }
    }

    #[test]
    fn both_forms_of_the_accounts_have_the_same_exports_imports_and_users() {
        let (config, script) = (users().accounts(), users().nsc());
        let lines = |text: &str, starts: &str| text.lines().filter(|line| line.starts_with(starts)).count();
        let entries = |part: &str| {
            config
                .lines()
                .filter(|line| line.trim_start().starts_with(part))
                .count()
        };
        assert_eq!(
            lines(&script, "nsc add user"),
            entries("{\"allowed_connection_types") + entries("{\"nkey")
        );
        let (exports, imports) = (
            fleet_exports().len() + link_exports().len(),
            fleet_imports().len() + caller_imports().len(),
        );
        assert_eq!(lines(&script, "nsc add export"), exports);
        assert_eq!(lines(&script, "nsc add import"), imports);
        // No variable is expanded but the two accounts, and a person's subjects are quoted.
        for line in script
            .lines()
            .filter(|line| line.contains('$') && !line.contains("$(nsc"))
        {
            let open = line.split('\'').step_by(2).collect::<String>();
            let expanded = open.replace("\"$LINKS\"", "").replace("\"$FLEET\"", "");
            assert!(!expanded.contains('$'), "{line}");
        }
        assert!(
            script.contains("--local-subject '$KV.leaf_state.$1.>'"),
            "{script}"
        );
        assert!(script.contains("nsc edit user --account LINKS --name edge-1 --conn-type LEAFNODE"));
    }
}
