//! Domain events, as CloudEvents 1.0 (NATS binding, binary mode).
//!
//! A [`Fact`] says what happened, in the past tense. An [`Event`] is a fact with its place in the leaf's history. An
//! [`EventRecord`] is an event as bytes: the journal keeps them, and the stream gets the same bytes.
//!
//! The facts are declared in one module per noun; a new noun is one more line in the list of [`nouns!`]. [`types`]
//! lists all types.

pub mod container;
mod declare;
pub mod hardware;
pub mod header;
pub mod job;
pub mod leaf;
mod record;
pub mod secret;
mod shorten;

pub use container::*;
pub use hardware::*;
pub use job::*;
pub use leaf::*;
pub use record::{EventRecord, Headers};
pub use secret::*;
pub(crate) use shorten::{shorten, shorten_result};

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

use crate::aggregate::Aggregate;
use crate::compatibility::{must_be_understood, unknown_part};
use crate::id::{CommandId, LeafName};
use crate::json::to_json;
use crate::shape::Shape;
use crate::subject;

/// An event: a fact and its place in the leaf's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The leaf's own sequence number, contiguous from 1; equal to the stream's.
    pub sequence: u64,
    /// When it was recorded, by the leaf's clock.
    pub time: Timestamp,
    /// The command that caused it, if one did.
    pub causation: Option<CommandId>,
    /// The sender's correlation id, passed on from command to event.
    pub correlation: Option<String>,
    /// The fact.
    pub fact: Fact,
}

/// An error in reading an event.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
    /// A required header is missing or malformed.
    #[error("the event on {subject} has no valid header {header}")]
    Header {
        /// The message's subject.
        subject: String,
        /// The header's name.
        header: &'static str,
    },
    /// The body is not JSON.
    #[error("can't parse the event {kind} with sequence {sequence}")]
    Body {
        /// Its `ce-type`.
        kind: String,
        /// Its sequence number.
        sequence: u64,
        /// The parser's error.
        source: serde_json::Error,
    },
}

/// A type of event.
#[derive(Debug, Clone, Copy)]
pub struct EventType {
    /// The `ce-type`, which ends in the schema's major version: `cim.leaf.container.started.v1`.
    pub name: &'static str,
    /// The aggregate that it is about: `container`.
    pub aggregate: &'static str,
    /// The fact: `started`.
    pub fact: &'static str,
    /// The form of its body.
    pub shape: Shape,
}

/// A fact that this version can't read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownFact {
    /// Its `ce-type`.
    pub kind: String,
    /// The subject that its event was sent on.
    pub subject: String,
    /// The body of its event.
    pub body: Value,
}

impl UnknownFact {
    /// Returns the aggregate's token in the subject.
    fn aggregate_id(&self) -> &str {
        subject::parts_of_event(&self.subject).map_or("", |(_, id, _)| id)
    }

    /// Returns the key of the state's entry that it is about, such as `container.web`.
    #[must_use]
    pub fn about(&self) -> String {
        match subject::parts_of_event(&self.subject) {
            Some(("leaf", ..)) => Aggregate::Leaf.key(),
            Some((aggregate, id, _)) => format!("{aggregate}.{id}"),
            None => self.subject.clone(),
        }
    }
}

