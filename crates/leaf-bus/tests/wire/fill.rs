//! Sending events of a leaf's stream to a copy, both in accounts of one plain server.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::fill::{FillError, Filler, Sent, Side};
use leaf_bus::stream::StreamError;
use leaf_core::host_op::Secret;
use leaf_core::subject;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::{instance, until};
use crate::plain::PlainServer;
use crate::support::{LIMIT, freeze, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_copy_is_filled_with_the_bytes_that_the_leaf_has", filled),
        trial("a_copy_is_filled_from_where_it_ends", from_the_middle),
        trial("events_that_arrive_while_a_copy_is_filled_follow", arriving),
        trial("a_send_ends_where_its_bytes_are_used_up", used_up),
        trial("events_that_a_stream_lacks_are_a_gap", gaps),
        trial("a_message_that_is_no_event_is_not_sent", no_event),
        trial("a_server_that_ends_ends_the_filling", ended),
        trial("a_server_that_answers_no_more_ends_the_filling", frozen),
        trial("a_consumer_that_is_gone_ends_the_filling", without_consumer),
        trial("what_a_filler_may_not_do_is_told", refused),
    ]
}

const STREAM: &str = "EVENTS_edge";

/// A leaf's account, and that of the link, which here has the copy as well.
struct Scene {
    server: PlainServer,
    at_leaf: async_nats::Client,
    at_copy: async_nats::Client,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// With streams that begin with these numbers.
    async fn start(first: u64, first_of_copy: u64) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let config = format!(
            "jetstream {{ store_dir: {:?}, domain: site }}\n\
             accounts {{\n\
             LEAF {{ jetstream: enabled, users: [{{ user: leaf, password: secret }}] }}\n\
             LINK {{ jetstream: enabled, users: [\n\
             {{ user: link, password: secret }}\n\
             {{ user: mute, password: secret, permissions: {{ publish: {{ deny: \">\" }} }} }}\n\
             ] }}\n\
             }}",
            dir.path().join("store")
        );
        let server = PlainServer::start(dir.path(), &config).await?;
        let connect = async |user: &str| {
            let options = async_nats::ConnectOptions::with_user_and_password(user.into(), "secret".into());
            options.connect(server.url()).await
        };
        let (at_leaf, at_copy) = (connect("leaf").await?, connect("link").await?);
        let own = stream::Config {
            name: STREAM.to_owned(),
            subjects: vec![subject::events_of(&leaf()), "alien".to_owned()],
            first_sequence: Some(first),
            ..Default::default()
        };
        jetstream::new(at_leaf.clone()).create_stream(own).await?;
        let copy = stream::Config {
            name: STREAM.to_owned(),
            subjects: vec![subject::up_events_of(&leaf(), instance(7))],
            subject_transform: Some(stream::SubjectTransform {
                source: subject::up_events_of(&leaf(), instance(7)),
                destination: subject::events_of(&leaf()),
            }),
            no_ack: true,
            first_sequence: Some(first_of_copy),
            ..Default::default()
        };
        jetstream::new(at_copy.clone()).create_stream(copy).await?;
        Ok(Self {
            server,
            at_leaf,
            at_copy,
            _dir: dir,
        })
    }

    fn settings(&self, user: &str) -> ConnectSettings {
        let mut settings = ConnectSettings::new(&self.server.url());
        settings.credentials = Credentials::Password {
            user: user.to_owned(),
            password: Secret::new("secret"),
        };
        settings
    }

    async fn filler(&self, from: u64) -> Result<Filler, FillError> {
        let streams = ConnectSettings {
            jetstream_domain: Some("site".to_owned()),
            ..self.settings("leaf")
        };
        Filler::open(&streams, &self.settings("link"), &leaf(), instance(7), from).await
    }

    /// Stores events with these numbers as a leaf does.
    async fn store(&self, numbers: impl IntoIterator<Item = u64>) -> anyhow::Result<()> {
        let mut last = 0;
        for number in numbers {
            let (headers, body) = event(number);
            let subject = subject::event(&leaf(), "container", &format!("c{}", number % 17), "started");
            self.at_leaf
                .publish_with_headers(subject, headers, body.into())
                .await?;
            last = number;
            // The server drops what waits for a stream beyond its limit.
            if number.is_multiple_of(1000) {
                ends_with(&self.at_leaf, number).await?;
            }
        }
        ends_with(&self.at_leaf, last).await
    }
}

