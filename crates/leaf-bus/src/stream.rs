//! The stream `EVENTS_<leaf>`: the copy of a leaf's journal, in which only that leaf writes. A message's sequence
//! number in the stream is the event's own.

use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use leaf_core::event::EventRecord;
use leaf_core::id::LeafName;
use leaf_core::subject;
use serde_json::json;

use crate::connect::Bus;
use crate::jetstream::{Pages, to_record};
use crate::link::Link;
use crate::publisher::Publisher;

pub use crate::stream_error::StreamError;

/// What may be set of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSettings {
    /// How large it may become, in bytes; then its oldest events go.
    pub max_bytes: u64,
    /// On how many servers of a cluster it is kept.
    pub replicas: usize,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            max_bytes: 1024 * 1024 * 1024,
            replicas: 1,
        }
    }
}

/// What a stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// The first sequence number that it has, or would give if it is empty.
    pub first_sequence: u64,
    /// The last sequence number that it gave; one less than the first if it never gave any.
    pub last_sequence: u64,
    /// How many events it has.
    pub events: u64,
    /// Whether it was made just now.
    pub created: bool,
}

/// How an event of the journal stands in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// As it is in the journal.
    Same,
    /// Another has its place.
    Differs(Box<EventRecord>),
    /// Nothing has its place (any more).
    Missing,
}

/// A leaf's stream.
#[derive(Debug, Clone)]
pub struct EventStream {
    link: Link,
    leaf: LeafName,
    name: String,
    settings: StreamSettings,
}

impl EventStream {
    /// Makes the stream if it is not there, else sets what may be set of it, and returns it with what it holds. A new
    /// one begins with `first_sequence`.
    ///
    /// # Errors
    /// [`StreamError::Foreign`] when there is another stream of its name or with its subjects.
    pub async fn ensure(
        bus: &Bus,
        leaf: &LeafName,
        settings: StreamSettings,
        first_sequence: u64,
    ) -> Result<(Self, StreamState), StreamError> {
        let stream = Self {
            link: bus.store.clone(),
            name: subject::event_stream(leaf),
            leaf: leaf.clone(),
            settings,
        };
        let state = stream.make(first_sequence).await?;
        Ok((stream, state))
    }

    /// Deletes the stream with all its events and makes it again, to begin with `first_sequence`: for a new epoch.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn recreate(&self, first_sequence: u64) -> Result<StreamState, StreamError> {
        self.link.delete_stream(&self.name).await?;
        self.make(first_sequence).await
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks what it holds.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn state(&self) -> Result<StreamState, StreamError> {
        Ok(state(&self.link.stream_info(&self.name).await?, false))
    }

    /// Reads one event; nothing if the stream does not have it (any more).
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn read(&self, sequence: u64) -> Result<Option<EventRecord>, StreamError> {
        self.get(&json!({ "seq": sequence })).await
    }

