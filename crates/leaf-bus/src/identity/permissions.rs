//! Who may publish and subscribe what. NATS enforces it; these lists are the leaf's whole access policy.
//!
//! Two things permissions can't hold. The first: the server does not check a message's *reply* subject. From that follows
//! - whoever answers requests must refuse a reply subject outside the caller's inbox ([`subject::is_own_inbox`]);
//! - a container, which may answer what it is asked, may not publish to what it listens to: it would ask itself,
//!   with any subject as the reply, and be allowed to write there;
//! - the JetStream API answers to any reply subject, so a person, who may read streams, can have the *server's* answer
//!   stored as if it were an event. Readers check what they read; and people are trusted with a leaf anyway.
//!
//! The second: where a push consumer delivers (`deliver_subject`) stands in the body of the request that makes it, and the
//! server itself delivers. So a person, who makes consumers to read, can have whatever a stream holds delivered to
//! `leaf.v1.evt.<leaf>.…`, where the leaf's stream takes it in and the leaf then finds its stream ahead of its journal: it
//! stops to publish and says so. The *subject* of such a request (`$JS.API.CONSUMER.CREATE.<stream>.<name>.<filter>`) is the
//! same for pull, push and ordered consumers, so no list here can allow the ones and not the others; durable ones by the
//! old subjects (`$JS.API.CONSUMER.DURABLE.CREATE.>`) are not allowed. A container may make no consumer at all.
//!
//! And a thing that is not done yet: the credentials of a container have no end. They name it (`ctr-<token>`, and its
//! token as the tag `container`), so what a copy of them can do is bounded by what
//! containers of that name may do, also for a later container of the same name; but a copy that got out works until the scoped
//! signing key is changed. To revoke one takes, with the `MEMORY` resolver: the public key of each user that was minted,
//! stored with the container; the account's JWT signed anew with `nats.revocations = {<public key>: <time>}` in the
//! server's configuration; a reload (SIGHUP) that is shown to drop the user's connections, not only to refuse new ones. An
//! `exp` in the JWT instead takes a way to give a *running* container new credentials, which there is not: they are bound
//! in when it starts.

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

/// What reading streams and buckets takes of the JetStream API; nothing of it changes or deletes a stream. (Consumers
/// are how one reads, so making and deleting them is part of it.)
const READ_JETSTREAM: [&str; 13] = [
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.LIST",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.DIRECT.GET.>",
    "$JS.API.CONSUMER.CREATE.>",
    "$JS.API.CONSUMER.INFO.>",
    "$JS.API.CONSUMER.NAMES.*",
    "$JS.API.CONSUMER.LIST.*",
    "$JS.API.CONSUMER.MSG.NEXT.>",
    "$JS.API.CONSUMER.DELETE.>",
    "$SYS.REQ.USER.INFO",
];

/// Acknowledgements and flow control of consumers, and the discovery of services.
const EVERYBODY: [&str; 3] = ["$JS.ACK.>", "$JS.FC.>", "$SRV.>"];

impl Permissions {
    /// Returns what the daemon of a leaf may do: write what is that leaf's own and answer callers.
    #[must_use]
    pub fn daemon(leaf: &LeafName) -> Self {
        let mut publish = vec![
            subject::events_of(leaf),
            subject::jobs_of(leaf),
            subject::beat(leaf),
            subject::state_keys_of(leaf),
            subject::containers_of(leaf),
            "$JS.API.>".to_owned(),
            "_INBOX.>".to_owned(),
        ];
        publish.extend(EVERYBODY.map(str::to_owned));
        Self {
            publish,
            subscribe: vec![
                subject::commands_of(leaf),
                subject::asks(),
                subject::containers_of(leaf),
                "$SRV.>".to_owned(),
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
        ];
        publish.extend(READ_JETSTREAM.map(str::to_owned));
        publish.extend(EVERYBODY.map(str::to_owned));
        Self {
            publish,
            subscribe: vec![
                below_inbox(caller.as_str()),
                subject::events(),
                subject::jobs(),
                subject::beats(),
                subject::state_keys(),
            ],
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
            assert!(!subject.starts_with("leaf.v1.evt"), "{subject}");
            assert!(subject != "$JS.API.>" && subject != ">", "{subject}");
        }
        assert!(person.publish.contains(&"leaf.v1.cmd.*.admin.>".to_owned()));
    }
}