/// An event of a form that its number gives it.
fn event(number: u64) -> (HeaderMap, Vec<u8>) {
    let mut headers = HeaderMap::new();
    if number % 701 != 3 {
        headers.insert("Nats-Expected-Last-Sequence", (number - 1).to_string().as_str());
    }
    headers.insert("ce-id", format!("{number}").as_str());
    match number % 10 {
        4 => headers.insert("ce-subject", "Grüße ☂ \"a\": Nats-Expected-Last-Sequence: 1"),
        5 => headers.insert("ce-subject", ""),
        6 => headers.insert("Nats-Expected-Last-Sequence-Of", "9"),
        _ => {}
    }
    let size = match number {
        200 => 800_000,
        number if number % 10 == 7 => 0,
        number => usize::try_from(number * 7919 % 1500).expect("it is small"),
    };
    let body = format!("{{\"number\":{number},\"text\":\"\r\nMSG a 1 1\r\n\"}}").into_bytes();
    (headers, body.into_iter().cycle().take(size).collect())
}

async fn last_of(client: &async_nats::Client) -> anyhow::Result<u64> {
    let stream = jetstream::new(client.clone()).get_stream(STREAM).await?;
    Ok(stream.get_info().await?.state.last_sequence)
}

async fn ends_with(client: &async_nats::Client, last: u64) -> anyhow::Result<()> {
    until(&format!("event {last}"), async || {
        last_of(client).await.ok().filter(|found| *found == last)
    })
    .await
    .map(drop)
}

/// Returns what a stream has under a number: subject, header and body, the latter as their bytes in base64.
async fn message(client: &async_nats::Client, number: u64) -> anyhow::Result<Value> {
    let request = json!({ "seq": number }).to_string();
    let subject = format!("$JS.API.STREAM.MSG.GET.{STREAM}");
    let answer = client.request(subject, request.into()).await?;
    let mut answer: Value = serde_json::from_slice(&answer.payload)?;
    let message = answer["message"]
        .as_object_mut()
        .with_context(|| format!("no {number}"))?;
    message.remove("time");
    Ok(Value::Object(std::mem::take(message)))
}

fn bytes_of(message: &Value, field: &str) -> anyhow::Result<Vec<u8>> {
    Ok(STANDARD.decode(message[field].as_str().unwrap_or_default())?)
}

/// Sends until the stream has no more, and waits after each part until it is stored.
async fn fill(scene: &Scene, filler: &mut Filler, events: usize, bytes: usize) -> anyhow::Result<Vec<Sent>> {
    let mut parts = Vec::new();
    loop {
        let sent = filler.send(events, bytes).await?;
        ends_with(&scene.at_copy, sent.last).await?;
        parts.push(sent);
        if sent.end {
            return Ok(parts);
        }
    }
}

/// Fails unless the copy has these events as the leaf has them.
async fn is_same(scene: &Scene, numbers: impl IntoIterator<Item = u64>) -> anyhow::Result<()> {
    for number in numbers {
        let (mut own, copied) = (
            message(&scene.at_leaf, number).await?,
            message(&scene.at_copy, number).await?,
        );
        if number % 701 == 3 {
            // It lacks the number that the copy needs.
            let header = String::from_utf8(bytes_of(&own, "hdrs")?)?;
            let fence = format!("NATS/1.0\r\nNats-Expected-Last-Sequence: {}\r\n", number - 1);
            own["hdrs"] = STANDARD.encode(header.replacen("NATS/1.0\r\n", &fence, 1)).into();
        }
        ensure!(own == copied, "{number}: {own} {copied}");
    }
    Ok(())
}

async fn consumers(client: &async_nats::Client) -> anyhow::Result<usize> {
    let stream = jetstream::new(client.clone()).get_stream(STREAM).await?;
    Ok(stream.get_info().await?.state.consumer_count)
}

async fn filled() -> anyhow::Result<()> {
    let scene = Scene::start(1, 1).await?;
    scene.store(1..=3000).await?;
    let mut filler = scene.filler(1).await?;
    let parts = fill(&scene, &mut filler, 500, 200_000).await?;
    ensure!(parts.len() > 10, "{parts:?}");
    // The largest event is larger than a part.
    let is_alone = |pair: &[Sent]| pair[0].last == 199 && pair[1].last == 200;
    ensure!(parts.windows(2).any(is_alone), "{parts:?}");
    ensure!(
        parts.last()
            == Some(&Sent {
                last: 3000,
                end: true
            })
    );
    ensure!(
        filler.send(500, 200_000).await?
            == Sent {
                last: 3000,
                end: true
            }
    );
    is_same(&scene, 1..=3000).await?;
    ensure!(consumers(&scene.at_leaf).await? == 1);
    filler.close().await;
    ensure!(consumers(&scene.at_leaf).await? == 0);
    Ok(())
}

