//! The permissions of NATS users. The NATS server enforces them; they are the leaf's complete access policy.
//!
//! Permissions don't restrict what the *server* publishes: a JetStream reply goes to any reply subject, and a push
//! consumer delivers to the subject in the body of the request that creates it. A user who may send JetStream requests
//! in the streams' account can thus make the server write into the streams. Hence two accounts
//! (`docs/decisions/0006-the-streams-have-their-own-nats-account.md`):
//!
//! - `LEAF` has the streams, and one user: the daemon ([`Permissions::keeper`]).
//! - `CALLERS` has people, containers, and the daemon's second user ([`Permissions::service`]), which answers them. It
//!   imports what people read: some JetStream requests ([`READ_SERVICES`]), whose replies stay in this account, and
//!   what is published of events, leases and states. No user there can create a consumer: its deliveries would be in
//!   the other account.
//!
//! The server does not check a message's reply subject either. Therefore
//! - a responder must refuse a reply subject outside the caller's inbox ([`subject::is_own_inbox`]);
//! - a container, which may reply to requests, may not publish to its own subscriptions: it could send itself a request
//!   with any reply subject, and would be allowed to publish there.
//!
//! In `CALLERS` a person can still make a reply of the server appear on any subject, so a message outside of an inbox
//! is a hint and not a fact: a command without a reply subject in its caller's inbox is not carried out, and readers
//! read events from the stream.

use std::time::Duration;

use leaf_core::id::{Caller, LeafName};
use leaf_core::subject;
use serde_json::{Map, Value, json};

/// The permissions of a NATS user. An empty list allows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Permissions {
    /// The subjects that it may publish to.
    pub publish: Vec<String>,
    /// The subjects that it may not publish to, whatever `publish` allows.
    pub publish_denied: Vec<String>,
    /// The subjects that it may subscribe to.
    pub subscribe: Vec<String>,
    /// How many replies it may publish to each request, and for how long.
    pub responses: Option<(u32, Duration)>,
}

/// How long a container may take to answer a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How many replies a JetStream request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answers {
    /// One reply.
    One,
    /// Several replies, as a batch.
    Several,
}

impl Answers {
    /// Returns the name of an exported service's `response_type`.
    pub(super) fn response_type(self) -> &'static str {
        match self {
            Self::One => "Singleton",
            Self::Several => "Stream",
        }
    }
}

/// The read-only requests of the JetStream API that reading streams and buckets needs.
pub(super) const READ_SERVICES: [(&str, Answers); 6] = [
    (JETSTREAM_INFO, Answers::One),
    ("$JS.API.STREAM.INFO.*", Answers::One),
    ("$JS.API.STREAM.NAMES", Answers::One),
    ("$JS.API.STREAM.LIST", Answers::One),
    ("$JS.API.STREAM.MSG.GET.*", Answers::One),
    ("$JS.API.DIRECT.GET.>", Answers::Several),
];

/// The request for JetStream's information on the account. A client also uses it to wait until the server has processed
/// its messages.
const JETSTREAM_INFO: &str = "$JS.API.INFO";

/// The subjects in the streams' account that callers may subscribe to as well.
pub(super) fn heard_by_callers() -> [String; 3] {
    [subject::events(), subject::beats(), subject::state_keys()]
}

/// The subjects of service discovery (NATS ADR-32).
pub(super) const DISCOVERY: &str = "$SRV.>";

impl Permissions {
    /// Returns the daemon's permissions in the streams' account: manage the streams, and publish to the leaf's own
    /// subjects.
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

    /// Returns the daemon's permissions in the callers' account: answer callers, and publish messages of jobs.
    #[must_use]
    pub fn service(leaf: &LeafName) -> Self {
        Self {
            publish: vec![
                subject::jobs_of(leaf),
                subject::containers_of(leaf),
                format!("{}.>", subject::INBOX),
                // The server makes these for requests that a hub sends.
                format!("{}.>", subject::MAPPED_REPLY),
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

    /// Returns the daemon's permissions in the account of the connection to a hub: ask the hub agent, and answer the hub's commands.
    #[must_use]
    pub fn claimant(leaf: &LeafName) -> Self {
        Self {
            publish: vec![
                subject::hub_requests_of(leaf),
                subject::ups_of(leaf),
                // The hub's server makes these for the commands that it sends.
                format!("{}.>", subject::MAPPED_REPLY),
            ],
            subscribe: vec![
                subject::commands_of(leaf),
                format!("{}.>", subject::leaf_inbox_prefix(leaf)),
            ],
            ..Self::default()
        }
    }

    /// Returns a person's permissions: command every leaf under the person's own name, ask, and read everything.
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

    /// Returns the template for a leaf's containers: publish below the container's own prefix, and answer health
    /// requests. The server inserts the user's name and its tag `container`.
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

    /// Returns the claims `pub`, `sub` and `resp`. NATS takes a missing list as permission for everything, so an empty
    /// list is written as a denial of everything.
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

pub(super) fn below_inbox(caller: &str) -> String {
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
