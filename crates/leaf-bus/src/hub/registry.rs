//! The streams of the hub beside the copies of events: who was ever here (`LEASES`), the state of each copy (the bucket
//! `fleet`), and what happened (`FLEET`).

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Republish, RetentionPolicy, StorageType};
use bytes::Bytes;
use jiff::Timestamp;
use leaf_core::beat::Beat;
use leaf_core::event::header;
use leaf_core::fleet::fact::FleetEvent;
use leaf_core::fleet::work::WorkTakenOver;
use leaf_core::fleet::{ActiveAgent, CopyStatus};
use leaf_core::id::{LeafName, WorkId};
use leaf_core::json::to_json;
use leaf_core::subject::{self, FLEET_BUCKET, FLEET_STREAM, LEASE_STREAM};
use serde::Deserialize;
use serde_json::json;

use super::Hub;
use super::active::Fence;
use super::kept::{Kept, Kind};
use super::page::{PageError, PageRequest, header as header_of, number};
use crate::jetstream::{API_TIMEOUT, last_of_each_subject};
use crate::link::Link;
use crate::stream_error::{StreamError, request_error};

/// The largest size of the stream `FLEET`, in bytes; new events replace the oldest ones.
const FLEET_BYTES: i64 = 64 << 20;
/// The header of a leaf's last beat, once its claim was given back. Readers of beats need not know it.
const RELEASED: &str = "Cim-Released";
/// How many messages a page has.
const PAGE: u64 = 512;

/// A leaf that was here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its last beat.
    pub beat: Beat,
    /// The age of its last claim; the longest there is if the leaf has given it back.
    pub age: Duration,
}

/// The answer to a purge.
#[derive(Debug, Deserialize)]
struct Purged {
    #[serde(default)]
    purged: u64,
}

/// The hub's registry.
#[derive(Debug, Clone)]
pub struct Registry {
    link: Link,
    fence: Fence,
    streams: Streams,
}

impl Hub {
    /// Makes the streams of the registry where they don't exist, and returns it.
    ///
    /// # Errors
    /// [`StreamError::Foreign`] if a stream of their names has other settings; [`StreamError`].
    pub async fn registry(&self) -> Result<Registry, StreamError> {
        let registry = self.registry_as_it_is();
        registry.make().await?;
        Ok(registry)
    }

    /// Returns the registry without making its streams.
    #[must_use]
    pub fn registry_as_it_is(&self) -> Registry {
        Registry {
            link: self.fleet.clone(),
            fence: self.fence(),
            streams: self.streams.clone(),
        }
    }
}

