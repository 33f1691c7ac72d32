//! The stream of events and its publisher, and the bucket of states.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use futures::StreamExt as _;
use leaf_bus::client::{Client, EventsFrom};
use leaf_bus::connect::{Bus, ConnectSettings};
use leaf_bus::identity::daemon_caller;
use leaf_bus::kv::StateBucket;
use leaf_bus::stream::{Comparison, EventStream, StreamError, StreamSettings};
use libtest_mimic::Trial;
use serde_json::json;

use super::{admin, kill, record, record_saying, site_with_daemon, until};
use crate::plain::PlainServer;
use crate::support::{LIMIT, Site, freeze, leaf, runs, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_stream_is_made_once_and_its_settings_follow", ensured),
        trial("a_stream_that_is_not_ours_is_left_alone", foreign),
        trial("a_stream_begins_where_it_is_told_and_can_be_made_again", begins),
        trial("events_come_back_byte_by_byte", read_back),
        trial(
            "a_server_that_answers_for_a_stream_but_not_yet_for_its_messages_is_one_to_wait_for",
            no_messages_yet,
        ),
        trial("a_second_writer_gets_the_wrong_last_sequence", second_writer),
        trial("a_publisher_stops_at_an_event_out_of_order", out_of_order),
        trial("a_stream_that_is_deleted_is_told_apart", deleted),
        trial(
            "events_are_stored_once_and_in_order_while_the_server_is_killed",
            killed,
        ),
        trial("a_full_stream_of_ten_thousand_events_reads_back_in_order", many),
        trial("a_server_that_does_not_answer_a_publish_is_noticed", frozen),
        trial("a_server_without_room_is_told_apart", no_room),
        trial("the_state_bucket_holds_what_is_so_now", bucket),
    ]
}

/// A server of its own, with the daemon connected, and the event stream.
async fn site_with_a_stream() -> anyhow::Result<(Site, Bus, EventStream)> {
    let (site, bus) = site_with_daemon().await?;
    let (stream, _) = EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1).await?;
    Ok((site, bus, stream))
}

async fn ensured() -> anyhow::Result<()> {
    let (site, bus) = site_with_daemon().await?;
    let (_, state) = EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1).await?;
    ensure!(
        state.created && state.first_sequence == 1 && state.last_sequence == 0,
        "{state:?}"
    );
    let (_, state) = EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1).await?;
    ensure!(!state.created);
    let smaller = StreamSettings {
        max_bytes: 4096,
        replicas: 1,
    };
    EventStream::ensure(&bus, &leaf(), smaller, 1).await?;
    let user = site
        .connect(&site.identity.leaf_credentials(), &daemon_caller())
        .await?;
    let info = jetstream::new(user.client)
        .get_stream("EVENTS_edge")
        .await?
        .get_info()
        .await?;
    ensure!(info.config.max_bytes == 4096 && info.config.deny_delete && info.config.deny_purge);
    ensure!(info.config.subjects == ["leaf.v1.evt.edge.>"]);
    Ok(())
}

async fn foreign() -> anyhow::Result<()> {
    use jetstream::stream::StorageType::{File, Memory};
    for (name, subject, storage) in [
        ("EVENTS_edge", "something.else", File),
        ("EVENTS_edge", "leaf.v1.evt.edge.>", Memory),
        ("OTHER", "leaf.v1.evt.*.>", File),
    ] {
        // A server each: one that has just deleted a stream may not be able to create another of the same name yet.
        let (site, bus) = site_with_daemon().await?;
        let user = site
            .connect(&site.identity.leaf_credentials(), &daemon_caller())
            .await?;
        let config = jetstream::stream::Config {
            name: name.to_owned(),
            subjects: vec![subject.to_owned()],
            storage,
            ..Default::default()
        };
        jetstream::new(user.client.clone()).create_stream(config).await?;
        let error = EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1)
            .await
            .expect_err("not ours");
        ensure!(
            matches!(error, StreamError::Foreign { .. }),
            "{name} {subject}: {error:?}"
        );
    }
    Ok(())
}

