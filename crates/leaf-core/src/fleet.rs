//! What a leaf and the hub agent say to each other, and what the agent says about its copies. `docs/fleet.md` is the
//! contract. [`claims`] and [`copy`] are the agent's decisions.

pub mod claims;
pub mod copy;
pub mod fact;
pub mod referee;
pub mod witness;
pub mod work;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::beat::Beat;
use crate::event::{EventRecord, Headers};
use crate::id::{InstanceId, LeafName};
use crate::printable::printable_line;

/// The period in which a leaf renews its claim at the hub, in seconds.
pub const CLAIM_SECONDS: u64 = 10;

/// The time after which the agent takes a leaf for away unless it renews its claim, in seconds.
pub const AWAY_SECONDS: u64 = 30;

/// The time after which another agent becomes active, unless the active one renews its document, in seconds.
pub const AGENT_SECONDS: u64 = 10;

/// The time without progress after which a copy that lacks events is stalled, in seconds.
pub const STALLED_SECONDS: u64 = 10;

/// A leaf's claim on its name at the hub: a request to the agent on `leaf.v1.hub.<leaf>.claim`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    /// The leaf's current beat.
    pub beat: Beat,
    /// An earlier instance that is known to be dead: its claim may be taken over before it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<InstanceId>,
    /// The last sequence number of the leaf's own stream.
    pub stream_last: u64,
}

/// The agent's reply to a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum ClaimReply {
    /// The instance holds the name.
    Granted {
        /// Where the hub's copy of the leaf's events begins and ends; absent if the hub has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        copy: Option<CopyEnd>,
        /// Whether the agent answers for works ([`work`]).
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        works: bool,
    },
    /// Another instance holds the name.
    Held {
        /// Its last beat.
        by: Box<Beat>,
    },
}

/// A leaf that is stopped gives its claim back: a request to the agent on `leaf.v1.hub.<leaf>.release`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Release {
    /// The instance that is stopped. The claim of another one stays.
    pub instance: InstanceId,
    /// The last sequence number of the leaf's own stream.
    pub stream_last: u64,
}

/// The agent's reply to a leaf that gives its claim back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Released {
    /// Whether the instance held the name.
    pub released: bool,
}

/// A leaf's question from where on it may send the events that the copy lacks: a request to the agent on
/// `leaf.v1.hub.<leaf>.fill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fill {
    /// The instance that asks. Only the holder of the name gets an answer that it may.
    pub instance: InstanceId,
}

/// The agent's reply to a leaf that would fill its copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum FillReply {
    /// The copy takes what the leaf sends.
    Send {
        /// The sequence number of the copy's last event.
        after: u64,
    },
    /// The copy takes nothing from this leaf at the moment.
    Wait {
        /// The reason.
        why: String,
    },
    /// An answer of a newer agent.
    #[serde(other)]
    Unknown,
}

/// Where a copy of a leaf's events begins and ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CopyEnd {
    /// The sequence number of its first event.
    pub first: u64,
    /// The sequence number of its last event.
    pub last: u64,
    /// The [`fingerprint`] of its last event.
    pub fingerprint: String,
}

/// A request for events of the hub's copy: `leaf.v1.hub.<leaf>.copy.read`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadCopy {
    /// The sequence number of the first event to return.
    pub from: u64,
}

/// A page of the hub's copy: events in order, at least one unless there is none from there on, and no more than fit into a
/// message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CopyPage {
    /// The events.
    pub events: Vec<CopiedEvent>,
    /// The sequence number of the copy's last event.
    pub last: u64,
}

/// The agent's reply to a request for the copy's events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum CopyReply {
    /// Events.
    Page(CopyPage),
    /// The reason why there are none, though the copy has some.
    Unreadable(Unreadable),
}

/// The reason why events of a copy can't be returned. An earlier leafd takes it for an answer that can't be read, and waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unreadable {
    /// The sequence number of the event that can't be returned; absent if it is not one event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// The reason.
    pub unreadable: String,
}

/// An event of a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CopiedEvent {
    /// The leaf's sequence number.
    pub sequence: u64,
    /// The NATS subject.
    pub subject: String,
    /// Names and values of its `ce-*` headers, sorted.
    #[schemars(with = "Vec<(String, String)>")]
    pub headers: Headers,
    /// Its JSON body.
    pub body: String,
}

/// Why an event can't be sent in a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the body of event {sequence} is not UTF-8")]
pub struct NotText {
    /// Its sequence number.
    pub sequence: u64,
}

impl TryFrom<EventRecord> for CopiedEvent {
    type Error = NotText;

    fn try_from(record: EventRecord) -> Result<Self, NotText> {
        let sequence = record.sequence;
        Ok(Self {
            sequence,
            subject: record.subject,
            headers: record.headers,
            body: String::from_utf8(record.body).map_err(|_| NotText { sequence })?,
        })
    }
}

impl From<CopiedEvent> for EventRecord {
    fn from(event: CopiedEvent) -> Self {
        Self {
            sequence: event.sequence,
            subject: event.subject,
            headers: event.headers,
            body: event.body.into_bytes(),
        }
    }
}