impl Registry {
    /// Returns all leaves that were ever here.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn leaves(&self) -> Result<Vec<Known>, StreamError> {
        let now = Timestamp::now();
        let all = self.messages(self.streams.leases.name()).await?;
        let known = all.iter().filter_map(|message| {
            let time: Timestamp = header_of(message, "Nats-Time-Stamp")?.parse().ok()?;
            let beat: Beat = serde_json::from_slice(&message.payload).ok()?;
            // An agent of an earlier version may have written it while this one changed the subjects of the stream: then it is
            // stored under another subject.
            if header_of(message, "Nats-Subject")? != subject::beat(&beat.leaf) {
                return None;
            }
            Some(Known {
                beat,
                age: if header_of(message, RELEASED).is_some() {
                    Duration::MAX
                } else {
                    age(now, time)
                },
            })
        });
        Ok(known.collect())
    }

    /// Stores a leaf's beat: its claim is granted.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn put_beat(&self, beat: &Beat) -> Result<(), StreamError> {
        let subject = subject::beat(&beat.leaf);
        self.put(&self.streams.leases, &subject, HeaderMap::new(), to_json(beat))
            .await
    }

    /// Stores the last beat of a leaf that has given its claim back.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn put_released(&self, beat: &Beat) -> Result<(), StreamError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/json");
        headers.insert(RELEASED, "true");
        let subject = subject::beat(&beat.leaf);
        self.put(&self.streams.leases, &subject, headers, to_json(beat))
            .await
    }

    /// Returns the agent that writes the hub's streams, or did last, and the number of its document; no agent where that can't be
    /// read, which is nobody's.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn active(&self) -> Result<Option<(Option<ActiveAgent>, u64)>, StreamError> {
        let which = json!({ "last_by_subj": subject::active_agent() });
        let found = match self.link.get_message(self.streams.statuses.name(), &which).await {
            Err(StreamError::NoStream { .. }) => None,
            other => other?,
        };
        Ok(found.map(|message| (serde_json::from_slice(&message.payload).ok(), message.sequence)))
    }

    /// Stores the document about the active agent where the last one has this number, 0 for none, and returns its number. It is
    /// the only one that is written by an agent that may not write.
    ///
    /// # Errors
    /// [`StreamError::WrongLastSequence`] if another agent wrote it; [`StreamError`].
    pub async fn put_active(&self, agent: &ActiveAgent, after: u64) -> Result<u64, StreamError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/json");
        headers.insert("Nats-Expected-Last-Subject-Sequence", after.to_string());
        let body = Bytes::from(to_json(agent));
        self.streams
            .statuses
            .put(&subject::active_agent(), headers, body)
            .await
    }

    /// Removes a leaf and the document about its copy, and returns whether it was known.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn forget(&self, leaf: &LeafName) -> Result<bool, StreamError> {
        self.fence.check()?;
        let mut known = false;
        for (stream, subject) in [
            (self.streams.leases.name(), subject::beat(leaf)),
            (self.streams.statuses.name(), subject::copy_status(leaf)),
        ] {
            let body = json!({ "filter": subject });
            let what = format!("STREAM.PURGE.{stream}");
            match self.link.api::<Purged>(&what, &body, API_TIMEOUT).await {
                Ok(Purged { purged }) => known |= purged > 0,
                Err(StreamError::NoStream { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(known)
    }

    /// Returns the documents about the copies, by leaf.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn statuses(&self) -> Result<BTreeMap<LeafName, CopyStatus>, StreamError> {
        let all = self.messages(self.streams.statuses.name()).await?;
        let statuses = all
            .iter()
            .filter_map(|message| serde_json::from_slice::<CopyStatus>(&message.payload).ok());
        Ok(statuses.map(|status| (status.leaf.clone(), status)).collect())
    }

    /// Stores the document about a copy.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn put_status(&self, status: &CopyStatus) -> Result<(), StreamError> {
        let subject = subject::copy_status(&status.leaf);
        self.put(
            &self.streams.statuses,
            &subject,
            HeaderMap::new(),
            to_json(status),
        )
        .await
    }

    /// Stores an event about a copy.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn put_event(&self, event: &FleetEvent) -> Result<(), StreamError> {
        let mut headers = HeaderMap::new();
        for (name, value) in event.headers().iter() {
            headers.insert(name, value);
        }
        // The agent may have been killed after it stored the event, and stores it again.
        headers.insert("Nats-Msg-Id", event.id());
        self.put(&self.streams.facts, &event.subject(), headers, event.body())
            .await
    }

    /// Returns the subjects and bodies of the events about leaves and copies that the stream still has.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn events(&self) -> Result<Vec<(String, CopyStatus)>, StreamError> {
        let all = self.messages(self.streams.facts.name()).await?;
        let events = all.iter().filter_map(|message| {
            let subject = header_of(message, "Nats-Subject")?.to_owned();
            Some((subject, serde_json::from_slice(&message.payload).ok()?))
        });
        Ok(events.collect())
    }

    /// Returns the fact that a work of a leaf was taken over, if it was.
    ///
    /// # Errors
    /// [`StreamError`]; [`StreamError::NoStream`] if the stream is gone.
    pub async fn taken_over(
        &self,
        first: &LeafName,
        work: WorkId,
    ) -> Result<Option<WorkTakenOver>, StreamError> {
        let which = json!({ "last_by_subj": subject::work_taken_over(first, work) });
        let found = self.link.get_message(self.streams.facts.name(), &which).await?;
        let Some(message) = found else { return Ok(None) };
        let fact = serde_json::from_slice(&message.payload).map_err(|error| StreamError::Server {
            code: 0,
            description: format!("the fact that a work was taken over can't be read: {error}"),
        })?;
        Ok(Some(fact))
    }

    /// Stores the fact that a work was taken over, unless there is one already.
    ///
    /// # Errors
    /// [`StreamError::WrongLastSequence`] if there is one; [`StreamError`].
    pub async fn put_taken_over(&self, fact: &WorkTakenOver) -> Result<(), StreamError> {
        let subject = subject::work_taken_over(&fact.first, fact.id);
        let id = format!("{}/taken_over/{}", fact.first, fact.id);
        let mut headers = HeaderMap::new();
        headers.insert(header::DATA_CONTENT_TYPE, "application/json");
        headers.insert(header::ID, id.as_str());
        headers.insert(header::SOURCE, "urn:cim-leaf-hub");
        headers.insert(header::SPECVERSION, "1.0");
        headers.insert(header::SUBJECT, fact.first.as_str());
        headers.insert(header::TIME, Timestamp::now().to_string().as_str());
        headers.insert(header::TYPE, "cim.fleet.taken_over.v1");
        headers.insert("Nats-Expected-Last-Subject-Sequence", "0");
        self.put(&self.streams.facts, &subject, headers, to_json(fact))
            .await
    }

    async fn make(&self) -> Result<(), StreamError> {
        let Streams {
            leases,
            statuses,
            facts,
        } = &self.streams;
        for stream in [leases, statuses, facts] {
            stream.make().await?;
        }
        Ok(())
    }

    /// Stores a message. A stream that is lost is made anew.
    async fn put(
        &self,
        stream: &Kept,
        subject: &str,
        mut headers: HeaderMap,
        body: Vec<u8>,
    ) -> Result<(), StreamError> {
        self.fence.check()?;
        if headers.is_empty() {
            headers.insert(header::CONTENT_TYPE, "application/json");
        }
        stream.put(subject, headers, Bytes::from(body)).await.map(drop)
    }

    /// Reads all messages of a stream.
    async fn messages(&self, stream: &str) -> Result<Vec<async_nats::Message>, StreamError> {
        let what = format!("DIRECT.GET.{stream}");
        let subject = format!("{}.{what}", self.link.api_prefix());
        let failed = |error| match error {
            PageError::Request(error) => request_error(error, &what, self.link.domain()),
            PageError::TooMuch => StreamError::Server {
                code: 0,
                description: format!("{what}: more messages than were asked for"),
            },
            PageError::Refused { code, description } => StreamError::Server {
                code: code.into(),
                description,
            },
        };
        let (mut all, mut next) = (Vec::new(), 1);
        loop {
            let body = json!({ "seq": next });
            let mut request = PageRequest::ask(&self.link, &subject, body, PAGE)
                .await
                .map_err(failed)?;
            let page = request.collect().await.map_err(failed)?;
            match page
                .messages
                .last()
                .and_then(|last| number(last, "Nats-Sequence"))
            {
                Some(last) => next = last + 1,
                None => return Ok(all),
            }
            all.extend(page.messages);
            if page.end {
                return Ok(all);
            }
        }
    }
}

