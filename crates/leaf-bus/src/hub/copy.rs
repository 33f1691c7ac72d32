//! The stream `EVENTS_<leaf>` of the hub: the copy of a leaf's events, which the agent alone writes.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, SubjectTransform};
use async_nats::{Message, Subscriber};
use futures::{FutureExt as _, StreamExt as _};
use leaf_core::event::EventRecord;
use leaf_core::fleet::copy::Extent;
use leaf_core::id::LeafName;
use leaf_core::subject;
use serde_json::json;
use tokio::time::Instant;

use super::Hub;
use super::active::Fence;
use crate::jetstream::{read_ack, to_record};
use crate::link::{Link, Wait};
use crate::publisher::{self, sleep_until};
use crate::stream::EventReader;
use crate::stream_error::{StreamError, publish_error, request_error};

/// The copy of a leaf's events.
#[derive(Debug, Clone)]
pub struct CopyStream {
    link: Link,
    fence: Fence,
    leaf: LeafName,
    name: String,
    max_bytes: u64,
}

/// How many events may be unacknowledged at once.
const WINDOW_EVENTS: u64 = 2048;
/// How many bytes of bodies may be unacknowledged at once.
const WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// Of a row of events, each of this many is acknowledged, and the last one.
const ACK_EVERY: usize = 64;
/// How long the server may take to acknowledge the oldest of them.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes events into a copy, in order.
///
/// Each carries the number that the copy must end with before it. So an acknowledgement of one says that all before it are
/// stored, and of a row only some are acknowledged: that costs the server less.
#[derive(Debug)]
pub struct CopyEvents {
    link: Link,
    fence: Fence,
    leaf: LeafName,
    stream: String,
    inbox: async_nats::Subject,
    acks: Subscriber,
    wait: Wait,
    sent: u64,
    acked: u64,
    /// The bytes that were sent since the last event whose acknowledgement was asked for.
    bytes: usize,
    /// Those that were sent before that, and are unacknowledged.
    asked_bytes: usize,
    asked: VecDeque<Asked>,
}

/// An event whose acknowledgement was asked for.
#[derive(Debug)]
struct Asked {
    sequence: u64,
    /// Of it and those before it.
    bytes: usize,
    sent: Instant,
}

impl Hub {
    /// Returns the copy of a leaf's events, of at most this many bytes.
    #[must_use]
    pub fn copy(&self, leaf: &LeafName, max_bytes: u64) -> CopyStream {
        CopyStream {
            link: self.fleet.clone(),
            fence: self.fence(),
            name: subject::event_stream(leaf),
            leaf: leaf.clone(),
            max_bytes,
        }
    }
}

impl CopyStream {
    /// Returns the extent of the copy, or `None` if there is none. Its size is set anew.
    ///
    /// # Errors
    /// [`StreamError::Foreign`] if the stream is not a copy; [`StreamError`].
    pub async fn open(&self) -> Result<Option<Extent>, StreamError> {
        match self.link.stream_info(&self.name).await {
            Err(StreamError::NoStream { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(Some(self.make(1).await?)),
        }
    }

    /// Makes the copy, beginning with this sequence number. One that exists is kept if it has an event, and made anew otherwise.
    ///
    /// # Errors
    /// [`StreamError::NoRoom`] if its size is more than a limit of the account or the server allows; [`StreamError`].
    pub async fn begin(&self, first: u64) -> Result<Extent, StreamError> {
        self.fence.check()?;
        let extent = self.make(first).await?;
        if !extent.is_empty() || extent.first == first {
            return Ok(extent);
        }
        self.delete().await?;
        self.make(first).await
    }

    /// Deletes the copy.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn delete(&self) -> Result<(), StreamError> {
        self.fence.check()?;
        self.link.delete_stream(&self.name).await
    }

    /// Reads one event, or returns `None` if the copy does not have it.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn read(&self, sequence: u64) -> Result<Option<EventRecord>, StreamError> {
        let message = self
            .link
            .get_message(&self.name, &json!({ "seq": sequence }))
            .await?;
        Ok(message.map(|m| to_record(m.sequence, &m.subject, &m.headers, &m.payload)))
    }

