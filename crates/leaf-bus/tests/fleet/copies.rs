//! The hub's stream of a leaf's events takes those of one instance, each once and in order.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, SubjectTransform};
use futures::StreamExt as _;
use leaf_bus::hub::CopyStream;
use leaf_bus::stream::StreamError;
use leaf_core::fleet::copy::Extent;
use leaf_core::id::InstanceId;
use leaf_core::subject;
use libtest_mimic::Trial;
use uuid::Uuid;

use super::raw::{Introduction, RawPeer};
use super::{LinkedLeaf, TestHub, instance, stolen, until_linked};
use crate::support::{LIMIT, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_copy_takes_the_events_of_one_instance_each_once_and_in_order",
            takes_what_follows,
        ),
        trial("a_copy_that_an_earlier_agent_wrote_is_taken_over", of_before),
        trial(
            "a_copy_with_what_is_no_event_is_read_to_its_end",
            is_read_to_its_end,
        ),
    ]
}

const FACT: &str = "leaf.edge.started";

/// Sends an event as an instance does that fills its copy, after the event with this number.
async fn send(
    sender: &async_nats::Client,
    instance: InstanceId,
    after: u64,
    body: &'static str,
) -> anyhow::Result<()> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Sequence", after.to_string());
    let subject = format!("{}{FACT}", subject::up_prefix(&leaf(), instance));
    sender.publish_with_headers(subject, headers, body.into()).await?;
    Ok(sender.flush().await?)
}

async fn ends_with(copy: &CopyStream, last: u64) -> anyhow::Result<()> {
    let found = async {
        while copy.extent().await?.map(|extent| extent.last) != Some(last) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, found)
        .await
        .with_context(|| format!("waiting for event {last}"))?
}