async fn from_the_middle() -> anyhow::Result<()> {
    let scene = Scene::start(1, 151).await?;
    scene.store(1..=900).await?;
    let mut filler = scene.filler(151).await?;
    ensure!(filler.send(10, 1 << 20).await?.last == 160);
    // No waiting in between.
    let mut sent = Sent {
        last: 160,
        end: false,
    };
    while !sent.end {
        sent = filler.send(300, 1 << 20).await?;
    }
    ends_with(&scene.at_copy, 900).await?;
    is_same(&scene, 151..=900).await?;
    filler.close().await;
    // A copy that has an event already keeps what it has.
    let mut again = scene.filler(890).await?;
    ensure!(again.send(100, 1 << 20).await? == Sent { last: 900, end: true });
    scene.store([901]).await?;
    ensure!(again.send(100, 1 << 20).await?.last == 901);
    ends_with(&scene.at_copy, 901).await?;
    is_same(&scene, 885..=901).await
}

async fn arriving() -> anyhow::Result<()> {
    let scene = Scene::start(1, 1).await?;
    let mut filler = scene.filler(1).await?;
    ensure!(filler.send(10, 1 << 20).await? == Sent { last: 0, end: true });
    let stored = async {
        for hundred in 0..40 {
            scene.store(hundred * 100 + 1..=hundred * 100 + 100).await?;
        }
        anyhow::Ok(())
    };
    let passed_on = async {
        let mut sent = filler.send(700, 1 << 20).await?;
        while sent.last < 4000 {
            ends_with(&scene.at_copy, sent.last).await?;
            sent = filler.send(700, 1 << 20).await?;
        }
        ensure!(
            sent == Sent {
                last: 4000,
                end: true
            }
        );
        Ok(())
    };
    tokio::time::timeout(2 * LIMIT, async { tokio::try_join!(stored, passed_on) })
        .await
        .context("filling")??;
    ends_with(&scene.at_copy, 4000).await?;
    is_same(&scene, (1..=4000).step_by(7)).await
}

async fn used_up() -> anyhow::Result<()> {
    let scene = Scene::start(1, 1).await?;
    scene.store(1..=9).await?;
    // As the server counts them: subject, reply subject, header and body.
    let mut counted = 0;
    for number in 1..=5 {
        let message = message(&scene.at_leaf, number).await?;
        let consumer = format!("fill-{:032}", 0);
        let reply = format!(
            "$JS.ACK.{STREAM}.{consumer}.1.{number}.{number}.1700000000000000000.{}",
            9 - number
        );
        let subject = message["subject"].as_str().context("a subject")?;
        counted += subject.len()
            + reply.len()
            + bytes_of(&message, "hdrs")?.len()
            + bytes_of(&message, "data")?.len();
    }
    for (bytes, last) in [(counted - 1, 4), (counted, 5), (counted + 1, 5)] {
        let mut filler = scene.filler(1).await?;
        let began = Instant::now();
        ensure!(
            filler.send(100, bytes).await? == Sent { last, end: false },
            "{bytes}"
        );
        ensure!(began.elapsed() < Duration::from_secs(4), "{bytes}: it waited");
        ensure!(filler.send(100, 1 << 20).await? == Sent { last: 9, end: true });
        filler.close().await;
    }
    // Each is larger than the bytes that it may have, and one at a time is as many as there may be.
    for (events, bytes) in [(9, 1), (1, 1), (1, 1 << 20)] {
        let mut filler = scene.filler(1).await?;
        for last in 1..=9 {
            let sent = filler.send(events, bytes).await?;
            ensure!(sent == Sent { last, end: last == 9 }, "{sent:?}");
        }
        filler.close().await;
    }
    let mut filler = scene.filler(1).await?;
    ensure!(filler.send(9, 1 << 20).await? == Sent { last: 9, end: true });
    ends_with(&scene.at_copy, 9).await?;
    is_same(&scene, 1..=9).await
}

async fn gaps() -> anyhow::Result<()> {
    let scene = Scene::start(5, 5).await?;
    scene.store(5..=20).await?;
    let mut early = scene.filler(3).await?;
    let error = early.send(10, 1 << 20).await.expect_err("3 and 4 are not there");
    ensure!(
        matches!(
            error,
            FillError::Gap {
                expected: 3,
                first: 5
            }
        ),
        "{error:?}"
    );
    ensure!(last_of(&scene.at_copy).await? == 4);
    jetstream::new(scene.at_leaf.clone())
        .get_stream(STREAM)
        .await?
        .delete_message(12)
        .await?;
    let mut filler = scene.filler(5).await?;
    let error = filler.send(100, 1 << 20).await.expect_err("12 is not there");
    ensure!(
        matches!(
            error,
            FillError::Gap {
                expected: 12,
                first: 13
            }
        ),
        "{error:?}"
    );
    ends_with(&scene.at_copy, 11).await?;
    is_same(&scene, 5..=11).await
}

