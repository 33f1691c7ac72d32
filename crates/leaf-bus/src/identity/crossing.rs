//! The subjects that cross the connection between a leaf's server and its hub: the one list from which the accounts of both sides and
//! the rights of the hub's users are made. `docs/fleet.md` is the contract.
//!
//! On both sides an account holds nothing but the connection (`LINK` on the leaf, `LINKS` at the hub). What it imports and
//! exports crosses, and nothing else, whatever the other side sends. A server's denials of subjects (`deny_imports`) could
//! only list what is known to do harm.

use leaf_core::id::{InstanceId, LeafName};
use leaf_core::subject::{self, LinkRead};
use serde_json::{Value, json};

use super::permissions::{Answers, DISCOVERY, Permissions};

/// Where a subject is at home on the leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// The account of the streams, `LEAF`.
    Streams,
    /// The account of the callers, `CALLERS`.
    Callers,
    /// The account of the connection itself, `LINK`.
    Link,
}

/// The direction in which messages on a subject cross, and how they are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Messages from the leaf to the hub.
    Up,
    /// Requests from the hub to the leaf, with one reply.
    Down,
    /// Requests from the hub to the leaf, with any number of replies.
    DownMany,
    /// Requests from the leaf to the hub agent.
    UpRequest,
    /// The hub agent's replies to those.
    DownReply,
    /// Replies to the hub's requests.
    UpReply,
}

/// A subject that crosses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossing {
    /// Its way.
    pub way: Way,
    /// The subject as it crosses; the leaf's name is part of it. That of a read, or of an event for the copy, has a wildcard for
    /// the leaf's instance.
    pub subject: String,
    /// Where it is at home on the leaf.
    pub home: Home,
    /// The subject there, if it is another.
    pub local: Option<String>,
    /// The ability that the hub lacks without it.
    pub need: &'static str,
}

/// Returns everything that crosses between a leaf and its hub.
#[must_use]
pub fn crossings(leaf: &LeafName) -> Vec<Crossing> {
    let crossing = |way, home, subject: String, need| Crossing {
        way,
        subject,
        home,
        local: None,
        need,
    };
    let read = |what, verb: &str, stream: String, need| Crossing {
        way: if verb == "DIRECT.GET" {
            Way::DownMany
        } else {
            Way::Down
        },
        subject: subject::link_reads_of(leaf, what),
        home: Home::Streams,
        local: Some(format!("$JS.API.{verb}.{stream}")),
        need,
    };
    let (events, state) = (subject::event_stream(leaf), subject::state_stream());
    let (up, down, many) = (Way::Up, Way::Down, Way::DownMany);
    vec![
        Crossing {
            local: Some(subject::events_of(leaf)),
            ..crossing(
                up,
                Home::Streams,
                subject::ups_of(leaf),
                "have a copy of the events",
            )
        },
        crossing(up, Home::Streams, subject::beat(leaf), "hear beats"),
        crossing(
            up,
            Home::Streams,
            subject::state_changes_of(leaf),
            "hear changes of the state",
        ),
        crossing(up, Home::Callers, subject::jobs_of(leaf), "hear messages of jobs"),
        crossing(up, Home::Callers, subject::containers_of(leaf), "hear containers"),
        crossing(down, Home::Link, subject::commands_of(leaf), "command the leaf"),
        crossing(many, Home::Callers, subject::asks(), "ask all leaves"),
        crossing(
            down,
            Home::Callers,
            subject::container_healths_of(leaf),
            "ask a container for its health",
        ),
        crossing(many, Home::Callers, DISCOVERY.to_owned(), "discover services"),
        read(
            LinkRead::EventsInfo,
            "STREAM.INFO",
            events.clone(),
            "see where the events end",
        ),
        read(LinkRead::EventsGet, "DIRECT.GET", events, "read events"),
        read(
            LinkRead::StateInfo,
            "STREAM.INFO",
            state.clone(),
            "see where the state ends",
        ),
        read(LinkRead::StateGet, "DIRECT.GET", state, "read the state"),
        crossing(
            Way::UpRequest,
            Home::Link,
            subject::hub_requests_of(leaf),
            "get claims",
        ),
        crossing(
            Way::DownReply,
            Home::Link,
            format!("{}.>", subject::leaf_inbox_prefix(leaf)),
            "answer claims",
        ),
        crossing(
            Way::UpReply,
            Home::Link,
            format!("{}.>", subject::MAPPED_REPLY),
            "get replies",
        ),
    ]
}