    /// Reads all events from this one on, in order.
    #[must_use]
    pub fn read_from(&self, sequence: u64) -> EventReader {
        EventReader::new(self.link.read_from(&self.name, sequence, None))
    }

    /// Returns a publisher that continues after this sequence number, which must be the copy's last.
    ///
    /// # Errors
    /// [`StreamError::Disconnected`].
    pub async fn publisher(&self, after: u64) -> Result<CopyEvents, StreamError> {
        if !self.link.is_connected() {
            return Err(StreamError::Disconnected);
        }
        let wait = Wait::new(&self.link);
        let inbox = self.link.new_inbox();
        Ok(CopyEvents {
            acks: self.link.subscribe(inbox.clone()).await?,
            link: self.link.clone(),
            fence: self.fence.clone(),
            leaf: self.leaf.clone(),
            stream: self.name.clone(),
            inbox: inbox.into(),
            wait,
            sent: after,
            acked: after,
            bytes: 0,
            asked_bytes: 0,
            asked: VecDeque::new(),
        })
    }

    async fn make(&self, first: u64) -> Result<Extent, StreamError> {
        let desired = self.config(first);
        let merge = |found: &mut Config| {
            found.max_bytes = desired.max_bytes;
            found.description.clone_from(&desired.description);
        };
        let ensured = self
            .link
            .ensure_stream(&desired, |found| differs(found, &desired), merge)
            .await;
        match ensured {
            Ok((info, _)) => Ok(Extent {
                first: info.state.first_sequence.max(1),
                last: info.state.last_sequence,
            }),
            Err(error) => Err(self.link.with_room(error, &desired).await),
        }
    }

    fn config(&self, first: u64) -> Config {
        Config {
            name: self.name.clone(),
            description: Some(format!(
                "the copy of the events of leaf {}, written by the hub agent alone",
                self.leaf
            )),
            subjects: vec![subject::copied_events_of(&self.leaf)],
            subject_transform: Some(SubjectTransform {
                source: subject::copied_events_of(&self.leaf),
                destination: subject::events_of(&self.leaf),
            }),
            max_bytes: i64::try_from(self.max_bytes).unwrap_or(i64::MAX),
            max_messages: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            max_message_size: -1,
            num_replicas: 1,
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            allow_direct: true,
            deny_delete: true,
            deny_purge: true,
            first_sequence: (first > 1).then_some(first),
            ..Config::default()
        }
    }
}

impl CopyEvents {
    /// Publishes a row of events that follows the last one; waits while too much is unacknowledged.
    ///
    /// # Errors
    /// The [`StreamError`] of one of these events or of one before them. The publisher can't be used afterwards.
    pub async fn publish(&mut self, row: Vec<EventRecord>) -> Result<(), StreamError> {
        self.fence.check()?;
        let count = row.len();
        for (index, event) in row.into_iter().enumerate() {
            while self.is_full(event.body.len()) && self.is_waiting() {
                self.next_ack().await?;
            }
            if self.link.generation() != self.wait.generation() || !self.link.is_connected() {
                return Err(StreamError::Disconnected);
            }
            let is_asked = index + 1 == count
                || index % ACK_EVERY == ACK_EVERY - 1
                || self.bytes + event.body.len() > WINDOW_BYTES / 8;
            self.send(event, is_asked).await?;
        }
        Ok(())
    }