/// Returns the fingerprint of an event: the SHA-256 in hex of subject, headers and body, each preceded by its length in
/// bytes as eight bytes in big-endian order. Two events with one fingerprint are the same.
#[must_use]
pub fn fingerprint(record: &EventRecord) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(record.subject.as_bytes());
    for (name, value) in record.headers.iter() {
        part(name.as_bytes());
        part(value.as_bytes());
    }
    part(&record.body);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the agent knows of its copy of a leaf: an entry of the bucket `fleet`, under the leaf's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CopyStatus {
    /// The leaf's name.
    pub leaf: LeafName,
    /// The state of the copy.
    pub state: CopyState,
    /// Since when it is in this state, by the hub's clock.
    pub since: Timestamp,
    /// The sequence number of the copy's last event.
    pub copied: u64,
    /// The last sequence number of the leaf's stream, as far as the agent knows.
    pub leaf_last: u64,
    /// The reason for the state, where there is one to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The hub agent that writes the hub's streams: an entry of the bucket `fleet`, under `agent.active`. Others wait until it is
/// released, or not renewed for 10 seconds by their own clocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ActiveAgent {
    /// The agent's run.
    pub instance: InstanceId,
    /// The host that it runs on.
    pub hostname: String,
    /// Its version.
    pub version: String,
    /// Since when it is active.
    pub since: Timestamp,
    /// When it wrote this, by its own clock.
    pub renewed: Timestamp,
    /// Its process, so that an agent on the same host knows when it has ended; absent where that can't be known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// Whether it was stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
}

impl ActiveAgent {
    /// Returns which one it is, on one printable line.
    #[must_use]
    pub fn who(&self) -> String {
        format!(
            "instance {} on {}, version {}",
            self.instance,
            printable_line(&self.hostname),
            printable_line(&self.version)
        )
    }

    /// Returns why no agent is active at this time; `None` if this one is.
    #[must_use]
    pub fn absence(&self, now: Timestamp) -> Option<String> {
        let age = now.duration_since(self.renewed).as_secs();
        if self.released {
            Some(format!(
                "no agent is active: the last one was stopped at {} ({})",
                self.renewed,
                self.who()
            ))
        } else if age > i64::try_from(AGENT_SECONDS).unwrap_or(i64::MAX) {
            Some(format!(
                "no agent is active: the last one said so {age} s ago ({}); look at its log",
                self.who()
            ))
        } else {
            None
        }
    }
}

/// The state of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CopyState {
    /// It ends with the leaf's last event.
    Current,
    /// It is being filled.
    Behind,
    /// The leaf has not renewed its claim.
    Away,
    /// Events are missing, and none arrives.
    Stalled,
    /// The leaf dropped events that were never copied.
    Gap,
    /// Leaf and copy have different events under one number.
    Differs,
    /// A state of a newer agent.
    #[serde(other)]
    Unknown,
}

impl std::fmt::Display for CopyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Current => "current",
            Self::Behind => "behind",
            Self::Away => "away",
            Self::Stalled => "stalled",
            Self::Gap => "gap",
            Self::Differs => "differs",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(body: &str) -> EventRecord {
        EventRecord {
            sequence: 7,
            subject: "leaf.v1.evt.edge-1.leaf.edge-1.started".to_owned(),
            headers: [("ce-id", "edge-1/1/7"), ("ce-sequence", "00000000000000000007")]
                .into_iter()
                .collect(),
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn an_event_comes_back_from_a_page_with_its_fingerprint() {
        let event = record("{}");
        let sent = CopiedEvent::try_from(event.clone()).expect("text");
        let json = serde_json::to_string(&sent).expect("JSON");
        let back: EventRecord = serde_json::from_str::<CopiedEvent>(&json)
            .expect("an event")
            .into();
        assert_eq!(back, event);
        assert_eq!(fingerprint(&back), fingerprint(&event));
        assert_ne!(fingerprint(&record("{ }")), fingerprint(&event));
    }

    #[test]
    fn a_reply_without_events_is_no_page() {
        let refused = CopyReply::Unreadable(Unreadable {
            sequence: Some(7),
            unreadable: "event 7 is too large".to_owned(),
        });
        let json = serde_json::to_string(&refused).expect("JSON");
        assert_eq!(json, r#"{"sequence":7,"unreadable":"event 7 is too large"}"#);
        assert_eq!(
            serde_json::from_str::<CopyReply>(&json).expect("a reply"),
            refused
        );
        // An earlier leafd would take an empty page for the copy's end.
        assert!(serde_json::from_str::<CopyPage>(&json).is_err());
        let page = CopyReply::Page(CopyPage {
            events: Vec::new(),
            last: 7,
        });
        let json = serde_json::to_string(&page).expect("JSON");
        assert_eq!(serde_json::from_str::<CopyReply>(&json).expect("a reply"), page);
    }

    #[test]
    fn a_state_of_a_newer_agent_is_readable() {
        let state: CopyState = serde_json::from_str("\"frozen\"").expect("any text");
        assert_eq!(state, CopyState::Unknown);
    }
}
