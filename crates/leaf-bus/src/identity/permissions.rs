//! Who may publish and subscribe what. NATS enforces it; these lists are the leaf's whole access policy.
//!
//! What permissions can't hold is where the *server* itself publishes: an answer of JetStream goes to any reply
//! subject, and a push consumer delivers wherever the body of the request that makes it says. Whoever may ask JetStream
//! in the account of the streams can so have the server write into them. Hence two accounts
//! (`docs/decisions/0006-the-streams-have-their-own-nats-account.md`):
//!
//! - `LEAF` has the streams, and one user: the daemon ([`Permissions::keeper`]).
//! - `CALLERS` has people, containers, and the daemon once more ([`Permissions::service`]), which answers them there.
//!   It imports what people read: some questions to JetStream ([`READ_SERVICES`]), whose answers come back to this
//!   account and can end nowhere else, and what is published of events, leases and states. Nobody there can make a
//!   consumer: its deliveries would be in the other account.
//!
//! Nor does the server check a message's reply subject. From that follows
//! - whoever answers requests must refuse a reply subject outside the caller's inbox ([`subject::is_own_inbox`]);
//! - a container, which may answer what it is asked, may not publish to what it listens to: it would ask itself,
//!   with any subject as the reply, and be allowed to write there.
//!
//! In `CALLERS` a person can still have the server's answer to a question appear under any subject, so what is met
//! there outside of an inbox is a hint and no fact: a command without a reply subject in its caller's inbox is not
//! carried out, and readers read events from the stream.

use std::time::Duration;

use leaf_core::id::{Caller, LeafName};
use leaf_core::subject;
use serde_json::{Map, Value, json};

/// What a user of NATS may do. An empty list allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects it may publish to.
    pub publish: Vec<String>,
    /// Subjects it may not publish to, whatever `publish` says.
    pub publish_denied: Vec<String>,
    /// Subjects it may subscribe to.
    pub subscribe: Vec<String>,
    /// How many messages it may answer to each request that it gets, and for how long.
    pub responses: Option<(u32, Duration)>,
}

/// How long a container may take to answer a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How many answers a question to JetStream has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    /// One.
    One,
    /// Several, as a batch of messages.
    Several,
}

/// What reading streams and buckets takes of the JetStream API; nothing of it changes anything.
pub(super) const READ_SERVICES: [(&str, Answers); 6] = [
    (JETSTREAM_INFO, Answers::One),
    ("$JS.API.STREAM.INFO.*", Answers::One),
    ("$JS.API.STREAM.NAMES", Answers::One),
    ("$JS.API.STREAM.LIST", Answers::One),
    ("$JS.API.STREAM.MSG.GET.*", Answers::One),
    ("$JS.API.DIRECT.GET.>", Answers::Several),
];

/// What JetStream says of the account; with it a client also finds out whether the server has seen all that it sent.
const JETSTREAM_INFO: &str = "$JS.API.INFO";

/// What is published in the account of the streams, and heard by callers as well.
pub(super) fn heard_by_callers() -> [String; 3] {
    [subject::events(), subject::beats(), subject::state_keys()]
}

/// The discovery of services (NATS ADR-32).
const DISCOVERY: &str = "$SRV.>";

impl Permissions {
    /// Returns what the daemon of a leaf may do where the streams are: write what is that leaf's own, and keep them.
    #[must_use]
    pub fn keeper(leaf: &LeafName) -> Self {
        Self {
            publish: vec![
                subject::events_of(leaf),
                subject::beat(leaf),
                subject::state_keys_of(leaf),
                "$JS.API.>".to_owned(),
            ],
            subscribe: vec![below_inbox(super::daemon_caller().as_str())],
            ..Self::default()
        }
    }

