//! The stream `EVENTS_<leaf>` of the hub: the copy of a leaf's events, which the agent alone writes.

use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, SubjectTransform};
use leaf_core::event::EventRecord;
use leaf_core::fleet::copy::Extent;
use leaf_core::id::LeafName;
use leaf_core::subject;
use serde_json::json;

use super::Hub;
use crate::jetstream::to_record;
use crate::link::Link;
use crate::publisher::Publisher;
use crate::stream::EventReader;
use crate::stream_error::StreamError;

/// The copy of a leaf's events.
#[derive(Debug, Clone)]
pub struct CopyStream {
    link: Link,
    leaf: LeafName,
    name: String,
    max_bytes: u64,
}

/// Publishes events into a copy.
#[derive(Debug)]
pub struct CopyEvents {
    leaf: LeafName,
    publisher: Publisher,
}

impl Hub {
    /// Returns the copy of a leaf's events, of at most this many bytes.
    #[must_use]
    pub fn copy(&self, leaf: &LeafName, max_bytes: u64) -> CopyStream {
        CopyStream {
            link: self.fleet.clone(),
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
        Ok(CopyEvents {
            leaf: self.leaf.clone(),
            publisher: Publisher::start(self.link.clone(), self.name.clone(), after).await?,
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
    /// Publishes an event that follows the last one; waits while too much is unacknowledged.
    ///
    /// # Errors
    /// The [`StreamError`] of this event or of one before it. The publisher can't be used afterwards.
    pub async fn publish(&mut self, mut event: EventRecord) -> Result<(), StreamError> {
        let Some(copied) = subject::copied_event(&self.leaf, &event.subject) else {
            return Err(StreamError::NotAnEvent {
                stream: subject::event_stream(&self.leaf),
                sequence: event.sequence,
            });
        };
        event.subject = copied;
        self.publisher.publish(event).await
    }

    /// Whether an event is unacknowledged.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.publisher.is_waiting()
    }

    /// The last acknowledged sequence number.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.publisher.acked()
    }

    /// Waits for acknowledgements and returns the last acknowledged sequence number. The future may be dropped and the call
    /// repeated.
    ///
    /// # Errors
    /// The [`StreamError`] of the first event that was not stored. The publisher can't be used afterwards.
    pub async fn next_ack(&mut self) -> Result<u64, StreamError> {
        self.publisher.next_ack().await
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
