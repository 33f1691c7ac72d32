//! Copies the state into the bucket `leaf_state`, a view for watchers that follows the events.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use leaf_bus::connect::Bus;
use leaf_bus::kv::StateBucket;
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::id::LeafName;
use serde_json::Value;
use tokio::sync::mpsc;

/// The pause before a retry.
const PAUSE: Duration = Duration::from_secs(2);

/// The longest pause between two attempts with a bucket that the server refuses.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Writes changed entries until the channel closes. After each new connection the whole state is compared.
pub async fn run(
    bus: Bus,
    leaf: LeafName,
    state: BTreeMap<String, Value>,
    mut changes: mpsc::Receiver<BTreeMap<String, Option<Bytes>>>,
) -> anyhow::Result<()> {
    let json = |(key, value): (String, Value)| (key, Bytes::from(value.to_string()));
    let mut state: BTreeMap<String, Bytes> = state.into_iter().map(json).collect();
    let mut refusals = Refusals::default();
    loop {
        bus.connected().await;
        let connection = bus.generation();
        let bucket = match StateBucket::ensure(&bus, &leaf).await {
            Ok(bucket) => bucket,
            Err(error) => {
                tokio::time::sleep(refusals.pause(&error)).await;
                continue;
            }
        };
        if let Err(error) = bucket.replace(&state).await {
            tokio::time::sleep(refusals.pause(&error)).await;
            continue;
        }
        refusals = Refusals::default();
        let mut status = bus.status();
        while bus.generation() == connection {
            let changed = tokio::select! {
                changed = changes.recv() => changed,
                // After a new connection the bucket may be another server's, or restored from a backup.
                Ok(()) = status.changed() => continue,
            };
            let Some(changed) = changed else {
                return std::future::pending().await;
            };
            take_in(&mut state, &changed);
            let entries: Vec<_> = changed.into_iter().collect();
            if let Err(error) = bucket.apply(&entries).await {
                tokio::time::sleep(refusals.pause(&error)).await;
                break;
            }
        }
    }
}

/// What the server refused in a row.
#[derive(Default)]
struct Refusals {
    pause: Duration,
    last: String,
}

impl Refusals {
    /// Logs an error, once while it stays the same, and returns the pause after it.
    fn pause(&mut self, error: &StreamError) -> Duration {
        let why = chain(error);
        if !error.is_refusal() {
            tracing::debug!(
                error = why,
                "can't copy the state into the bucket `leaf_state` at the moment"
            );
            return PAUSE;
        }
        if self.last != why {
            tracing::warn!(
                error = why,
                "can't copy the state into the bucket `leaf_state`: its watchers get no changes of this leaf"
            );
            self.last = why;
        }
        self.pause = (self.pause * 2).clamp(PAUSE, LONGEST_PAUSE);
        self.pause
    }
}

fn take_in(state: &mut BTreeMap<String, Bytes>, changed: &BTreeMap<String, Option<Bytes>>) {
    for (key, value) in changed {
        match value {
            Some(value) => state.insert(key.clone(), value.clone()),
            None => state.remove(key),
        };
    }
}
