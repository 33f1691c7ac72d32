//! Copies the state into the bucket `leaf_state`: a view for watchers, written after the events.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use leaf_bus::connect::Bus;
use leaf_bus::kv::StateBucket;
use leaf_core::error::chain;
use leaf_core::id::LeafName;
use serde_json::Value;
use tokio::sync::mpsc;

/// How long to wait before trying again.
const PAUSE: Duration = Duration::from_secs(2);

/// Writes changed entries until nobody sends any more. After each new connection the whole state is compared.
pub async fn run(
    bus: Bus,
    leaf: LeafName,
    state: BTreeMap<String, Value>,
    mut changes: mpsc::Receiver<BTreeMap<String, Option<Bytes>>>,
) -> anyhow::Result<()> {
    let json = |(key, value): (String, Value)| (key, Bytes::from(value.to_string()));
    let mut state: BTreeMap<String, Bytes> = state.into_iter().map(json).collect();
    loop {
        bus.connected().await;
        let connection = bus.generation();
        let bucket = match StateBucket::ensure(&bus, &leaf).await {
            Ok(bucket) => bucket,
            Err(error) => {
                tracing::warn!(error = chain(&error), "the bucket of the state can't be used");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        if let Err(error) = bucket.replace(&state).await {
            tracing::debug!(error = chain(&error), "the state was not mirrored");
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        let mut status = bus.status();
        while bus.generation() == connection {
            let changed = tokio::select! {
                changed = changes.recv() => changed,
                // The bucket of another server, or of one that was set back, may be another.
                Ok(()) = status.changed() => continue,
            };
            let Some(changed) = changed else {
                return std::future::pending().await;
            };
            take_in(&mut state, &changed);
            let entries: Vec<_> = changed.into_iter().collect();
            if let Err(error) = bucket.apply(&entries).await {
                tracing::debug!(error = chain(&error), "the state was not mirrored");
                tokio::time::sleep(PAUSE).await;
                break;
            }
        }
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
