//! The lease on a leaf's name: a beat in the stream `LEASES`, which expires unless it is renewed.
//!
//! A lease is not a lock: on one host the state directory is locked, and the stream's expected sequence is the fence.
//! The lease yields a clear error message, and lists the leaves that are running.
//!
//! The stream is in memory and without a size where the account's limits allow that, else in files, or with a size.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use leaf_core::beat::{Beat, LEASE_SECONDS};
use leaf_core::event::header;
use leaf_core::id::LeafName;
use leaf_core::json::to_json;
use leaf_core::subject::{self, LEASE_STREAM};
use serde_json::json;

use crate::connect::Bus;
use crate::jetstream::{API_TIMEOUT, last_of_each_subject};
use crate::link::Link;
use crate::stream_error::StreamError;

/// The sizes of a stream with a size, in bytes: for the beats of some thousand leaves, and of some hundred.
const SIZES: [i64; 2] = [1 << 20, 64 << 10];

/// Why the lease could not be taken or renewed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Another instance holds it.
    #[error("the leaf {} is held by another leafd (instance {}) on {} since {}: stop that one, or give this one another name", .0.leaf, .0.instance, .0.hostname, .0.started_at)]
    HeldBy(Box<Beat>),
    /// The stream of leases failed.
    #[error("can't take or renew the lease")]
    Stream(#[from] StreamError),
}

/// A lease that this instance holds.
#[derive(Debug)]
pub struct Lease {
    link: Link,
    leaf: LeafName,
    sequence: u64,
}

impl Lease {
    /// Takes the lease on a leaf's name. `may_take_over` also takes one that another instance holds, if the caller
    /// knows that instance to be dead.
    ///
    /// # Errors
    /// [`LeaseError::HeldBy`] if another instance holds it, which lasts until [`LEASE_SECONDS`] after its last beat.
    pub async fn acquire(bus: &Bus, beat: &Beat, may_take_over: bool) -> Result<Self, LeaseError> {
        ensure(&bus.store).await?;
        let mut lease = Self {
            link: bus.store.clone(),
            leaf: beat.leaf.clone(),
            sequence: 0,
        };
        let found = lease.last().await?;
        if let Some((sequence, holder)) = found {
            if holder.instance != beat.instance && !may_take_over {
                return Err(LeaseError::HeldBy(Box::new(holder)));
            }
            lease.sequence = sequence;
        }
        lease.put(beat).await?;
        Ok(lease)
    }

    /// Renews it. A lease that expired in the meantime, and that no other instance holds, is taken again.
    ///
    /// # Errors
    /// [`LeaseError::HeldBy`] if another instance holds it now: this one must stop.
    pub async fn renew(&mut self, beat: &Beat) -> Result<(), LeaseError> {
        self.put(beat).await
    }

    /// Releases it, so that the next instance need not wait.
    ///
    /// # Errors
    /// [`LeaseError::Stream`]; the lease expires anyway.
    pub async fn release(self) -> Result<(), LeaseError> {
        // Only our own beat: a newer one has another sequence number.
        let body = json!({ "seq": self.sequence, "no_erase": true });
        let what = format!("STREAM.MSG.DELETE.{LEASE_STREAM}");
        match self
            .link
            .api::<serde_json::Value>(&what, &body, API_TIMEOUT)
            .await
        {
            Ok(_) | Err(StreamError::Server { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Publishes the beat if the stream's last one is the known one; otherwise reads it and tries once more.
    async fn put(&mut self, beat: &Beat) -> Result<(), LeaseError> {
        for attempt in 0..3 {
            let error = match self.publish(beat).await {
                Ok(sequence) => {
                    self.sequence = sequence;
                    return Ok(());
                }
                Err(error) => error,
            };
            match error {
                StreamError::WrongLastSequence { .. } if attempt < 2 => match self.last().await? {
                    None => self.sequence = 0,
                    Some((sequence, holder)) if holder.instance == beat.instance => self.sequence = sequence,
                    Some((_, holder)) => return Err(LeaseError::HeldBy(Box::new(holder))),
                },
                // The stream does not exist any more (another disk, a new server): create it again.
                StreamError::NoStream { .. } if attempt < 2 => {
                    ensure(&self.link).await?;
                    self.sequence = 0;
                }
                error => return Err(error.into()),
            }
        }
        Err(StreamError::WrongLastSequence { actual: None }.into())
    }

    async fn publish(&self, beat: &Beat) -> Result<u64, StreamError> {
        let body = to_json(beat);
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "application/json");
        headers.insert("Nats-Expected-Last-Subject-Sequence", self.sequence.to_string());
        headers.insert("Nats-Expected-Stream", LEASE_STREAM);
        self.link
            .publish_acked(LEASE_STREAM, &subject::beat(&self.leaf), headers, body.into())
            .await
    }

    /// Returns the last beat and its sequence number; one that can't be read has no holder.
    async fn last(&self) -> Result<Option<(u64, Beat)>, StreamError> {
        let which = json!({ "last_by_subj": subject::beat(&self.leaf) });
        let Some(message) = self.link.get_message(LEASE_STREAM, &which).await? else {
            return Ok(None);
        };
        match serde_json::from_slice(&message.payload) {
            Ok(beat) => Ok(Some((message.sequence, beat))),
            Err(_) => Err(StreamError::NotAnEvent {
                stream: LEASE_STREAM.to_owned(),
                sequence: message.sequence,
            }),
        }
    }
}

/// Creates the stream of leases, which all leaves share.
async fn ensure(link: &Link) -> Result<(), StreamError> {
    let desired = Config {
        description: Some("the last beat of every leaf".to_owned()),
        max_age: Duration::from_secs(LEASE_SECONDS),
        duplicate_window: Duration::from_secs(LEASE_SECONDS),
        storage: StorageType::Memory,
        discard: DiscardPolicy::Old,
        subjects: vec![subject::beats()],
        ..last_of_each_subject(LEASE_STREAM.to_owned())
    };
    let differs = |found: &Config| {
        (found.subjects != desired.subjects).then(|| format!("its subjects are {:?}", found.subjects))
    };
    let merge = |found: &mut Config| {
        found.max_age = desired.max_age;
        found.duplicate_window = desired.duplicate_window;
        found.max_messages_per_subject = 1;
        found.allow_direct = true;
    };
    let mut others = Vec::new();
    for storage in [StorageType::Memory, StorageType::File] {
        for max_bytes in [-1, SIZES[0], SIZES[1]] {
            others.push(Config {
                storage,
                max_bytes,
                ..desired.clone()
            });
        }
    }
    link.ensure_stream_in_a_form(&desired, others, differs, merge)
        .await
        .map(|_| ())
}