macro_rules! nouns {
    ($($(#[$doc:meta])* $variant:ident = $module:ident :: $facts:ident,)*) => {
        /// A fact, by noun.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Fact {
            $($(#[$doc])* $variant($module::$facts),)*
            /// A fact of a newer version: it keeps its place in the history, and the state keeps it for a leafd that
            /// can read it.
            Unknown(UnknownFact),
        }

        $(impl From<$module::$facts> for Fact {
            fn from(fact: $module::$facts) -> Self {
                Self::$variant(fact)
            }
        })*

        /// Returns all types of events, in the order of the nouns.
        pub fn types() -> impl Iterator<Item = &'static EventType> {
            [$($module::TYPES,)*].into_iter().flatten()
        }

        impl Fact {
            /// Returns the `ce-type`, which ends in the schema's major version: `cim.leaf.container.started.v1`.
            #[must_use]
            pub fn kind(&self) -> &str {
                match self {
                    $(Self::$variant(fact) => fact.kind(),)*
                    Self::Unknown(fact) => &fact.kind,
                }
            }

            /// Returns the aggregate's token: the leaf, the device id, the name of the container or secret as a
            /// token, the job id.
            #[must_use]
            pub fn aggregate_id(&self, leaf: &LeafName) -> String {
                match self {
                    $(Self::$variant(fact) => fact.about().token(leaf),)*
                    Self::Unknown(fact) => fact.aggregate_id().to_owned(),
                }
            }

            /// Returns the subject of its events, about an aggregate with this [token](Self::aggregate_id).
            fn subject(&self, leaf: &LeafName, id: &str) -> String {
                let (aggregate, fact) = match self {
                    $(Self::$variant(fact) => fact.aggregate_and_fact(),)*
                    Self::Unknown(fact) => return fact.subject.clone(),
                };
                subject::event(leaf, aggregate, id, fact)
            }

            /// Returns the aggregate that it is about; `None` for a fact of a newer version.
            #[must_use]
            pub fn about(&self) -> Option<Aggregate<'_>> {
                match self {
                    $(Self::$variant(fact) => Some(fact.about()),)*
                    Self::Unknown(_) => None,
                }
            }

            fn to_body(&self) -> Vec<u8> {
                match self {
                    $(Self::$variant(fact) => fact.to_body(),)*
                    Self::Unknown(fact) => to_json(&fact.body),
                }
            }

            /// Parses a fact; `None` if its type, a value in it, or a field of its desired state is of a newer version.
            pub(crate) fn read(kind: &str, body: &Value) -> Option<Self> {
                $(if let Some(fact) = $module::$facts::from_body(kind, body) {
                    let fact = Self::$variant(fact.ok()?);
                    let known = fact.body();
                    let unknown = unknown_part(body, &known).unwrap_or_default();
                    let understood = !unknown.is_object() || must_be_understood(&unknown, &known).is_none();
                    return understood.then_some(fact);
                })*
                None
            }
        }
    };
}

nouns! {
    /// About the leaf itself.
    Leaf = leaf::LeafFact,
    /// About hardware.
    Hardware = hardware::HardwareFact,
    /// About containers.
    Container = container::ContainerFact,
    /// About jobs.
    Job = job::JobFact,
    /// About secrets.
    Secret = secret::SecretFact,
}

impl Fact {
    /// Returns the body of its events.
    pub(crate) fn body(&self) -> Value {
        match self {
            Self::Unknown(fact) => fact.body.clone(),
            known => serde_json::from_slice(&known.to_body()).expect("it was just serialized"),
        }
    }
}

impl Event {
    /// Returns the event as it is stored and sent. `epoch` is the epoch of the leaf's history.
    #[must_use]
    pub fn to_record(&self, leaf: &LeafName, epoch: u64) -> EventRecord {
        let id = self.fact.aggregate_id(leaf);
        let mut headers = Headers::with_capacity(10, 320);
        // In the order of their names. Values made here need no encoding; values from outside are encoded.
        if let Some(command) = &self.causation {
            headers.push(header::CAUSATION_ID, header::encode(command.as_str()));
        }
        if let Some(mark) = &self.correlation {
            headers.push(header::CORRELATION_ID, header::encode(mark));
        }
        headers.push(header::DATA_CONTENT_TYPE, "application/json");
        headers.push(header::ID, format_args!("{leaf}/{epoch}/{}", self.sequence));
        headers.push(header::SEQUENCE, format_args!("{:020}", self.sequence));
        headers.push(header::SOURCE, format_args!("urn:cim-leaf:{leaf}"));
        headers.push(header::SPECVERSION, "1.0");
        headers.push(header::SUBJECT, header::encode(&id));
        headers.push(header::TIME, self.time);
        headers.push(header::TYPE, header::encode(self.fact.kind()));
        EventRecord {
            sequence: self.sequence,
            subject: self.fact.subject(leaf, &id),
            headers,
            body: self.fact.to_body(),
        }
    }

    /// Parses an event. One of a newer version becomes [`Fact::Unknown`]: if its type, a value, or a field of its
    /// desired state is unknown. Other unknown fields are ignored.
    ///
    /// # Errors
    /// [`EventError`] when a header is missing or the body is not JSON.
    pub fn from_record(record: &EventRecord) -> Result<Self, EventError> {
        let find = |name: &str| record.attribute(name);
        let bad = |header| EventError::Header {
            subject: record.subject.clone(),
            header,
        };
        let sequence: u64 = find(header::SEQUENCE)
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| bad(header::SEQUENCE))?;
        let kind = find(header::TYPE).ok_or_else(|| bad(header::TYPE))?;
        let time = find(header::TIME)
            .and_then(|t| t.parse().ok())
            .ok_or_else(|| bad(header::TIME))?;
        let body: Value = serde_json::from_slice(&record.body).map_err(|source| EventError::Body {
            kind: kind.clone().into_owned(),
            sequence,
            source,
        })?;
        let fact = Fact::read(&kind, &body).unwrap_or_else(|| {
            Fact::Unknown(UnknownFact {
                kind: kind.into_owned(),
                subject: record.subject.clone(),
                body,
            })
        });
        Ok(Self {
            sequence,
            time,
            causation: find(header::CAUSATION_ID).and_then(|t| CommandId::new(t.as_ref()).ok()),
            correlation: find(header::CORRELATION_ID).map(Cow::into_owned),
            fact,
        })
    }
}