    /// Reads the last event.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn last(&self) -> Result<Option<EventRecord>, StreamError> {
        self.last_on(&subject::events_of(&self.leaf)).await
    }

    /// Reads the last event on a subject, which may have wildcards.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn last_on(&self, subject: &str) -> Result<Option<EventRecord>, StreamError> {
        self.get(&json!({ "last_by_subj": subject })).await
    }

    /// Reads all events from this one on, in order, up to the last that is there now.
    #[must_use]
    pub fn read_from(&self, sequence: u64) -> EventReader {
        EventReader {
            pages: self.link.read_from(&self.name, sequence, None),
        }
    }

    /// Compares an event of the journal with what has its place in the stream: subject, headers and body.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn compare(&self, record: &EventRecord) -> Result<Comparison, StreamError> {
        Ok(match self.read(record.sequence).await? {
            None => Comparison::Missing,
            Some(found) if same(&found, record) => Comparison::Same,
            Some(found) => Comparison::Differs(Box::new(found)),
        })
    }

    /// Returns a publisher that goes on after this sequence number, with which the stream must end now.
    ///
    /// # Errors
    /// [`StreamError::Disconnected`].
    pub async fn publisher(&self, after: u64) -> Result<Publisher, StreamError> {
        Publisher::start(self.link.clone(), self.name.clone(), after).await
    }

    async fn get(&self, which: &serde_json::Value) -> Result<Option<EventRecord>, StreamError> {
        let message = self.link.get_message(&self.name, which).await?;
        Ok(message.map(|m| to_record(m.sequence, &m.subject, &m.headers, &m.payload)))
    }

    async fn make(&self, first_sequence: u64) -> Result<StreamState, StreamError> {
        let wanted = self.config(first_sequence);
        let merge = |found: &mut Config| {
            // All that may be changed while it has events; the rest is compared.
            found.max_bytes = wanted.max_bytes;
            found.num_replicas = wanted.num_replicas;
            found.discard = wanted.discard;
            found.max_messages = wanted.max_messages;
            found.max_age = wanted.max_age;
            found.max_message_size = wanted.max_message_size;
            found.allow_direct = wanted.allow_direct;
            found.deny_delete = wanted.deny_delete;
            found.deny_purge = wanted.deny_purge;
            found.description.clone_from(&wanted.description);
        };
        let (info, created) = self
            .link
            .ensure_stream(&wanted, |found| differs(found, &wanted), merge)
            .await?;
        Ok(state(&info, created))
    }

    fn config(&self, first_sequence: u64) -> Config {
        Config {
            name: self.name.clone(),
            description: Some(format!("the events of leaf {}, written by it alone", self.leaf)),
            subjects: vec![subject::events_of(&self.leaf)],
            max_bytes: i64::try_from(self.settings.max_bytes).unwrap_or(i64::MAX),
            max_messages: -1,
            max_messages_per_subject: -1,
            max_consumers: -1,
            max_message_size: -1,
            num_replicas: self.settings.replicas.max(1),
            storage: StorageType::File,
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            allow_direct: true,
            deny_delete: true,
            deny_purge: true,
            first_sequence: (first_sequence > 1).then_some(first_sequence),
            ..Config::default()
        }
    }
}

/// Events in order; see [`EventStream::read_from`].
#[derive(Debug)]
pub struct EventReader {
    pages: Pages,
}

impl EventReader {
    /// The next event; nothing after the last.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn next(&mut self) -> Result<Option<EventRecord>, StreamError> {
        self.pages.next().await
    }
}

/// Returns whether two records are the same event, byte by byte; the order of headers does not count.
fn same(a: &EventRecord, b: &EventRecord) -> bool {
    fn sorted(record: &EventRecord) -> Vec<(&str, &str)> {
        let mut headers: Vec<_> = record.headers.iter().collect();
        headers.sort_unstable();
        headers
    }
    a.subject == b.subject && a.body == b.body && sorted(a) == sorted(b)
}

fn state(info: &Info, created: bool) -> StreamState {
    let state = &info.state;
    StreamState {
        // One that never had an event says 0.
        first_sequence: state.first_sequence.max(1),
        last_sequence: state.last_sequence,
        events: state.messages,
        created,
    }
}

/// Says in what a stream is not one of ours: what can't be changed, or would change what is in it.
fn differs(found: &Config, wanted: &Config) -> Option<String> {
    let mut why = Vec::new();
    if found.subjects != wanted.subjects {
        why.push(format!("its subjects are {:?}", found.subjects));
    }
    if found.storage != wanted.storage {
        why.push("it is not kept in files".to_owned());
    }
    if found.retention != wanted.retention {
        why.push("its retention is not `limits`".to_owned());
    }
    if found.mirror.is_some() || found.sources.as_ref().is_some_and(|sources| !sources.is_empty()) {
        why.push("it is a copy of other streams".to_owned());
    }
    if found.sealed {
        why.push("it is sealed".to_owned());
    }
    if found.no_ack {
        why.push("it gives no answers".to_owned());
    }
    if found.max_messages_per_subject > 0 {
        why.push("it keeps only some events of a subject".to_owned());
    }
    if found.subject_transform.is_some() {
        why.push("it changes subjects".to_owned());
    }
    (!why.is_empty()).then(|| why.join(", "))
}