async fn no_event() -> anyhow::Result<()> {
    for (subject, headers) in [("leaf.v1.evt.edge.a.b.c", None), ("alien", Some(event(4).0))] {
        let scene = Scene::start(1, 1).await?;
        scene.store(1..=3).await?;
        match headers {
            None => scene.at_leaf.publish(subject, "x".into()).await?,
            Some(headers) => {
                scene
                    .at_leaf
                    .publish_with_headers(subject, headers, "x".into())
                    .await?;
            }
        }
        ends_with(&scene.at_leaf, 4).await?;
        let mut filler = scene.filler(1).await?;
        let error = filler.send(100, 1 << 20).await.expect_err("4 is none");
        ensure!(
            matches!(error, FillError::NotAnEvent { sequence: 4 }),
            "{error:?}"
        );
        ends_with(&scene.at_copy, 3).await?;
    }
    Ok(())
}

/// Sends until there is an error, and returns how long the last send took.
async fn until_error(mut filler: Filler) -> (FillError, Duration) {
    loop {
        let began = Instant::now();
        if let Err(error) = filler.send(50, 1 << 20).await {
            return (error, began.elapsed());
        }
    }
}

async fn ended() -> anyhow::Result<()> {
    let scene = Scene::start(1, 1).await?;
    scene.store(1..=2000).await?;
    let filler = scene.filler(1).await?;
    let ending = async {
        until("some events", async || {
            last_of(&scene.at_copy).await.ok().filter(|last| *last > 0)
        })
        .await?;
        drop(scene);
        anyhow::Ok(())
    };
    let both = async { tokio::join!(until_error(filler), ending) };
    let ((error, took), ended) = tokio::time::timeout(2 * LIMIT, both).await?;
    ended?;
    ensure!(matches!(error, FillError::Lost { .. }), "{error:?}");
    ensure!(took < Duration::from_secs(6), "{took:?}");
    Ok(())
}

async fn frozen() -> anyhow::Result<()> {
    let scene = Scene::start(1, 1).await?;
    scene.store(1..=2000).await?;
    let mut filler = scene.filler(1).await?;
    filler.send(50, 1 << 20).await?;
    freeze(scene.server.pid().context("its process")?).await?;
    let (error, took) = tokio::time::timeout(LIMIT, until_error(filler)).await?;
    ensure!(matches!(error, FillError::Unanswered { .. }), "{error:?}");
    ensure!(took < Duration::from_secs(12), "{took:?}");
    Ok(())
}

async fn without_consumer() -> anyhow::Result<()> {
    let scene = Scene::start(1, 1).await?;
    scene.store(1..=100).await?;
    let mut filler = scene.filler(1).await?;
    filler.send(50, 1 << 20).await?;
    let subject = format!("$JS.API.CONSUMER.NAMES.{STREAM}");
    let names = scene.at_leaf.request(subject, "".into()).await?;
    let names: Value = serde_json::from_slice(&names.payload)?;
    let name = names["consumers"][0].as_str().context("a consumer")?;
    let stream = jetstream::new(scene.at_leaf.clone()).get_stream(STREAM).await?;
    stream.delete_consumer(name).await?;
    let error = filler.send(50, 1 << 20).await.expect_err("it is gone");
    ensure!(matches!(error, FillError::Ended { .. }), "{error:?}");
    ends_with(&scene.at_copy, 50).await
}

async fn refused() -> anyhow::Result<()> {
    let scene = Scene::start(1, 1).await?;
    scene.store(1..=10).await?;
    let (streams, link, mute) = (
        scene.settings("leaf"),
        scene.settings("link"),
        scene.settings("mute"),
    );
    let mut filler = Filler::open(&streams, &mute, &leaf(), instance(7), 1).await?;
    match filler.send(100, 1 << 20).await {
        Err(FillError::Refused {
            side: Side::Link,
            said,
        }) if said.contains("Permissions Violation") => {}
        other => bail!("{other:?}"),
    }
    let wrong = |of: &ConnectSettings| {
        let mut settings = of.clone();
        settings.credentials = Credentials::None;
        settings
    };
    for (streams, link, side) in [
        (&wrong(&streams), &link, Side::Streams),
        (&streams, &wrong(&link), Side::Link),
    ] {
        match Filler::open(streams, link, &leaf(), instance(7), 1).await.err() {
            Some(FillError::Login { side: found, .. }) if found == side => {}
            other => bail!("{side}: {other:?}"),
        }
    }
    jetstream::new(scene.at_leaf.clone())
        .delete_stream(STREAM)
        .await?;
    match scene.filler(1).await.err() {
        Some(FillError::NoConsumer {
            source: StreamError::NoStream { .. },
            ..
        }) => Ok(()),
        other => bail!("{other:?}"),
    }
}
