//! The stream: deleted, or written by somebody else.

use anyhow::ensure;
use leaf_bus::connect::Bus;
use leaf_bus::stream::{EventStream, StreamSettings};
use leaf_core::command::CancelJob;
use leaf_core::event::{Event, EventRecord, Fact, LeafStopped};
use leaf_core::id::InstanceId;
use leaf_core::subject;

use super::journal::{add_unpublished, open};
use super::load;
use crate::support::{Hub, LIMIT, TestLeaf, until};

async fn delete(leaf: &TestLeaf) -> anyhow::Result<()> {
    let nats = leaf.nats_as_leafd().await?;
    let name = subject::event_stream(&leaf.name);
    let deleted = async_nats::jetstream::new(nats).delete_stream(&name).await?;
    ensure!(deleted.success, "{name} is deleted");
    Ok(())
}

pub(super) async fn deleted_while_running() -> anyhow::Result<()> {
    let (mut leaf, job) = load::busy_leaf(load::setup()).await?;
    load::work(&mut leaf).await?;
    delete(&leaf).await?;
    leaf.call(&CancelJob { id: job }).await?;
    filled_again(&mut leaf).await
}

pub(super) async fn deleted_while_at_rest() -> anyhow::Result<()> {
    let (mut leaf, _) = load::busy_leaf(load::setup()).await?;
    load::work(&mut leaf).await?;
    leaf.published().await?;
    delete(&leaf).await?;
    filled_again(&mut leaf).await
}

pub(super) async fn deleted_while_stopped() -> anyhow::Result<()> {
    let (mut leaf, _) = load::busy_leaf(load::setup()).await?;
    load::work(&mut leaf).await?;
    // Its server lives on.
    leaf.kill().await?;
    delete(&leaf).await?;
    leaf.start_again().await?;
    filled_again(&mut leaf).await
}

/// All is there from 1 on, and gives what the leaf shows.
async fn filled_again(leaf: &mut TestLeaf) -> anyhow::Result<()> {
    let last = leaf.show().await?.sequence;
    let client = leaf.client().await?;
    let name = leaf.name.clone();
    until("the stream is filled again", async || {
        Ok((client.last_sequence(&name).await? >= last).then_some(()))
    })
    .await?;
    leaf.published().await?;
    let events = leaf.complete_events(1).await?;
    load::check_shown(leaf, &TestLeaf::replay(&events)?).await
}

pub(super) async fn deleted_after_the_journal_let_go() -> anyhow::Result<()> {
    let (mut leaf, _) = load::busy_leaf(load::setup()).await?;
    load::work(&mut leaf).await?;
    leaf.published().await?;
    leaf.kill().await?;
    let journal = open(&leaf).await?;
    let gone = journal.last_sequence() - 10;
    // As the leaf does it by itself, ten minutes later.
    journal.forget_events(gone).await?;
    journal.close().await;
    delete(&leaf).await?;
    leaf.start_again().await?;
    let snapshot = until("a snapshot is in the stream", async || {
        leaf.published().await?;
        let events = leaf.events().await?;
        let found = events
            .iter()
            .find(|event| event.kind() == Some("cim.leaf.leaf.snapshotted.v1"));
        Ok(found.map(|event| event.sequence))
    })
    .await;
    let snapshot = leaf.with_log(snapshot)?;
    let events = leaf.complete_events(gone + 1).await?;
    ensure!(!events.is_empty());
    let since = |sequence: u64| -> Vec<EventRecord> {
        let since = events.iter().filter(|event| event.sequence >= sequence);
        since.cloned().collect()
    };
    load::check_shown(&mut leaf, &TestLeaf::replay(&since(snapshot))?).await?;
    load::work(&mut leaf).await?;
    leaf.restart().await?;
    leaf.published().await?;
    let events = leaf.complete_events(gone + 1).await?;
    let since: Vec<EventRecord> = events
        .into_iter()
        .filter(|event| event.sequence >= snapshot)
        .collect();
    load::check_shown(&mut leaf, &TestLeaf::replay(&since)?).await
}

