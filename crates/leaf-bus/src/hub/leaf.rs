//! A leaf as the agent reads it through the link: where its events end, and single ones.

use std::time::Duration;

use async_nats::jetstream::stream::Info;
use async_nats::{HeaderMap, Message};
use leaf_core::event::{EventRecord, header::SEQUENCE};
use leaf_core::fleet::copy::Extent;
use leaf_core::id::{InstanceId, LeafName};
use leaf_core::subject::{self, LinkRead};
use serde_json::json;

use super::Hub;
use super::page::{PageError, PageRequest, header, number};
use crate::jetstream::read_answer;
use crate::link::Link;
use crate::pages::to_record;
use crate::stream_error::{RequestError, StreamError};

/// How long a leaf's server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The longest subject that the agent takes from a leaf, in bytes. A server closes the connection of a client that publishes on
/// one of more than about 4 KB, while a leaf's server may send any.
pub(super) const LONGEST_SUBJECT: usize = 1024;

/// Why a leaf can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// No server answers requests for this leaf.
    #[error(
        "no server answers for the instance that holds the name {leaf}: the link is cut, another server with its key is \
         connected in its place, or its user at the hub may not subscribe to leaf.v1.link.{leaf}.*.>"
    )]
    NotLinked {
        /// The leaf.
        leaf: LeafName,
    },
    /// The agent has no connection.
    #[error("not connected to the hub's NATS server")]
    Disconnected,
    /// The agent's user lacks a permission.
    #[error("the agent's user lacks a permission: {what}")]
    NoPermission {
        /// The server's error.
        what: String,
    },
    /// The leaf's server returned an error.
    #[error("the server of the leaf {leaf} returned an error: {description}")]
    Refused {
        /// The leaf.
        leaf: LeafName,
        /// The error.
        description: String,
    },
    /// A message of the leaf's stream is not an event of it.
    #[error("the message {sequence} of the stream of the leaf {leaf} is not an event of this leaf")]
    NotAnEvent {
        /// The leaf.
        leaf: LeafName,
        /// The message's stream sequence.
        sequence: u64,
    },
}

/// Sends requests for a leaf's events and state to the instance that holds its name.
#[derive(Debug, Clone)]
pub struct RemoteLeaf {
    pub(super) link: Link,
    pub(super) leaf: LeafName,
    holder: Option<InstanceId>,
}

impl Hub {
    /// Returns the sender of requests to a leaf.
    #[must_use]
    pub fn leaf(&self, leaf: &LeafName) -> RemoteLeaf {
        RemoteLeaf {
            link: self.fleet.clone(),
            leaf: leaf.clone(),
            holder: None,
        }
    }
}

impl RemoteLeaf {
    /// Reads from this instance from now on. Before the first call nobody is read from.
    pub fn is_held_by(&mut self, instance: InstanceId) {
        self.holder = Some(instance);
    }

    /// Returns the subject of a request to the holder.
    pub(super) fn reads(&self, what: LinkRead) -> Result<String, RemoteError> {
        let holder = self.holder.ok_or_else(|| RemoteError::NotLinked {
            leaf: self.leaf.clone(),
        })?;
        Ok(subject::link_read(&self.leaf, holder, what))
    }

    /// Returns where the leaf's stream begins and ends.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn extent(&self) -> Result<Extent, RemoteError> {
        let subject = self.reads(LinkRead::EventsInfo)?;
        let answer = self.link.request(&subject, None, "".into(), TIMEOUT).await;
        let answer = answer.map_err(|error| self.error(error))?;
        let stream = subject::event_stream(&self.leaf);
        let info: Info = read_answer(&answer.payload, &stream).map_err(|error| self.refused(&error))?;
        Ok(Extent {
            first: info.state.first_sequence.max(1),
            last: info.state.last_sequence,
        })
    }

    /// Returns the event with this sequence number, or the first one after it.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn event_from(&self, sequence: u64) -> Result<Option<EventRecord>, RemoteError> {
        let subject = self.reads(LinkRead::EventsGet)?;
        let asked = PageRequest::ask(&self.link, &subject, json!({ "seq": sequence }), 1).await;
        let error = |error| page_error(&self.leaf, error);
        let page = asked.map_err(error)?.collect().await.map_err(error)?;
        let Some(message) = page.messages.into_iter().next() else {
            return Ok(None);
        };
        let sequence = number(&message, "Nats-Sequence").unwrap_or(sequence);
        header(&message, "Nats-Subject")
            .and_then(|subject| event(&self.leaf, subject, &message))
            .filter(|event| event.sequence == sequence)
            .map(Some)
            .ok_or_else(|| RemoteError::NotAnEvent {
                leaf: self.leaf.clone(),
                sequence,
            })
    }

    pub(super) fn error(&self, error: RequestError) -> RemoteError {
        page_error(&self.leaf, PageError::Request(error))
    }

    fn refused(&self, error: &StreamError) -> RemoteError {
        RemoteError::Refused {
            leaf: self.leaf.clone(),
            description: error.to_string(),
        }
    }
}

/// Returns a message as an event of the leaf, with the sequence number in its header.
fn event(leaf: &LeafName, subject: &str, message: &Message) -> Option<EventRecord> {
    let headers: &HeaderMap = message.headers.as_ref()?;
    let sequence = headers.get(SEQUENCE)?.as_str().parse().ok()?;
    let prefix = subject::events_of(leaf);
    if subject.len() > LONGEST_SUBJECT || !subject.starts_with(prefix.trim_end_matches('>')) {
        return None;
    }
    Some(to_record(sequence, subject, headers, &message.payload))
}

pub(super) fn page_error(leaf: &LeafName, error: PageError) -> RemoteError {
    let leaf = leaf.clone();
    match error {
        PageError::Request(RequestError::NoResponders | RequestError::TimedOut) => {
            RemoteError::NotLinked { leaf }
        }
        PageError::Request(RequestError::Disconnected) => RemoteError::Disconnected,
        PageError::Request(RequestError::Forbidden(what)) => RemoteError::NoPermission { what },
        PageError::Request(RequestError::TooLarge(description) | RequestError::Other(description)) => {
            RemoteError::Refused { leaf, description }
        }
        PageError::TooMuch => RemoteError::Refused {
            leaf,
            description: "it sends more than it was asked for".to_owned(),
        },
        PageError::Refused { code, description } => RemoteError::Refused {
            leaf,
            description: format!("{description} ({code})"),
        },
    }
}