    /// Returns what the daemon of a leaf may do where its callers are: answer them, and say how its jobs are.
    #[must_use]
    pub fn service(leaf: &LeafName) -> Self {
        Self {
            publish: vec![
                subject::jobs_of(leaf),
                subject::containers_of(leaf),
                format!("{}.>", subject::INBOX),
                DISCOVERY.to_owned(),
                JETSTREAM_INFO.to_owned(),
            ],
            subscribe: vec![
                subject::commands_of(leaf),
                subject::asks(),
                subject::containers_of(leaf),
                DISCOVERY.to_owned(),
                below_inbox(super::daemon_caller().as_str()),
            ],
            ..Self::default()
        }
    }

    /// Returns what a person may do: command every leaf under the own name, ask, and read everything.
    #[must_use]
    pub fn person(caller: &Caller) -> Self {
        let mut publish = vec![
            subject::commands_by(caller),
            subject::asks(),
            subject::container_healths(),
            DISCOVERY.to_owned(),
            "$SYS.REQ.USER.INFO".to_owned(),
        ];
        publish.extend(READ_SERVICES.map(|(subject, _)| subject.to_owned()));
        let mut subscribe = vec![below_inbox(caller.as_str()), subject::jobs()];
        subscribe.extend(heard_by_callers());
        Self {
            publish,
            subscribe,
            ..Self::default()
        }
    }

    /// Returns the template for a leaf's containers: publish below the own prefix, answer requests for health, and
    /// nothing else. The server fills in the user's name and its tag `container`.
    pub(super) fn container_template(leaf: &LeafName) -> Self {
        let prefix = subject::container_prefix_of_token(leaf, "{{tag(container)}}");
        let health = format!("{prefix}.health");
        Self {
            publish: vec![format!("{prefix}.>")],
            publish_denied: vec![health.clone()],
            subscribe: vec![health, below_inbox("{{name()}}")],
            responses: Some((1, ANSWER_WITHIN)),
        }
    }

    /// Returns the claims: `pub`, `sub`, `resp`. To NATS a missing list allows everything, so an empty one is
    /// written as the denial of everything.
    pub(super) fn to_claims(&self) -> Map<String, Value> {
        let list = |allowed: &[String], denied: &[String]| {
            if allowed.is_empty() {
                json!({ "deny": [">"] })
            } else if denied.is_empty() {
                json!({ "allow": allowed })
            } else {
                json!({ "allow": allowed, "deny": denied })
            }
        };
        let mut claims = Map::new();
        claims.insert("pub".to_owned(), list(&self.publish, &self.publish_denied));
        claims.insert("sub".to_owned(), list(&self.subscribe, &[]));
        if let Some((max, within)) = self.responses {
            let nanos = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
            claims.insert("resp".to_owned(), json!({ "max": max, "ttl": nanos }));
        }
        for limit in ["subs", "data", "payload"] {
            claims.insert(limit.to_owned(), json!(-1));
        }
        claims
    }
}

fn below_inbox(caller: &str) -> String {
    format!("{}.>", subject::inbox_prefix_of_token(caller))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_allows_nothing() {
        let claims = Permissions::default().to_claims();
        assert_eq!(claims["pub"], json!({ "deny": [">"] }));
        assert_eq!(claims["sub"], json!({ "deny": [">"] }));
        assert!(!claims.contains_key("resp"));
    }

    #[test]
    fn a_person_may_neither_change_a_stream_nor_write_an_event() {
        let person = Permissions::person(&Caller::new("admin").expect("a caller"));
        for subject in &person.publish {
            for forbidden in [
                "DELETE.", "PURGE", "UPDATE", "CREATE", "SNAPSHOT", "RESTORE", "LEADER",
            ] {
                assert!(!subject.contains(&format!("STREAM.{forbidden}")), "{subject}");
            }
            // Its deliveries, and the answers to acknowledgements, would be the server's own.
            assert!(
                !subject.contains("CONSUMER") && !subject.starts_with("$JS.ACK"),
                "{subject}"
            );
            assert!(!subject.starts_with("leaf.v1.evt"), "{subject}");
            assert!(subject != "$JS.API.>" && subject != ">", "{subject}");
        }
        assert!(person.publish.contains(&"leaf.v1.cmd.*.admin.>".to_owned()));
    }
}
