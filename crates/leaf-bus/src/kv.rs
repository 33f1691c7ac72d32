//! The bucket `leaf_state`: the current state of each leaf by key, for watchers. It is a view of the events, written
//! after them. It has no size, unless the account's limits require one.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Republish, StorageType};
use bytes::Bytes;
use futures::StreamExt as _;
use leaf_core::id::LeafName;
use leaf_core::state::fit_entry;
use leaf_core::subject;
use serde_json::Value;

use crate::client_error::{ClientError, read_json};
use crate::connect::Bus;
use crate::jetstream::{API_TIMEOUT, last_of_each_subject, read_ack};
use crate::link::{Link, Wait};
use crate::parts;
use crate::stream_error::{RequestError, StreamError, publish_error, request_error};

/// The number of entries that may be unacknowledged at once.
const BATCH: usize = 256;

/// The sizes of a bucket with a size, in bytes: the first one that the account's limits allow.
const SIZES: [i64; 4] = [256 << 20, 64 << 20, 16 << 20, 4 << 20];

/// The bucket, for one leaf to write.
#[derive(Debug, Clone)]
pub struct StateBucket {
    link: Link,
    leaf: LeafName,
}

impl StateBucket {
    /// Creates the bucket if it does not exist, and returns it for a leaf.
    ///
    /// # Errors
    /// [`StreamError`], also if a stream of its name has other settings.
    pub async fn ensure(bus: &Bus, leaf: &LeafName) -> Result<Self, StreamError> {
        let desired = config();
        let differs = |found: &Config| {
            (found.subjects != desired.subjects || found.max_messages_per_subject < 1).then(|| {
                format!(
                    "it is not a key-value bucket (its subjects are {:?})",
                    found.subjects
                )
            })
        };
        let merge = |found: &mut Config| {
            found.allow_direct = true;
            found.allow_rollup = true;
            found.deny_delete = true;
            found.republish.clone_from(&desired.republish);
        };
        let others = SIZES.map(|max_bytes| Config {
            max_bytes,
            ..desired.clone()
        });
        bus.store
            .ensure_stream_in_a_form(&desired, others, differs, merge)
            .await?;
        Ok(Self {
            link: bus.store.clone(),
            leaf: leaf.clone(),
        })
    }

    /// Writes these entries of the leaf's state, which are JSON, and removes those without a value. Returns when all
    /// are stored. After an error some may be stored; the call can be repeated.
    ///
    /// # Errors
    /// The [`StreamError`] of the first entry that could not be stored.
    pub async fn apply(&self, entries: &[(String, Option<Bytes>)]) -> Result<(), StreamError> {
        let fitting = entries.iter().map(|(key, value)| {
            let value = value.as_ref().and_then(|value| self.fit(key, value));
            (self.subject(key), value)
        });
        write(&self.link, &fitting.collect::<Vec<_>>()).await
    }

    /// Writes the complete state of the leaf: removes other entries, and leaves equal ones unchanged.
    ///
    /// # Errors
    /// The [`StreamError`] of the first entry that could not be read or stored.
    pub async fn replace(&self, state: &BTreeMap<String, Bytes>) -> Result<(), StreamError> {
        let found = read(&self.link, &self.leaf).await?;
        let fitting = |(key, value): (&String, &Bytes)| Some((key.clone(), self.fit(key, value)?));
        let state: BTreeMap<String, Bytes> = state.iter().filter_map(fitting).collect();
        let gone = found
            .keys()
            .filter(|key| !state.contains_key(*key))
            .map(|key| (key.clone(), None));
        let read = |body: &[u8]| serde_json::from_slice::<Value>(body).ok();
        let changed = state.iter().filter(|(key, value)| {
            let found = found.get(*key);
            found.is_none_or(|found| found != *value && read(found) != read(value))
        });
        let entries: Vec<_> = gone
            .chain(changed.map(|(k, v)| (k.clone(), Some(v.clone()))))
            .collect();
        self.apply(&entries).await
    }

    /// Returns an entry as the server accepts it: without the oldest revisions, if it is too large; `None` if it is too large
    /// without them, too.
    fn fit(&self, key: &str, value: &Bytes) -> Option<Bytes> {
        let room = parts::room(self.link.client().max_payload());
        if value.len() <= room {
            return Some(value.clone());
        }
        let fitting = fit_entry(value, room);
        if fitting.is_none() {
            tracing::warn!(
                key,
                bytes = value.len(),
                room,
                "an entry of the state is missing in the bucket `leaf_state`, since the NATS server accepts only smaller \
                 messages: raise its `max_payload`"
            );
        }
        fitting.map(Bytes::from)
    }