    async fn send(&mut self, mut event: EventRecord, is_asked: bool) -> Result<(), StreamError> {
        let sequence = event.sequence;
        let Some(subject) = subject::copied_event(&self.leaf, &event.subject) else {
            return Err(StreamError::NotAnEvent {
                stream: self.stream.clone(),
                sequence,
            });
        };
        if sequence != self.sent + 1 {
            return Err(StreamError::WrongLastSequence {
                actual: Some(self.sent),
            });
        }
        let headers = publisher::headers(&event);
        let body = std::mem::take(&mut event.body);
        self.bytes += body.len();
        let client = self.link.client();
        let sent = if is_asked {
            let inbox = self.inbox.clone();
            client
                .publish_with_reply_and_headers(subject, inbox, headers, body.into())
                .await
        } else {
            client.publish_with_headers(subject, headers, body.into()).await
        };
        sent.map_err(|error| request_error(publish_error(&error), "a publish", self.link.domain()))?;
        self.sent = sequence;
        if is_asked {
            let bytes = std::mem::take(&mut self.bytes);
            self.asked_bytes += bytes;
            self.asked.push_back(Asked {
                sequence,
                bytes,
                sent: Instant::now(),
            });
        }
        Ok(())
    }

    /// Whether an event is unacknowledged.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.asked.is_empty()
    }

    /// Waits for acknowledgements and returns the last acknowledged sequence number. The future may be dropped and the call
    /// repeated.
    ///
    /// # Errors
    /// The [`StreamError`] of the first event that was not stored. The publisher can't be used afterwards.
    pub async fn next_ack(&mut self) -> Result<u64, StreamError> {
        let deadline = self.asked.front().map(|oldest| oldest.sent + ACK_TIMEOUT);
        let message = tokio::select! {
            biased;
            message = self.acks.next() => message.ok_or(StreamError::Disconnected)?,
            error = self.wait.trouble(&self.link, &self.inbox) => {
                return Err(request_error(error, "a publish", self.link.domain()));
            }
            () = sleep_until(deadline) => {
                return Err(StreamError::Unanswered { what: format!("the events after {}", self.acked) });
            }
        };
        self.take(&message)?;
        while let Some(Some(message)) = self.acks.next().now_or_never() {
            self.take(&message)?;
        }
        Ok(self.acked)
    }

    fn take(&mut self, message: &Message) -> Result<(), StreamError> {
        if message.status.is_some() {
            return Err(StreamError::NoStream {
                stream: self.stream.clone(),
            });
        }
        let sequence = read_ack(&message.payload, &self.stream)?;
        match self.asked.pop_front() {
            Some(asked) if asked.sequence == sequence => {
                self.acked = sequence;
                self.asked_bytes -= asked.bytes;
                Ok(())
            }
            // Acknowledgements arrive in order; another number means that another stream answers as well.
            _ => Err(StreamError::WrongLastSequence {
                actual: Some(sequence),
            }),
        }
    }

    fn is_full(&self, bytes: usize) -> bool {
        let in_flight = self.asked_bytes + self.bytes;
        self.sent - self.acked >= WINDOW_EVENTS || in_flight + bytes > WINDOW_BYTES
    }
}

/// Returns the settings in which a stream differs from a copy's and which can't be updated, or would change its events.
fn differs(found: &Config, desired: &Config) -> Option<String> {
    let mut why = Vec::new();
    if found.subjects != desired.subjects {
        why.push(format!("its subjects are {:?}", found.subjects));
    }
    if found.subject_transform != desired.subject_transform {
        why.push("it does not store its messages under the leaf's own subjects".to_owned());
    }
    if found.storage != desired.storage {
        why.push("it is not stored in files".to_owned());
    }
    if found.retention != desired.retention || found.discard != desired.discard {
        why.push("it does not keep the newest messages".to_owned());
    }
    if found.mirror.is_some() || found.sources.as_ref().is_some_and(|sources| !sources.is_empty()) {
        why.push("it is a copy of other streams".to_owned());
    }
    if found.republish.is_some() {
        why.push("it publishes its messages again".to_owned());
    }
    if found.sealed || found.no_ack || !found.allow_direct {
        why.push("it is sealed, sends no acknowledgements or allows no direct gets".to_owned());
    }
    if found.max_messages_per_subject > 0 || found.max_messages > 0 || !found.max_age.is_zero() {
        why.push("it limits its messages by number or age".to_owned());
    }
    (!why.is_empty()).then(|| why.join(", "))
}
