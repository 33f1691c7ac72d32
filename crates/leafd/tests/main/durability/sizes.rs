//! A NATS server that accepts only small messages.

use anyhow::{Context as _, ensure};
use leaf_core::command::{ListHardware, ReadJobLog};

use super::journal::add_unpublished;
use super::load;
use crate::support::{Hub, TestLeaf};

pub(super) async fn of_four_kib() -> anyhow::Result<()> {
    works_with(4 << 10).await
}

pub(super) async fn of_64_kib() -> anyhow::Result<()> {
    works_with(64 << 10).await
}

/// Snapshots are published, lists and the bucket are complete, and problems arrive.
async fn works_with(max_payload: u32) -> anyhow::Result<()> {
    let hub = Hub::start_with(max_payload).await?;
    let mut leaf = hub.setup().set("events.snapshot_every", 100).start().await?;
    leaf.published().await?;
    leaf.stop().await?;
    add_unpublished(&leaf, 120).await?;
    leaf.start_again().await?;
    leaf.published().await?;
    // The next event brings the snapshot.
    leaf.restart().await?;
    leaf.published().await?;
    let events = leaf.complete_events(1).await?;
    let snapshots: Vec<_> = events
        .iter()
        .filter(|event| event.kind() == Some("cim.leaf.leaf.snapshotted.v1"))
        .collect();
    ensure!(!snapshots.is_empty(), "{} events, and no snapshot", events.len());
    for event in &events {
        ensure!(event.wire_bytes() < max_payload as usize, "{event:?}");
    }
    // A list of a whole machine's hardware has some kilobytes.
    let listed = leaf.call(&ListHardware {}).await?.devices.len() as u64;
    ensure!(listed == leaf.show().await?.devices, "{listed}");
    load::check_shown(&mut leaf, &TestLeaf::replay(&events)?).await?;
    let none = leaf_core::id::JobId(uuid::Uuid::nil());
    let problem = leaf.call(&ReadJobLog { id: none, offset: 0 }).await;
    ensure!(
        problem
            .err()
            .context("no such job")?
            .to_string()
            .contains("does not exist"),
        "it says so"
    );
    Ok(())
}