    fn subject(&self, key: &str) -> String {
        let prefix = match self.link.domain() {
            Some(_) => format!("{}.", self.link.api_prefix()),
            None => String::new(),
        };
        prefix + &subject::state_key(&self.leaf, key)
    }
}

/// Returns the current state of a leaf.
pub(crate) async fn entries(link: &Link, leaf: &LeafName) -> Result<BTreeMap<String, Value>, ClientError> {
    let read = match read(link, leaf).await {
        Err(StreamError::NoStream { .. }) => BTreeMap::new(),
        other => other?,
    };
    read.into_iter()
        .map(|(key, body)| Ok((key.clone(), read_json(&key, &body)?)))
        .collect()
}

/// Writes entries, each with its subject, and removes those without a value. Returns when all are stored.
pub(crate) async fn write(link: &Link, entries: &[(String, Option<Bytes>)]) -> Result<(), StreamError> {
    for batch in entries.chunks(BATCH) {
        write_batch(link, batch).await?;
    }
    Ok(())
}

async fn write_batch(link: &Link, batch: &[(String, Option<Bytes>)]) -> Result<(), StreamError> {
    if !link.is_connected() {
        return Err(StreamError::Disconnected);
    }
    let stream = subject::state_stream();
    let mut wait = Wait::new(link);
    let inbox = link.new_inbox();
    let mut acks = link.subscribe(inbox.clone()).await?;
    for (subject, value) in batch {
        let (headers, body) = match value {
            Some(value) => (HeaderMap::new(), value.clone()),
            None => (
                HeaderMap::from_iter([(
                    "KV-Operation".parse().expect("a header's name"),
                    "DEL".parse().expect("a header's value"),
                )]),
                Bytes::new(),
            ),
        };
        let sent = link
            .client()
            .publish_with_reply_and_headers(subject.clone(), inbox.clone(), headers, body)
            .await;
        sent.map_err(|e| request_error(publish_error(&e), &stream, link.domain()))?;
    }
    let what = "the state's entries";
    let last_subject = batch.last().map_or("", |(subject, _)| subject);
    for _ in batch {
        let message = tokio::select! {
            biased;
            message = acks.next() => message.ok_or(StreamError::Disconnected)?,
            error = wait.trouble(link, last_subject) => return Err(request_error(error, what, link.domain())),
            () = tokio::time::sleep(API_TIMEOUT) => return Err(request_error(RequestError::TimedOut, what, link.domain())),
        };
        if message.status.is_some() {
            return Err(StreamError::NoStream { stream });
        }
        read_ack(&message.payload, &stream)?;
    }
    Ok(())
}

/// Returns the entries of a leaf in the bucket, by key.
pub(crate) async fn read(link: &Link, leaf: &LeafName) -> Result<BTreeMap<String, Vec<u8>>, StreamError> {
    let all = subject::state_keys_of(leaf);
    let mut pages = link.read_from(&subject::state_stream(), 1, Some(&all));
    let mut found = BTreeMap::new();
    while let Some(message) = pages.next().await? {
        let Some(key) = subject::key_of_state(leaf, &message.subject) else {
            continue;
        };
        // A value is JSON and never empty; an empty body marks a removed entry.
        if message.body.is_empty() {
            found.remove(key);
        } else {
            found.insert(key.to_owned(), message.body);
        }
    }
    Ok(found)
}

/// The settings of a bucket as all NATS clients expect them (ADR-8). Its changes are published again under subjects of a
/// leaf, since `$KV.>` does not cross the connection to a hub.
fn config() -> Config {
    Config {
        // Stands on the wire, and stays as it is.
        description: Some("what is so now of each leaf".to_owned()),
        storage: StorageType::File,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        republish: Some(Republish {
            source: format!("$KV.{}.*.>", subject::STATE_BUCKET),
            destination: subject::state_changes().replace('*', "{{wildcard(1)}}"),
            headers_only: false,
        }),
        subjects: vec![subject::state_keys()],
        ..last_of_each_subject(subject::state_stream())
    }
}