/// What another leaf of the name would write under this number.
fn foreign(leaf: &TestLeaf, epoch: u64, sequence: u64) -> EventRecord {
    let event = Event {
        sequence,
        time: jiff::Timestamp::now(),
        causation: None,
        correlation: Some("foreign".to_owned()),
        fact: Fact::from(LeafStopped {
            instance: InstanceId(uuid::Uuid::nil()),
            reason: "another leaf of this name".to_owned(),
        }),
    };
    event.to_record(&leaf.name, epoch)
}

pub(super) async fn publish(leaf: &TestLeaf, record: &EventRecord) -> anyhow::Result<u64> {
    let nats = leaf.nats_as_leafd().await?;
    let mut headers = async_nats::HeaderMap::new();
    for (name, value) in record.headers.iter() {
        headers.insert(name, value);
    }
    let body = record.body.clone().into();
    let jetstream = async_nats::jetstream::new(nats);
    let ack = jetstream
        .publish_with_headers(record.subject.clone(), headers, body)
        .await?
        .await?;
    Ok(ack.sequence)
}

/// The journal has an event that was not published, and somebody else's has its number in the stream.
pub(super) async fn another_event_under_our_number() -> anyhow::Result<()> {
    foreign_events(1, 1).await
}

/// The same, and the other wrote more than we have.
pub(super) async fn another_history_that_is_longer() -> anyhow::Result<()> {
    foreign_events(1, 3).await
}

async fn foreign_events(ours: u64, theirs: u64) -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let epoch = leaf.show().await?.epoch;
    leaf.published().await?;
    leaf.kill().await?;
    let last = add_unpublished(&leaf, ours).await? - ours;
    for sequence in last + 1..=last + theirs {
        let stored = publish(&leaf, &foreign(&leaf, epoch, sequence)).await?;
        ensure!(stored == sequence, "{stored} is not {sequence}");
    }
    let before = leaf_events_by_nats(&leaf).await?;
    leaf.launch_again()?;
    leaf.refuses(&[
        &format!(
            "the stream has a different event with the sequence number {}",
            last + ours
        ),
        "another leaf of this name, or a copy",
        "publishing has stopped",
    ])
    .await?;
    ensure!(!before.is_empty());
    Ok(())
}

/// What is no event of this history is not taken over, though the stream is ahead.
pub(super) async fn what_is_not_of_this_history() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let epoch = leaf.show().await?.epoch;
    leaf.published().await?;
    leaf.kill().await?;
    let journal = open(&leaf).await?;
    let last = journal.last_sequence();
    journal.close().await;
    publish(&leaf, &foreign(&leaf, epoch + 1, last + 1)).await?;
    leaf.launch_again()?;
    leaf.refuses(&[
        &format!("the stream's event {} is not of this leaf's history", last + 1),
        "publishing has stopped",
    ])
    .await
}

/// The stream of a leaf without a history begins with another program's message.
pub(super) async fn a_foreign_first_message() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let bus = Bus::connect(&hub.streams()).await?;
    tokio::time::timeout(LIMIT, bus.connected()).await?;
    EventStream::ensure(&bus, &hub.leaf, StreamSettings::default(), 1).await?;
    let context = async_nats::jetstream::new(hub.nats_of_streams().await?);
    let event = format!("leaf.v1.evt.{}.leaf.x.made", hub.leaf);
    context.publish(event, "hello".into()).await?.await?;
    let name = subject::event_stream(&hub.leaf);
    let mut leaf = hub.setup().launch().await?;
    leaf.refuses(&[
        &format!("the message 1 of the stream {name} is not an event of a leaf"),
        "Keep that program from publishing into the stream",
        &format!("`nats stream rm {name}`"),
    ])
    .await?;
    // As it says.
    context.delete_stream(&name).await?;
    leaf.start_again().await?;
    leaf.published().await.map(drop)
}

/// Names and numbers of what is in the stream, without leafd.
async fn leaf_events_by_nats(leaf: &TestLeaf) -> anyhow::Result<Vec<u64>> {
    let nats = leaf.nats_as_leafd().await?;
    let name = subject::event_stream(&leaf.name);
    let info = async_nats::jetstream::new(nats).get_stream(&name).await?;
    let state = &info.cached_info().state;
    Ok((state.first_sequence..=state.last_sequence).collect())
}
