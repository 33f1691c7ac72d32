//! The stream `EVENTS_<leaf>`: the copy of a leaf's journal, which only that leaf writes. A message's stream sequence
//! is the event's own sequence number.

use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use leaf_core::event::EventRecord;
use leaf_core::id::LeafName;
use leaf_core::subject;
use serde_json::json;

use crate::connect::Bus;
use crate::link::Link;
use crate::pages::{Pages, to_record};
use crate::publisher::Publisher;

pub use crate::stream_error::{Room, StreamError};

/// The largest message that a leaf has to send, in bytes: the desired state of a container with the largest spec. All else
/// is cut to what the server accepts.
const NEEDED_PAYLOAD_BYTES: usize = 64 * 1024;

/// The settings of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSettings {
    /// The maximum size, in bytes; new events replace the oldest ones.
    pub max_bytes: u64,
    /// The number of replicas in a cluster.
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

/// The extent of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamState {
    /// The first sequence number, or the next one if the stream is empty.
    pub first_sequence: u64,
    /// The last sequence number; one less than the first if the stream never had an event.
    pub last_sequence: u64,
    /// The number of events.
    pub events: u64,
    /// Whether the stream was just created.
    pub created: bool,
}

/// The result of comparing an event of the journal with the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Comparison {
    /// The stream has the same event.
    Same,
    /// The stream has another event with its sequence number.
    Differs(Box<EventRecord>),
    /// The stream has no event with its sequence number.
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
    /// Creates the stream, or updates its settings if it exists, and returns it with its extent. A new one begins with
    /// `first_sequence`.
    ///
    /// # Errors
    /// [`StreamError::Foreign`] if another stream has its name or its subjects; [`StreamError::NoRoom`] if its size is more
    /// than a limit of the account or the server allows.
    pub async fn ensure(
        bus: &Bus,
        leaf: &LeafName,
        settings: StreamSettings,
        first_sequence: u64,
    ) -> Result<(Self, StreamState), StreamError> {
        let stream = Self::of(bus, leaf, settings);
        let state = stream.make(first_sequence).await?;
        Ok((stream, state))
    }

    /// Returns the stream without asking the server whether it exists, for reading.
    #[must_use]
    pub fn of(bus: &Bus, leaf: &LeafName, settings: StreamSettings) -> Self {
        Self {
            link: bus.store.clone(),
            name: subject::event_stream(leaf),
            leaf: leaf.clone(),
            settings,
        }
    }

    /// Deletes the stream with all its events and creates it again, beginning with `first_sequence`.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn recreate(&self, first_sequence: u64) -> Result<StreamState, StreamError> {
        self.link.delete_stream(&self.name).await?;
        self.make(first_sequence).await
    }

    /// The stream's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the stream's extent.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn state(&self) -> Result<StreamState, StreamError> {
        Ok(state(&self.link.stream_info(&self.name).await?, false))
    }

    /// Reads one event, or returns `None` if the stream does not have it.
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

    /// Reads all events from this one on, in order, up to the last one at the time of reading.
    #[must_use]
    pub fn read_from(&self, sequence: u64) -> EventReader {
        EventReader::new(self.link.read_from(&self.name, sequence, None))
    }

    /// Compares an event of the journal with that of the same sequence number in the stream: subject, headers and body.
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

    /// Compares events of the journal, in order and from this number on, with those of the stream, which are read page by
    /// page.
    #[must_use]
    pub fn compare_from(&self, sequence: u64) -> Comparer<'_> {
        Comparer {
            stream: self,
            reader: self.read_from(sequence),
            ahead: None,
        }
    }

    /// Returns a publisher that continues after this sequence number, which must be the stream's last.
    ///
    /// # Errors
    /// [`StreamError::Disconnected`].
    pub async fn publisher(&self, after: u64) -> Result<Publisher, StreamError> {
        if let Some(server) = self.link.server()
            && server.max_payload_bytes < NEEDED_PAYLOAD_BYTES
        {
            tracing::warn!(
                max_payload = server.max_payload_bytes,
                needed = NEEDED_PAYLOAD_BYTES,
                "the NATS server accepts only small messages: commands with larger specs are refused; raise its `max_payload` \
                 to allow them"
            );
        }
        Publisher::start(self.link.clone(), self.name.clone(), after).await
    }

    async fn get(&self, which: &serde_json::Value) -> Result<Option<EventRecord>, StreamError> {
        let message = self.link.get_message(&self.name, which).await?;
        Ok(message.map(|m| to_record(m.sequence, &m.subject, &m.headers, &m.payload)))
    }

    async fn make(&self, first_sequence: u64) -> Result<StreamState, StreamError> {
        let desired = self.config(first_sequence);
        let merge = |found: &mut Config| {
            // The settings that can be updated while it has events; the others are compared.
            found.max_bytes = desired.max_bytes;
            found.num_replicas = desired.num_replicas;
            found.discard = desired.discard;
            found.max_messages = desired.max_messages;
            found.max_age = desired.max_age;
            found.max_message_size = desired.max_message_size;
            found.allow_direct = desired.allow_direct;
            found.deny_delete = desired.deny_delete;
            found.deny_purge = desired.deny_purge;
            found.description.clone_from(&desired.description);
        };
        let ensured = self
            .link
            .ensure_stream(&desired, |found| differs(found, &desired), merge)
            .await;
        match ensured {
            Ok((info, created)) => Ok(state(&info, created)),
            Err(error) => Err(self.link.with_room(error, &desired).await),
        }
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
    pub(crate) fn new(pages: Pages) -> Self {
        Self { pages }
    }

    /// Returns the next event, or `None` after the last one.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn next(&mut self) -> Result<Option<EventRecord>, StreamError> {
        self.pages.next().await
    }
}