async fn begins() -> anyhow::Result<()> {
    let (_site, bus) = site_with_daemon().await?;
    let (stream, state) = EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 100).await?;
    ensure!(
        state.first_sequence == 100 && state.last_sequence == 99 && state.events == 0,
        "{state:?}"
    );
    let mut publisher = stream.publisher(99).await?;
    publisher.publish(record(100)).await?;
    ensure!(publisher.settle().await? == 100);
    let state = stream.recreate(1).await?;
    ensure!(
        state.created && state.last_sequence == 0 && state.first_sequence == 1,
        "{state:?}"
    );
    Ok(())
}

async fn read_back() -> anyhow::Result<()> {
    let (_site, _bus, stream) = site_with_a_stream().await?;
    ensure!(stream.last().await?.is_none() && stream.read(1).await?.is_none());
    ensure!(stream.read_from(1).next().await?.is_none());
    let mut publisher = stream.publisher(0).await?;
    publisher.publish(record_saying(1, "Grüße ☂")).await?;
    publisher.publish(record(2)).await?;
    publisher.settle().await?;
    ensure!(stream.read(1).await? == Some(record_saying(1, "Grüße ☂")));
    ensure!(stream.last().await? == Some(record(2)));
    ensure!(
        stream
            .last_on("leaf.v1.evt.edge.*.*.snapshotted")
            .await?
            .is_none()
    );
    ensure!(stream.compare(&record(2)).await? == Comparison::Same);
    ensure!(stream.compare(&record(3)).await? == Comparison::Missing);
    let other = stream.compare(&record_saying(2, "other")).await?;
    ensure!(other == Comparison::Differs(Box::new(record(2))), "{other:?}");
    Ok(())
}

/// A server that has just started answers so for a moment. This one does since it sends requests for messages elsewhere.
async fn no_messages_yet() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let jetstream = format!("jetstream {{ store_dir: {:?} }}", dir.path().join("js"));
    let elsewhere = "mappings { \"$JS.API.DIRECT.GET.EVENTS_edge\": \"elsewhere\" }";
    let server = PlainServer::start(dir.path(), &format!("{jetstream}\n{elsewhere}")).await?;
    let mut settings = ConnectSettings::new(&server.url());
    settings.inbox_prefix = "_INBOX.leafd".to_owned();
    let bus = Bus::connect(&settings).await?;
    bus.connected().await;
    let (stream, _) = EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1).await?;
    let mut publisher = stream.publisher(0).await?;
    publisher.publish(record(1)).await?;
    publisher.settle().await?;
    let compared = stream.compare_from(1).next(&record(1)).await;
    ensure!(
        matches!(compared, Err(StreamError::NoJetStream { .. })),
        "{compared:?}"
    );

    let reader = Client::connect(&settings, LIMIT).await?;
    ensure!(
        reader.last_sequence(&leaf()).await? == 1,
        "it answers for the stream"
    );
    let mut events = reader.events(&leaf(), EventsFrom::Beginning);
    let early = tokio::time::timeout(Duration::from_secs(1), events.next()).await;
    ensure!(early.is_err(), "{early:?}");
    Ok(())
}

async fn second_writer() -> anyhow::Result<()> {
    let (_site, _bus, stream) = site_with_a_stream().await?;
    let mut first = stream.publisher(0).await?;
    let mut second = stream.publisher(0).await?;
    first.publish(record(1)).await?;
    first.publish(record(2)).await?;
    ensure!(first.settle().await? == 2);
    second.publish(record_saying(1, "mine")).await?;
    let error = second.settle().await.expect_err("it is taken");
    ensure!(
        error == StreamError::WrongLastSequence { actual: Some(2) },
        "{error:?}"
    );
    ensure!(second.publish(record(1)).await.is_err(), "it is done for");
    ensure!(stream.read(1).await? == Some(record(1)));
    // The same bytes again change nothing, and comparing says so.
    let mut again = stream.publisher(1).await?;
    again.publish(record(2)).await?;
    ensure!(again.settle().await.is_err());
    ensure!(stream.compare(&record(2)).await? == Comparison::Same);
    ensure!(stream.state().await?.events == 2);
    Ok(())
}