/// Sends these events until the copy ends with this number: the interest in an instance's events crosses after it was let in.
async fn until_stored(
    copy: &CopyStream,
    sender: &async_nats::Client,
    events: &[(InstanceId, u64, &'static str)],
    last: u64,
) -> anyhow::Result<()> {
    let sending = async {
        while copy.extent().await?.map(|extent| extent.last) != Some(last) {
            for (instance, after, body) in events {
                send(sender, *instance, *after, body).await?;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, sending)
        .await
        .with_context(|| format!("waiting for event {last}"))?
}

async fn body(copy: &CopyStream, sequence: u64) -> anyhow::Result<String> {
    let event = copy.read(sequence).await?.context("an event")?;
    ensure!(
        event.subject == subject::event(&leaf(), "leaf", "edge", "started"),
        "{event:?}"
    );
    Ok(String::from_utf8(event.body)?)
}

async fn takes_what_follows() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    let server = LinkedLeaf::start(&hub).await?;
    let copy = hub.keeper().await?.copy(&leaf(), 1 << 20);
    ensure!(copy.begin(4).await? == Extent { first: 4, last: 3 });
    until_linked(&hub, &server).await?;
    let sender = server.claimant().await?;
    let (first, second) = (instance(), InstanceId(Uuid::from_u128(8)));
    // Nobody is let in yet. What is sent later arrives later, so once that is there, this was refused.
    send(&sender, first, 3, "too early").await?;
    let compared_before = copy.admit(first, 2).await;
    ensure!(
        matches!(
            compared_before,
            Err(StreamError::WrongLastSequence { actual: Some(3) })
        ),
        "{compared_before:?}"
    );
    copy.admit(first, 3).await?;
    ensure!(copy.takes(first).await? && !copy.takes(second).await?);
    for (instance, after, body) in [
        (first, 3, "four"),
        (first, 3, "four again"),
        (first, 5, "out of order"),
        (second, 4, "of another instance"),
    ] {
        send(&sender, instance, after, body).await?;
    }
    let events = [(first, 3, "four"), (first, 4, "five")];
    until_stored(&copy, &sender, &events, 5).await?;
    ensure!(body(&copy, 4).await?.starts_with("four") && body(&copy, 5).await? == "five");
    // Another instance takes its place, and the first one is shut out.
    ensure!(copy.open(second).await? == Some(Extent { first: 4, last: 5 }));
    ensure!(!copy.takes(first).await?, "nobody is let in before a comparison");
    copy.admit(second, 5).await?;
    let events = [(first, 5, "of the first"), (second, 5, "six")];
    until_stored(&copy, &sender, &events, 6).await?;
    ensure!(body(&copy, 6).await? == "six");
    // It publishes what it stores, or not, and again when it is opened.
    let ann = hub.ann().await?;
    let mut heard = ann.subscribe(subject::events()).await?;
    ann.flush().await?;
    for (publishes, after) in [(false, 6), (true, 7)] {
        copy.publishes(publishes).await?;
        send(&sender, second, after, "heard or not").await?;
        ends_with(&copy, after + 1).await?;
    }
    let message = tokio::time::timeout(LIMIT, heard.next())
        .await?
        .context("a message")?;
    let number = message
        .headers
        .as_ref()
        .and_then(|headers| headers.get("Nats-Sequence"))
        .map(|value| value.as_str().to_owned());
    ensure!(number.as_deref() == Some("8"), "{number:?}");
    // Opening it for the instance that it takes events of changes nothing; closing it does.
    copy.open(second).await?;
    ensure!(copy.takes(second).await?);
    copy.close().await?;
    ensure!(!copy.takes(second).await?);
    server.server.stop().await;
    Ok(())
}

async fn of_before() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    let js = async_nats::jetstream::new(hub.agent().await?);
    let written = "leaf.v1.copy.edge.evt.>".to_owned();
    js.create_stream(Config {
        name: "EVENTS_edge".to_owned(),
        subjects: vec![written.clone()],
        subject_transform: Some(SubjectTransform {
            source: written,
            destination: "leaf.v1.evt.edge.>".to_owned(),
        }),
        max_bytes: 1 << 20,
        allow_direct: true,
        deny_delete: true,
        deny_purge: true,
        ..Default::default()
    })
    .await?;
    js.publish("leaf.v1.copy.edge.evt.leaf.edge.started", "of before".into())
        .await?
        .await?;
    let copy = hub.keeper().await?.copy(&leaf(), 1 << 20);
    ensure!(copy.open(instance()).await? == Some(Extent { first: 1, last: 1 }));
    ensure!(body(&copy, 1).await? == "of before");
    copy.admit(instance(), 1).await?;
    let config = js.get_stream("EVENTS_edge").await?.cached_info().config.clone();
    ensure!(config.no_ack, "{config:?}");
    ensure!(config.subjects == [subject::up_events_of(&leaf(), instance())]);
    // One of another application is left alone.
    js.create_stream(Config {
        name: "EVENTS_stolen".to_owned(),
        subjects: vec!["leaf.v1.fleet.stolen.x".to_owned()],
        max_bytes: 1 << 20,
        allow_direct: true,
        ..Default::default()
    })
    .await?;
    let other = hub.keeper().await?.copy(&stolen(), 1 << 20);
    let refused = other.open(instance()).await;
    ensure!(matches!(refused, Err(StreamError::Foreign { .. })), "{refused:?}");
    Ok(())
}

/// A thief stores what would have a reader end, read for ever, or lose its connection.
async fn is_read_to_its_end() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    hub.with_streams().await?;
    let port = hub.server.leaf_port.context("a port for leaf nodes")?;
    let mut thief = RawPeer::connect(port, &Introduction::honest(&hub.stolen)).await?;
    let subject = format!("{}leaf.stolen.started", subject::up_prefix(&stolen(), instance()));
    let copy = hub.keeper().await?.copy(&stolen(), 1 << 20);
    let headers = [
        "NATS/1.0\r\nce-type: good\r\n\r\n",
        "NATS/1.0\r\nNats-Sequence: 0\r\nNats-Subject: leaf.v1.evt.edge.a.b.c\r\n\r\n",
        "NATS/1.0\r\nNats-Sequence: 18446744073709551615\r\n\r\n",
        "NATS/1.0 204\n\n\n",
        "NATS/1.0 404 No Messages\n\n\n",
        "NATS/1.0\r\nno name of a header: x\r\n\r\n",
        "NATS/1.0\r\nce-type: last\r\n\r\n",
    ];
    for (stored, header) in headers.iter().enumerate() {
        let (head, all) = (header.len(), header.len() + 2);
        thief
            .send(format!("HMSG {subject} {head} {all}\r\n{header}{{}}\r\n"))
            .await?;
        ensure!(thief.still_there().await, "{:?}", thief.errors());
        ends_with(&copy, stored as u64 + 1).await?;
    }
    let all = async {
        let mut reader = copy.read_from(1);
        let mut read = Vec::new();
        while let Some(event) = reader.next().await? {
            read.push(event);
        }
        anyhow::Ok(read)
    };
    let read = tokio::time::timeout(LIMIT, all).await.context("the end")??;
    let numbers: Vec<u64> = read.iter().map(|event| event.sequence).collect();
    ensure!(
        numbers == (1..=headers.len() as u64).collect::<Vec<_>>(),
        "{numbers:?}"
    );
    let kind = |event: &leaf_core::event::EventRecord| event.headers.get("ce-type").map(str::to_owned);
    ensure!(kind(&read[0]).as_deref() == Some("good") && kind(&read[6]).as_deref() == Some("last"));
    ensure!(read[5].headers.iter().next().is_none(), "{:?}", read[5]);
    ensure!(
        read.iter().all(|event| !event.subject.contains(".edge.")),
        "{read:?}"
    );
    Ok(())
}
