//! A foreign message in the stream while events of the leaf are under way: it is found, whatever was stored after it.

use anyhow::{Context as _, bail, ensure};
use leaf_bus::connect::Bus;
use leaf_bus::stream::{EventStream, StreamSettings};
use leaf_core::event::{Event, EventRecord, Fact, LeafStopped};
use leaf_core::id::InstanceId;
use leaf_core::state::State;
use leaf_core::subject;
use leaf_journal::{Batch, Journal, Opened, Options};
use leafd::publisher::{EventPublisher, FencedError, Published};
use leafd::recovery;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::support::{Hub, LIMIT, until};

/// A server, and a journal whose events are published to it.
struct Site {
    hub: Hub,
    journal: Journal,
    opened: Opened,
    _directory: tempfile::TempDir,
}

impl Site {
    async fn start() -> anyhow::Result<Self> {
        let hub = Hub::start().await?;
        let directory = tempfile::tempdir()?;
        let options = Options {
            leaf: hub.leaf.clone(),
            epoch_if_new: 1_760_000_000_000,
            cache_bytes: 1 << 20,
            holder: "a test".to_owned(),
        };
        let (journal, opened) = Journal::open(directory.path(), &options)?;
        Ok(Self {
            hub,
            journal,
            opened,
            _directory: directory,
        })
    }

    fn record(&self, sequence: u64) -> EventRecord {
        let event = Event {
            sequence,
            time: jiff::Timestamp::UNIX_EPOCH,
            causation: None,
            correlation: None,
            fact: Fact::from(LeafStopped {
                instance: InstanceId(uuid::Uuid::nil()),
                reason: format!("event {sequence}"),
            }),
        };
        event.to_record(&self.hub.leaf, self.journal.epoch())
    }

    /// Commits this many events at once, and returns the last number.
    async fn commit(&self, events: u64) -> anyhow::Result<u64> {
        let first = self.journal.last_sequence() + 1;
        let batch = Batch {
            events: (first..first + events).map(|n| self.record(n)).collect(),
            ..Batch::default()
        };
        self.journal.commit(batch).await?;
        Ok(self.journal.last_sequence())
    }

    fn publisher(&self) -> (EventPublisher, watch::Receiver<Published>) {
        let (published_at, published) = watch::channel(Published::default());
        let publisher = EventPublisher {
            connect: self.hub.streams(),
            leaf: self.hub.leaf.clone(),
            journal: self.journal.clone(),
            settings: StreamSettings::default(),
            published: published_at,
            silent: mpsc::channel(1).0,
        };
        (publisher, published)
    }

    /// Writes into the stream what another program of the leaf's user might, and returns its number.
    async fn write(&self, record: Option<&EventRecord>) -> anyhow::Result<u64> {
        let jetstream = async_nats::jetstream::new(self.hub.nats_of_streams().await?);
        let mut headers = async_nats::HeaderMap::new();
        let (subject, body) = match record {
            Some(record) => {
                for (name, value) in record.headers.iter() {
                    headers.insert(name, value);
                }
                (record.subject.clone(), record.body.clone())
            }
            None => (
                subject::events_of(&self.hub.leaf).replace('>', "leaf.foreign.stopped"),
                b"not an event of this leaf".to_vec(),
            ),
        };
        let sent = jetstream.publish_with_headers(subject, headers, body.into());
        Ok(sent.await?.await?.sequence)
    }
}

/// Fails unless the publisher stops because of the event with this number.
fn must_name(outcome: anyhow::Result<()>, foreign: u64) -> anyhow::Result<()> {
    let error = outcome.err().context("it ended without an error")?;
    match error.downcast_ref() {
        Some(FencedError::Differs { sequence }) if *sequence == foreign => Ok(()),
        _ => bail!("it does not name event {foreign}: {error:#}"),
    }
}

/// In a live session, and after a restart that comes while the events are under way.
pub(super) async fn amid_events_under_way() -> anyhow::Result<()> {
    for round in 0..24 {
        let (before, under_way, restart) = (round % 4, 2 + round % 3, round % 2 == 1);
        found(before, under_way, restart)
            .await
            .with_context(|| format!("{before} events before, {under_way} under way, restart: {restart}"))?;
    }
    Ok(())
}

async fn found(before: u64, under_way: u64, restart: bool) -> anyhow::Result<()> {
    let site = Site::start().await?;
    if before > 0 {
        site.commit(before).await?;
    }
    let (publisher, mut published) = site.publisher();
    let mut running = JoinSet::new();
    let task = running.spawn(publisher.run());
    let aligned = published.wait_for(|known| known.first > 0 && known.sequence == before);
    tokio::time::timeout(LIMIT, aligned).await??;
    ensure!(site.write(None).await? == before + 1);
    let last = site.commit(under_way).await?;
    if restart {
        let bus = Bus::connect(&site.hub.streams()).await?;
        tokio::time::timeout(LIMIT, bus.connected()).await?;
        let settings = StreamSettings::default();
        let (stream, _) = EventStream::ensure(&bus, &site.hub.leaf, settings, 1).await?;
        until("the events behind it are stored", async || {
            Ok((task.is_finished() || stream.state().await?.last_sequence == last).then_some(()))
        })
        .await?;
        running.shutdown().await;
        let (publisher, published_again) = site.publisher();
        published = published_again;
        running.spawn(publisher.run());
    }
    let went_on = published.wait_for(|known| known.sequence == last);
    let outcome = tokio::select! {
        biased;
        outcome = running.join_next() => outcome.context("it runs")??,
        Ok(_) = went_on => bail!("it went on, though event {} is foreign", before + 1),
        () = tokio::time::sleep(LIMIT) => bail!("it neither went on nor ended"),
    };
    must_name(outcome, before + 1)
}

/// The stream is ahead of a journal that has the foreign message's number amid its own.
pub(super) async fn before_an_import() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let bus = Bus::connect(&site.hub.streams()).await?;
    tokio::time::timeout(LIMIT, bus.connected()).await?;
    let settings = StreamSettings::default();
    EventStream::ensure(&bus, &site.hub.leaf, settings.clone(), 1).await?;
    site.commit(4).await?;
    for sequence in 1..=6 {
        let ours = site.record(sequence);
        site.write((sequence != 2).then_some(&ours)).await?;
    }
    let state = State::from_entries(site.journal.last_sequence(), site.opened.entries.clone());
    let recovered = recovery::recover(&bus, &site.hub.leaf, &site.journal, &state, &settings).await;
    must_name(recovered.map(drop), 2)?;
    ensure!(site.journal.last_sequence() == 4, "nothing was imported");
    Ok(())
}

/// What was confirmed is not compared again at each connection, and a publisher that starts anew goes on.
pub(super) async fn own_events_are_no_reason_to_stop() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut last = 0;
    for _ in 0..4 {
        let (publisher, mut published) = site.publisher();
        let mut running = JoinSet::new();
        running.spawn(publisher.run());
        for events in [1, 700, 3] {
            last = site.commit(events).await?;
            let reached = published.wait_for(|known| known.sequence == last);
            tokio::time::timeout(LIMIT, reached)
                .await
                .with_context(|| format!("event {last}"))??;
        }
        // One that dies with events under way.
        last = site.commit(600).await?;
        running.shutdown().await;
    }
    let (publisher, mut published) = site.publisher();
    let mut running = JoinSet::new();
    running.spawn(publisher.run());
    let reached = published.wait_for(|known| known.sequence == last);
    tokio::time::timeout(LIMIT, reached).await??;
    Ok(())
}
