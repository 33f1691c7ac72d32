//! The stream `EVENTS_<leaf>` of the hub: the copy of a leaf's events, which the agent keeps and the leaf fills.

use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, Republish, RetentionPolicy, StorageType, SubjectTransform,
};
use leaf_core::event::EventRecord;
use leaf_core::fleet::copy::Extent;
use leaf_core::id::{InstanceId, LeafName};
use leaf_core::subject;
use serde_json::json;

use super::Hub;
use super::active::Fence;
use super::kept::new_key;
use crate::link::Link;
use crate::pages::to_record;
use crate::stream::EventReader;
use crate::stream_error::StreamError;

/// The copy of a leaf's events.
#[derive(Debug, Clone)]
pub struct CopyStream {
    link: Link,
    fence: Fence,
    leaf: LeafName,
    name: String,
    max_bytes: u64,
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
    /// Returns the extent of the copy, or `None` if there is none. Its size is set anew, and it publishes what it stores; unless it takes the events of this instance
    /// already, it takes none from now on.
    ///
    /// # Errors
    /// [`StreamError::Foreign`] if the stream is not a copy; [`StreamError`].
    pub async fn open(&self, holder: InstanceId) -> Result<Option<Extent>, StreamError> {
        self.fence.check()?;
        match self.link.stream_info(&self.name).await {
            Err(StreamError::NoStream { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(_) => Ok(Some(self.make(1, Some(holder)).await?)),
        }
    }

    /// Makes the copy, beginning with this sequence number, and taking no events. One that exists is kept if it has an event, and
    /// made anew otherwise.
    ///
    /// # Errors
    /// [`StreamError::NoRoom`] if its size is more than a limit of the account or the server allows; [`StreamError`].
    pub async fn begin(&self, first: u64) -> Result<Extent, StreamError> {
        self.fence.check()?;
        let extent = self.make(first, None).await?;
        if !extent.is_empty() || extent.first == first {
            return Ok(extent);
        }
        self.delete().await?;
        self.make(first, None).await
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

    /// Returns the extent of the copy as it is, or `None` if there is none.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn extent(&self) -> Result<Option<Extent>, StreamError> {
        match self.link.stream_info(&self.name).await {
            Ok(info) => Ok(Some(extent_of(&info))),
            Err(StreamError::NoStream { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the copy take the events that this instance sends, and those of no other one.
    ///
    /// # Errors
    /// [`StreamError::WrongLastSequence`] if it does not end with this number, up to which it was compared; [`StreamError`].
    pub async fn admit(&self, instance: InstanceId, last: u64) -> Result<(), StreamError> {
        let subject = subject::up_events_of(&self.leaf, instance);
        let info = self.link.stream_info(&self.name).await?;
        if info.config.subjects == [subject.as_str()] {
            return Ok(());
        }
        let found = info.state.last_sequence;
        if last != found {
            return Err(StreamError::WrongLastSequence { actual: Some(found) });
        }
        self.fence.check()?;
        let admitting = Config {
            subjects: vec![subject],
            ..info.config
        };
        self.link.update_stream(&admitting).await.map(drop)
    }

    /// Lets the copy take no events, if there is one.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn close(&self) -> Result<(), StreamError> {
        let config = match self.link.stream_info(&self.name).await {
            Err(StreamError::NoStream { .. }) => return Ok(()),
            info => info?.config,
        };
        if self.is_closed(&config) {
            return Ok(());
        }
        self.fence.check()?;
        let closed = Config {
            subjects: vec![self.closed()],
            ..config
        };
        self.link.update_stream(&closed).await.map(drop)
    }

    /// Lets the copy publish what it stores, for listeners, or not.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn publishes(&self, publishes: bool) -> Result<(), StreamError> {
        let mut config = self.link.stream_info(&self.name).await?.config;
        let republish = publishes.then(|| self.republish());
        if config.republish == republish {
            return Ok(());
        }
        config.republish = republish;
        self.fence.check()?;
        self.link.update_stream(&config).await?;
        Ok(())
    }

    fn republish(&self) -> Republish {
        Republish {
            source: subject::events_of(&self.leaf),
            destination: subject::events_of(&self.leaf),
            headers_only: false,
        }
    }

    /// Returns whether the copy takes the events of this instance.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn takes(&self, instance: InstanceId) -> Result<bool, StreamError> {
        let info = self.link.stream_info(&self.name).await?;
        Ok(info.config.subjects == [subject::up_events_of(&self.leaf, instance)])
    }

    fn closed(&self) -> String {
        subject::closed_copy(&self.leaf, new_key())
    }

    fn is_closed(&self, found: &Config) -> bool {
        matches!(&found.subjects[..], [one] if subject::is_closed_copy(&self.leaf, one))
    }

    async fn make(&self, first: u64, holder: Option<InstanceId>) -> Result<Extent, StreamError> {
        let desired = self.config(first);
        let admitted = holder.map(|instance| subject::up_events_of(&self.leaf, instance));
        let merge = |found: &mut Config| {
            let is_admitted = admitted
                .as_ref()
                .is_some_and(|subject| found.subjects == [subject.as_str()]);
            if !is_admitted && !self.is_closed(found) {
                found.subjects.clone_from(&desired.subjects);
            }
            found.subject_transform.clone_from(&desired.subject_transform);
            found.republish.clone_from(&desired.republish);
            found.no_ack = desired.no_ack;
            found.max_bytes = desired.max_bytes;
            found.description.clone_from(&desired.description);
        };
        let ensured = self
            .link
            .ensure_stream(&desired, |found| self.differs(found, &desired), merge)
            .await;
        match ensured {
            Ok((info, _)) => Ok(extent_of(&info)),
            Err(error) => Err(self.link.with_room(error, &desired).await),
        }
    }

    fn config(&self, first: u64) -> Config {
        Config {
            name: self.name.clone(),
            description: Some(format!(
                "the copy of the events of leaf {}, which the hub agent keeps and the leaf alone writes",
                self.leaf
            )),
            subjects: vec![self.closed()],
            subject_transform: Some(SubjectTransform {
                source: subject::ups_of(&self.leaf),
                destination: subject::events_of(&self.leaf),
            }),
            // So that listeners hear each event once, when it is stored: it crosses the link once, and not for each of them.
            republish: Some(self.republish()),
            // An acknowledgement goes wherever the sender says, with the rights of the hub's server.
            no_ack: true,
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

    /// Returns the settings in which a stream differs from a copy's and which can't be updated, or would change its events.
    fn differs(&self, found: &Config, desired: &Config) -> Option<String> {
        let mut why = Vec::new();
        if !found.subjects.iter().all(|subject| self.is_of_copy(subject)) {
            why.push(format!("its subjects are {:?}", found.subjects));
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
        if found.sealed || !found.allow_direct {
            why.push("it is sealed or allows no direct gets".to_owned());
        }
        if found.max_messages_per_subject > 0 || found.max_messages > 0 || !found.max_age.is_zero() {
            why.push("it limits its messages by number or age".to_owned());
        }
        (!why.is_empty()).then(|| why.join(", "))
    }

    /// Returns whether this is a subject of a copy of this leaf: of one instance, of none, or of the earlier agents that wrote it.
    fn is_of_copy(&self, subject: &str) -> bool {
        let ups = subject::ups_of(&self.leaf);
        let prefix = ups.strip_suffix("*.>").unwrap_or(&ups);
        subject.starts_with(&subject::closed_copy_before(&self.leaf))
            || subject.starts_with(prefix)
            || subject == format!("leaf.{}.copy.{}.evt.>", subject::VERSION, self.leaf)
    }
}

fn extent_of(info: &Info) -> Extent {
    Extent {
        first: info.state.first_sequence.max(1),
        last: info.state.last_sequence,
    }
}