/// Compares events in order; see [`EventStream::compare_from`].
#[derive(Debug)]
pub struct Comparer<'a> {
    stream: &'a EventStream,
    reader: EventReader,
    /// The next event of the stream, if it was read and not compared yet.
    ahead: Option<EventRecord>,
}

impl Comparer<'_> {
    /// Compares the next event, whose number is larger than that of the one before.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn next(&mut self, record: &EventRecord) -> Result<Comparison, StreamError> {
        while self
            .ahead
            .as_ref()
            .is_none_or(|found| found.sequence < record.sequence)
        {
            match self.reader.next().await? {
                Some(found) => self.ahead = Some(found),
                None => break,
            }
        }
        match self.ahead.take_if(|found| found.sequence == record.sequence) {
            Some(found) if same(&found, record) => Ok(Comparison::Same),
            Some(found) => Ok(Comparison::Differs(Box::new(found))),
            // Any replica may have answered, and one may be behind: the leader is asked for what it did not have.
            None => self.stream.compare(record).await,
        }
    }
}

/// Returns whether two records are equal byte by byte, regardless of the order of headers.
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
        // A stream that never had an event has 0 here.
        first_sequence: state.first_sequence.max(1),
        last_sequence: state.last_sequence,
        events: state.messages,
        created,
    }
}

/// Returns the settings in which a stream differs from ours and which can't be updated, or would change its events.
fn differs(found: &Config, desired: &Config) -> Option<String> {
    let mut why = Vec::new();
    if found.subjects != desired.subjects {
        why.push(format!("its subjects are {:?}", found.subjects));
    }
    if found.storage != desired.storage {
        why.push("it is not stored in files".to_owned());
    }
    if found.retention != desired.retention {
        why.push("its retention is not `limits`".to_owned());
    }
    if found.mirror.is_some() || found.sources.as_ref().is_some_and(|sources| !sources.is_empty()) {
        why.push("it is a copy of other streams".to_owned());
    }
    if found.sealed {
        why.push("it is sealed".to_owned());
    }
    if found.no_ack {
        why.push("it sends no acknowledgements".to_owned());
    }
    if found.max_messages_per_subject > 0 {
        why.push("it limits the events of a subject".to_owned());
    }
    if found.subject_transform.is_some() {
        why.push("it changes subjects".to_owned());
    }
    (!why.is_empty()).then(|| why.join(", "))
}