async fn out_of_order() -> anyhow::Result<()> {
    let (_site, _bus, stream) = site_with_a_stream().await?;
    let mut publisher = stream.publisher(0).await?;
    publisher.publish(record(1)).await?;
    ensure!(publisher.publish(record(3)).await.is_err());
    ensure!(stream.state().await?.last_sequence <= 1);
    Ok(())
}

async fn deleted() -> anyhow::Result<()> {
    let (site, bus, stream) = site_with_a_stream().await?;
    let user = site
        .connect(&site.identity.leaf_credentials(), &daemon_caller())
        .await?;
    jetstream::new(user.client).delete_stream("EVENTS_edge").await?;
    let error = stream.state().await.expect_err("it is gone");
    ensure!(matches!(error, StreamError::NoStream { .. }), "{error:?}");
    let mut publisher = stream.publisher(0).await?;
    publisher.publish(record(1)).await?;
    let error = publisher.settle().await.expect_err("it is gone");
    ensure!(matches!(error, StreamError::NoStream { .. }), "{error:?}");
    ensure!(matches!(
        stream.read_from(1).next().await,
        Err(StreamError::NoStream { .. })
    ));
    // Its user may publish nothing but its own.
    let foreign = EventStream::ensure(
        &bus,
        &leaf_core::id::LeafName::new("other")?,
        StreamSettings::default(),
        1,
    )
    .await?
    .0;
    let mut publisher = foreign.publisher(0).await?;
    let mut record = record(1);
    record.subject = record.subject.replace(".edge.", ".other.");
    publisher.publish(record).await?;
    let error = publisher.settle().await.expect_err("it is another's");
    ensure!(matches!(error, StreamError::NoPermission { .. }), "{error:?}");
    Ok(())
}

async fn killed() -> anyhow::Result<()> {
    const EVENTS: u64 = 3000;
    let (site, bus, stream) = site_with_a_stream().await?;
    let mut kills = 0;
    let mut publisher = stream.publisher(0).await?;
    while publisher.acked() < EVENTS {
        let sent = async {
            while publisher.next_sequence() <= EVENTS {
                let next = publisher.next_sequence();
                publisher.publish(record(next)).await?;
                if kills < 5 && next.is_multiple_of(500) {
                    kills += 1;
                    kill(
                        runs(&site.server, None)
                            .await
                            .map_err(|_| StreamError::Disconnected)?,
                    )
                    .map_err(|_| StreamError::Disconnected)?;
                }
            }
            publisher.settle().await
        };
        let Err(error) = sent.await else { break };
        let expected = matches!(
            error,
            StreamError::Disconnected
                | StreamError::Unanswered { .. }
                | StreamError::NoStream { .. }
                | StreamError::WrongLastSequence { .. }
        );
        ensure!(expected, "{error:?}");
        // What the daemon does: look where it ends, compare, go on from there.
        publisher = until("the stream", || async {
            bus.connected().await;
            let last = stream.state().await.ok()?.last_sequence;
            if last > 0 {
                (stream.compare(&record(last)).await.ok()? == Comparison::Same).then_some(())?;
            }
            stream.publisher(last).await.ok()
        })
        .await?;
    }
    ensure!(kills == 5, "{kills}");
    let mut reader = stream.read_from(1);
    for n in 1..=EVENTS {
        ensure!(reader.next().await? == Some(record(n)), "{n}");
    }
    ensure!(reader.next().await?.is_none());
    Ok(())
}