impl Crossing {
    /// Whether the leaf sends on this subject: its user at the hub may publish there. To the others it may subscribe.
    #[must_use]
    pub fn is_sent_by_leaf(&self) -> bool {
        matches!(self.way, Way::Up | Way::UpRequest | Way::UpReply)
    }

    /// Whether it is a request, which accounts import as a service.
    fn is_service(&self) -> bool {
        matches!(self.way, Way::Down | Way::DownMany)
    }

    /// Returns the import of the leaf's account `LINK`, from the account with this public key. What is read or copied is imported
    /// for this instance alone, and not at all without one.
    fn import(&self, account: &str, instance: Option<InstanceId>) -> Option<Value> {
        let local = match (&self.local, instance) {
            (None, _) => None,
            (Some(_), Some(instance)) => Some(self.subject.replacen('*', &instance.to_string(), 1)),
            (Some(_), None) => return None,
        };
        let there = self.local.as_ref().unwrap_or(&self.subject);
        let mut import = json!({
            "name": self.subject,
            "subject": there,
            "account": account,
            "type": if self.is_service() { "service" } else { "stream" },
        });
        if let Some(local) = local {
            import["local_subject"] = local.into();
        }
        Some(import)
    }

    /// Returns the export of the account where it is at home under the same subject.
    fn export(&self) -> Value {
        let subject = &self.subject;
        if !self.is_service() {
            return json!({ "name": subject, "subject": subject, "type": "stream" });
        }
        let answers = match self.way {
            Way::DownMany => Answers::Several,
            _ => Answers::One,
        };
        json!({ "name": subject, "subject": subject, "type": "service", "response_type": answers.response_type() })
    }
}

impl Permissions {
    /// Returns the permissions of a leaf's user at its hub: what [crosses](crossings), and nothing else.
    #[must_use]
    pub fn leaf_at_hub(leaf: &LeafName) -> Self {
        let (up, down): (Vec<_>, Vec<_>) = crossings(leaf).into_iter().partition(Crossing::is_sent_by_leaf);
        let subjects = |list: Vec<Crossing>| list.into_iter().map(|crossing| crossing.subject).collect();
        Self {
            publish: subjects(up),
            subscribe: subjects(down),
            ..Self::default()
        }
    }
}

/// Returns the claims of the account `LINK`: no JetStream, and an import for each subject that crosses.
pub(super) fn link_account_claims(
    leaf: &LeafName,
    instance: Option<InstanceId>,
    streams: &str,
    callers: &str,
    limits: &Value,
) -> Value {
    let imports = crossings(leaf)
        .into_iter()
        .filter_map(|crossing| match crossing.home {
            Home::Streams => crossing.import(streams, instance),
            Home::Callers => crossing.import(callers, instance),
            Home::Link => None,
        });
    json!({ "type": "account", "version": 2, "limits": limits, "imports": imports.collect::<Vec<_>>() })
}

/// Returns what the callers' account exports to `LINK`. The streams' account exports more, to callers.
pub(super) fn callers_exports(leaf: &LeafName) -> Vec<Value> {
    let of_callers = |crossing: &Crossing| crossing.home == Home::Callers;
    let here = crossings(leaf).into_iter().filter(of_callers);
    here.map(|crossing| crossing.export()).collect()
}
