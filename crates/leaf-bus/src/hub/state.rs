//! The copy of the leaves' state: the bucket `leaf_state` of the hub.

use std::collections::BTreeMap;

use async_nats::Message;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};
use leaf_core::id::LeafName;
use leaf_core::subject::{self, LinkRead, STATE_BUCKET};
use serde_json::json;

use super::Hub;
use super::active::Fence;
use super::kept::{Kept, Kind};
use super::leaf::{LONGEST_SUBJECT, RemoteError, RemoteLeaf, page_error};
use super::page::{PageRequest, header, number};
use crate::jetstream::last_of_each_subject;
use crate::kv;
use crate::link::Link;
use crate::stream_error::StreamError;

/// How many entries a page has.
const PAGE: u64 = 256;

/// A changed entry of a leaf's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateChange {
    /// Its key, without the leaf's name.
    pub key: String,
    /// Its value; `None` if it was removed.
    pub value: Option<Bytes>,
    /// Its sequence number in the leaf's own bucket.
    pub sequence: u64,
}

/// A page of a leaf's entries.
#[derive(Debug)]
pub struct StatePage {
    /// The entries, in the order of their sequence numbers.
    pub changes: Vec<StateChange>,
    /// Whether the bucket has no more.
    pub end: bool,
}

/// The live changes of a leaf's state.
#[derive(Debug)]
pub struct LiveState {
    leaf: LeafName,
    subscriber: async_nats::Subscriber,
}

/// The bucket with the state of all leaves, which the agent alone writes.
#[derive(Debug, Clone)]
pub struct StateCopy {
    link: Link,
    fence: Fence,
    stream: Kept,
}

impl Hub {
    /// Makes the bucket if it does not exist, and returns it.
    ///
    /// # Errors
    /// [`StreamError::Foreign`] if a stream of its name has other settings; [`StreamError`].
    pub async fn state_copy(&self) -> Result<StateCopy, StreamError> {
        let copy = self.state_copy_as_it_is();
        copy.stream.make().await?;
        Ok(copy)
    }

    /// Returns the bucket without making it.
    #[must_use]
    pub fn state_copy_as_it_is(&self) -> StateCopy {
        StateCopy {
            link: self.fleet.clone(),
            fence: self.fence(),
            stream: self.states.clone(),
        }
    }
}

impl RemoteLeaf {
    /// Subscribes to the changes of the leaf's state.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn live_state(&self) -> Result<LiveState, StreamError> {
        Ok(LiveState {
            subscriber: self.link.subscribe(subject::state_changes_of(&self.leaf)).await?,
            leaf: self.leaf.clone(),
        })
    }

    /// Reads the last value of each entry that was written with this sequence number of the bucket or a later one.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn state_from(&self, sequence: u64) -> Result<StatePage, RemoteError> {
        let subject = self.reads(LinkRead::StateGet)?;
        let body = json!({
            "seq": sequence,
            "next_by_subj": subject::state_keys_of(&self.leaf),
        });
        let failed = |error| page_error(&self.leaf, error);
        let mut request = PageRequest::ask(&self.link, &subject, body, PAGE)
            .await
            .map_err(failed)?;
        let page = request.collect().await.map_err(failed)?;
        let changes = page.messages.iter().filter_map(|message| {
            let key = subject::key_of_state(&self.leaf, header(message, "Nats-Subject")?)?;
            // It becomes a part of a subject.
            subject::is_literal(key).then(|| change(key, message)).flatten()
        });
        Ok(StatePage {
            changes: changes.collect(),
            end: page.end,
        })
    }
}

impl LiveState {
    /// Returns the next change.
    ///
    /// # Errors
    /// [`StreamError::Disconnected`] when there will be no more.
    pub async fn next(&mut self) -> Result<StateChange, StreamError> {
        loop {
            let message = self.subscriber.next().await.ok_or(StreamError::Disconnected)?;
            if let Some((leaf, key)) = subject::parts_of_state_change(&message.subject)
                && leaf == self.leaf
                && let Some(change) = change(key, &message)
            {
                return Ok(change);
            }
        }
    }
}

impl LiveState {
    /// Returns the next change if it has arrived.
    pub fn arrived(&mut self) -> Option<StateChange> {
        self.next().now_or_never()?.ok()
    }
}

/// Returns a message of a bucket as a change: a value is JSON and never empty.
fn change(key: &str, message: &Message) -> Option<StateChange> {
    if key.len() > LONGEST_SUBJECT {
        return None;
    }
    Some(StateChange {
        key: key.to_owned(),
        value: (!message.payload.is_empty()).then(|| message.payload.clone()),
        sequence: number(message, "Nats-Sequence")?,
    })
}

impl StateCopy {
    /// Returns the copied entries of a leaf.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn entries(&self, leaf: &LeafName) -> Result<BTreeMap<String, Vec<u8>>, StreamError> {
        match kv::read(&self.link, leaf).await {
            // The hub's store was lost.
            Err(StreamError::NoStream { .. }) => {
                self.stream.make().await?;
                kv::read(&self.link, leaf).await
            }
            other => other,
        }
    }

    /// Removes all entries of a leaf, and returns how many there were.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn forget(&self, leaf: &LeafName) -> Result<usize, StreamError> {
        let entries = match kv::read(&self.link, leaf).await {
            Err(StreamError::NoStream { .. }) => return Ok(0),
            other => other?,
        };
        let count = entries.len();
        let gone = entries.into_keys().map(|key| (key, None));
        self.apply(leaf, gone.collect()).await?;
        Ok(count)
    }

    /// Writes entries of a leaf, and removes those without a value. Returns when all are stored.
    ///
    /// # Errors
    /// The [`StreamError`] of the first entry that could not be stored.
    pub async fn apply(
        &self,
        leaf: &LeafName,
        entries: Vec<(String, Option<Bytes>)>,
    ) -> Result<(), StreamError> {
        match self.write(leaf, &entries).await {
            // The hub's store was lost, or is another one.
            Err(StreamError::NoStream { .. }) => {
                self.stream.make().await?;
                self.write(leaf, &entries).await
            }
            other => other,
        }
    }

    async fn write(&self, leaf: &LeafName, entries: &[(String, Option<Bytes>)]) -> Result<(), StreamError> {
        let mut written = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let subject = self.stream.written(&subject::state_key(leaf, key)).await?;
            written.push((subject, value.clone()));
        }
        self.fence.check()?;
        self.stream.noted(kv::write(&self.link, &written).await)
    }
}

/// The bucket as all NATS clients expect it (ADR-8), but for the subjects that it is written on.
pub(super) fn bucket() -> Kind {
    Kind {
        config: Config {
            description: Some("the last value of each entry of each leaf's state".to_owned()),
            storage: StorageType::File,
            discard: DiscardPolicy::New,
            allow_rollup: true,
            deny_delete: true,
            ..last_of_each_subject(subject::state_stream())
        },
        what: "state",
        stored: format!("$KV.{STATE_BUCKET}"),
        written_before: subject::written_states_before(),
    }
}