async fn many() -> anyhow::Result<()> {
    const EVENTS: u64 = 10_000;
    let (_site, bus, stream) = site_with_a_stream().await?;
    let mut publisher = stream.publisher(0).await?;
    for n in 1..=EVENTS {
        publisher.publish(record(n)).await?;
    }
    ensure!(tokio::time::timeout(LIMIT, publisher.settle()).await?? == EVENTS);
    ensure!(!publisher.is_waiting());
    let mut reader = stream.read_from(5000);
    let mut expected = 5000;
    while let Some(event) = reader.next().await? {
        ensure!(event == record(expected), "{expected}");
        expected += 1;
    }
    ensure!(expected == EVENTS + 1);
    ensure!(bus.dropped_messages() == 0);
    Ok(())
}

async fn frozen() -> anyhow::Result<()> {
    let (site, bus, stream) = site_with_a_stream().await?;
    let mut publisher = stream.publisher(0).await?;
    publisher.publish(record(1)).await?;
    publisher.settle().await?;
    freeze(runs(&site.server, None).await?).await?;
    publisher.publish(record(2)).await?;
    let error = publisher.settle().await.expect_err("no answer");
    // The connection may be given up before, if its pings are not answered either.
    ensure!(
        matches!(error, StreamError::Unanswered { .. } | StreamError::Disconnected),
        "{error:?}"
    );
    site.server.restart("it does not answer");
    let state = until("the stream", || async {
        bus.connected().await;
        stream.state().await.ok()
    })
    .await?;
    ensure!((1..=2).contains(&state.last_sequence), "{state:?}");
    Ok(())
}

async fn no_room() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let config = format!(
        "jetstream {{ store_dir: {:?}, max_file_store: 1MB }}",
        dir.path().join("js")
    );
    let server = PlainServer::start(dir.path(), &config).await?;
    let mut settings = ConnectSettings::new(&server.url());
    settings.inbox_prefix = "_INBOX.leafd".to_owned();
    let bus = Bus::connect(&settings).await?;
    tokio::time::timeout(LIMIT, bus.connected()).await?;
    let error = EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1)
        .await
        .expect_err("no room");
    ensure!(
        matches!(
            error,
            StreamError::NoRoom {
                needed_bytes: 0x4000_0000,
                ..
            }
        ),
        "{error:?}"
    );
    Ok(())
}

async fn bucket() -> anyhow::Result<()> {
    let bytes = |value: &serde_json::Value| bytes::Bytes::from(value.to_string());
    let (site, bus) = site_with_daemon().await?;
    let client = admin(&site).await?;
    ensure!(client.state_entries(&leaf()).await?.is_empty());
    let bucket = StateBucket::ensure(&bus, &leaf()).await?;
    let bucket2 = StateBucket::ensure(&bus, &leaf()).await.context("again")?;
    let entries: Vec<_> = (0..1500)
        .map(|n| (format!("job.{n}"), Some(bytes(&json!({ "n": n })))))
        .collect();
    bucket.apply(&entries).await?;
    ensure!(client.state_entries(&leaf()).await?.len() == 1500);
    bucket
        .apply(&[
            ("job.1".to_owned(), None),
            ("leaf".to_owned(), Some(bytes(&json!("x")))),
        ])
        .await?;
    let found = client.state_entries(&leaf()).await?;
    ensure!(found.len() == 1500 && !found.contains_key("job.1") && found["leaf"] == json!("x"));
    let state: BTreeMap<String, serde_json::Value> = BTreeMap::from([
        ("leaf".to_owned(), json!("y")),
        ("job.2".to_owned(), json!({ "n": 2 })),
    ]);
    let written = state.iter().map(|(key, value)| (key.clone(), bytes(value)));
    bucket2.replace(&written.collect()).await?;
    ensure!(client.state_entries(&leaf()).await? == state);
    // Any client of NATS reads it as a bucket.
    let user = site
        .connect(
            &site.identity.admin_credentials(),
            &leaf_bus::identity::admin_caller(),
        )
        .await?;
    let store = jetstream::new(user.client).get_key_value("leaf_state").await?;
    ensure!(store.get("edge.leaf").await?.as_deref() == Some(br#""y""#.as_slice()));
    Ok(())
}