/// The streams of the registry.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    leases: Kept,
    statuses: Kept,
    facts: Kept,
}

impl Streams {
    pub(super) fn new(link: &Link) -> Self {
        let kept = |kind| Kept::new(link.clone(), kind);
        Self {
            leases: kept(leases()),
            statuses: kept(fleet_bucket()),
            facts: kept(fleet_events()),
        }
    }
}

fn leases() -> Kind {
    Kind {
        config: Config {
            description: Some("the last beat of every leaf that was ever here".to_owned()),
            storage: StorageType::File,
            ..last_of_each_subject(LEASE_STREAM.to_owned())
        },
        what: "beat",
        stored: without_wildcard(&subject::beats()),
        written_before: subject::written_beats_before(),
    }
}

fn fleet_bucket() -> Kind {
    Kind {
        config: Config {
            description: Some("the state of the copy of each leaf".to_owned()),
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            ..last_of_each_subject(format!("KV_{FLEET_BUCKET}"))
        },
        what: "fleet",
        stored: without_wildcard(&subject::copy_statuses()),
        written_before: subject::copy_statuses(),
    }
}

fn fleet_events() -> Kind {
    Kind {
        config: Config {
            name: FLEET_STREAM.to_owned(),
            description: Some("what happened to the leaves and their copies".to_owned()),
            max_bytes: FLEET_BYTES,
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
            // The active agent hears what a person's command has done.
            republish: Some(Republish {
                source: subject::fleet_facts(),
                destination: subject::fleet_facts(),
                headers_only: false,
            }),
            ..Config::default()
        },
        what: "fact",
        stored: without_wildcard(&subject::fleet_facts()),
        written_before: subject::fleet_facts(),
    }
}

/// Returns the age of a message that was stored at this time: none if a clock that was set back makes it seem to be of the future.
fn age(now: Timestamp, stored: Timestamp) -> Duration {
    now.duration_since(stored).try_into().unwrap_or_default()
}

/// Returns the beginning of these subjects, without the last dot.
fn without_wildcard(subjects: &str) -> String {
    subjects.trim_end_matches(['.', '*', '>']).to_owned()
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan as _;

    use super::*;

    #[test]
    fn a_claim_has_an_age_also_after_the_hubs_clock_was_set() {
        let stored: Timestamp = "2026-03-01T12:00:00Z".parse().expect("a time");
        let weeks = (24 * 30).hours();
        assert_eq!(age(stored + 10.seconds(), stored), Duration::from_secs(10));
        assert_eq!(age(stored + weeks, stored), Duration::from_secs(24 * 30 * 3600));
        assert_eq!(age(stored - weeks, stored), Duration::ZERO);
    }
}
