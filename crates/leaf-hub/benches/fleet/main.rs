//! What a leaf and its hub cost, compared with bare servers over the same kind of link. Prints JSON. `cargo xtask bench` runs
//! it.
//!
//! `fleet NATS_SERVER LEAF_HUB LEAFD WHAT DIRECTORY COUNT`: WHAT is
//! - `events`: COUNT events, one after the other, from the leaf's server until they are stored at the hub; bare: publishes over
//!   the connection of two servers into a stream of the far one;
//! - `catch-up`: COUNT events that the hub lacks, until it has them; bare: a JetStream source;
//! - `commands`: COUNT `leaf.show` through the hub, one after the other, and 64 at once; bare: a responder behind the same
//!   kind of connection that replies as many bytes; in place: such a responder in the place of leafd, with its accounts and rights;
//! - `many`: COUNT leaves at one hub: until their list is read, and the memory of the hub and its agent.
//!
//! Events and commands are measured in blocks by turns with the bare servers. `fleet respond URL SUBJECTS BYTES
//! [CREDENTIALS]` is the responder, a process of its own as leafd is.
#![allow(clippy::print_stdout, reason = "a program")]

mod bare;
mod in_place_of_leafd;
mod many;
mod ours;
mod server;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::jetstream;
use async_nats::{Client, HeaderMap};
use futures::StreamExt as _;
use jiff::Timestamp;
use leaf_core::event::{Event, EventRecord, Fact, LeafStopped};
use leaf_core::id::{InstanceId, LeafName};
use leaf_core::subject;
use nkeys::KeyPair;
use serde_json::{Value, json};

use bare::Bare;
use in_place_of_leafd::InPlaceOfLeafd;
use ours::Ours;

/// The longest wait for anything.
const WITHIN: Duration = Duration::from_secs(300);

/// How many are measured before those that count.
const WARM_UP: u64 = 200;

/// How many are measured before the other side's turn.
const BLOCK: u64 = 100;

/// How many requests are under way at once.
const AT_ONCE: usize = 64;

/// The programs to measure.
pub(crate) struct Programs<'a> {
    nats_server: &'a Path,
    leaf_hub: &'a Path,
    leafd: &'a Path,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if let ["respond", url, subjects, bytes, ref credentials @ ..] = args[..] {
        return bare::respond(url, subjects, bytes.parse()?, credentials.first().map(Path::new)).await;
    }
    let [nats_server, leaf_hub, leafd, what, directory, count] = args[..] else {
        bail!("this is a part of `cargo xtask bench`");
    };
    let programs = Programs {
        nats_server: Path::new(nats_server),
        leaf_hub: Path::new(leaf_hub),
        leafd: Path::new(leafd),
    };
    let (directory, count) = (Path::new(directory), count.parse()?);
    let figures = match what {
        "events" => Box::pin(events(&programs, directory, count)).await?,
        "catch-up" => Box::pin(catch_up(&programs, directory, count)).await?,
        "commands" => Box::pin(commands(&programs, directory, count)).await?,
        "many" => Box::pin(many::measure(&programs, directory, count)).await?,
        other => bail!("there is no measurement {other:?}"),
    };
    println!("{figures}");
    Ok(())
}

fn leaf() -> LeafName {
    LeafName::new("bench").expect("a leaf name")
}

fn instance() -> InstanceId {
    InstanceId(uuid::Uuid::from_u128(1))
}

/// The event with this number, as a leaf records it.
fn record(sequence: u64) -> EventRecord {
    let event = Event {
        sequence,
        time: Timestamp::from_second(1_700_000_000).expect("a time"),
        causation: None,
        correlation: None,
        fact: Fact::from(LeafStopped {
            instance: instance(),
            reason: format!("the event {sequence} of a measurement, with a text of a usual length behind it"),
        }),
    };
    event.to_record(&leaf(), 7)
}

fn headers_of(record: &EventRecord) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in record.headers.iter() {
        headers.insert(name, value);
    }
    headers
}

/// Messages of a stream as they are stored, by a consumer.
async fn stored(client: &Client, stream: &str) -> Result<jetstream::consumer::push::Ordered> {
    let stream = jetstream::new(client.clone()).get_stream(stream).await?;
    let consumer = stream
        .create_consumer(jetstream::consumer::push::OrderedConfig {
            deliver_subject: client.new_inbox(),
            deliver_policy: jetstream::consumer::DeliverPolicy::New,
            ..Default::default()
        })
        .await?;
    Ok(consumer.messages().await?)
}

async fn events(programs: &Programs<'_>, directory: &Path, count: u64) -> Result<Value> {
    let ours = Ours::start(programs, &directory.join("ours")).await?;
    let bare = Bare::start(programs, &directory.join("bare")).await?;
    let mut publisher = ours.publisher().await?;
    publisher.publish(record(1)).await?;
    publisher.settle().await?;
    ours.copied(1).await?;
    let mut copied = stored(&ours.agent, "EVENTS_bench").await?;
    let mut arrived = stored(&bare.hub, bare::STREAM).await?;
    let (mut of_leaf, mut of_bare) = (Vec::new(), Vec::new());
    for (first, last) in blocks(2, count + WARM_UP) {
        for sequence in first..=last {
            let record = record(sequence);
            let body = record.body.clone();
            let began = Instant::now();
            publisher.publish(record).await?;
            publisher.settle().await?;
            let message = tokio::time::timeout(WITHIN, copied.next())
                .await?
                .context("a stored event")??;
            of_leaf.push(began.elapsed());
            ensure!(message.payload == body, "another event");
        }
        for sequence in first..=last {
            let record = record(sequence);
            let (headers, body) = (headers_of(&record), record.body.into());
            let began = Instant::now();
            bare.leaf
                .publish_with_headers(bare::SUBJECT, headers, body)
                .await?;
            bare.leaf.flush().await?;
            tokio::time::timeout(WITHIN, arrived.next())
                .await?
                .context("a stored message")??;
            of_bare.push(began.elapsed());
        }
    }
    // Another way: until a client of the hub hears it, which events cross for once more.
    let mut heard = ours.ann.subscribe(subject::events()).await?;
    ours.ann.flush().await?;
    let mut of_hearing = Vec::new();
    let first = count + WARM_UP + 2;
    for sequence in first..first + count / 4 + WARM_UP {
        let began = Instant::now();
        publisher.publish(record(sequence)).await?;
        publisher.settle().await?;
        tokio::time::timeout(WITHIN, heard.next())
            .await?
            .context("a live event")?;
        of_hearing.push(began.elapsed());
        copied.next().await.context("a stored event")??;
    }
    ours.stop().await?;
    Ok(json!({
        "leaf": quantiles(of_leaf),
        "bare": quantiles(of_bare),
        "heard": quantiles(of_hearing),
    }))
}

/// Divides so many numbers from the first one on into blocks, after each of which the other side is measured.
fn blocks(first: u64, count: u64) -> impl Iterator<Item = (u64, u64)> {
    (first..first + count)
        .step_by(BLOCK as usize)
        .map(move |begin| (begin, (begin + BLOCK - 1).min(first + count - 1)))
}

async fn catch_up(programs: &Programs<'_>, directory: &Path, count: u64) -> Result<Value> {
    let mut ours = Ours::without_agent(programs, &directory.join("ours")).await?;
    let mut publisher = ours.publisher().await?;
    for sequence in 1..=count {
        publisher.publish(record(sequence)).await?;
    }
    publisher.settle().await?;
    let began = Instant::now();
    ours.start_agent(programs).await?;
    ours.copied(count).await?;
    let of_leaf = began.elapsed().as_secs_f64();
    ours.stop().await?;

    let bare = Bare::start(programs, &directory.join("bare")).await?;
    bare.fill(count).await?;
    let began = Instant::now();
    bare.source().await?;
    bare.sourced(count).await?;
    let of_bare = began.elapsed().as_secs_f64();
    Ok(json!({ "events": count, "leaf_seconds": of_leaf, "bare_seconds": of_bare }))
}

async fn commands(programs: &Programs<'_>, directory: &Path, count: u64) -> Result<Value> {
    let key = KeyPair::new_user();
    let responder = (in_place_of_leafd::name(), key.public_key());
    let ours = Ours::with_leafd(programs, &directory.join("ours"), vec![responder]).await?;
    let bare = Bare::start(programs, &directory.join("bare")).await?;
    let subject = "leaf.v1.cmd.bench.ann.leaf.show";
    let reply = ours.ann.request(subject, "{}".into()).await?;
    let bytes = reply.payload.len();
    let _responder = bare.respond(bytes).await?;
    let directory = directory.join("in-place");
    let in_place = InPlaceOfLeafd::start(programs, &directory, &ours.hub, &key, bytes).await?;
    let (mut of_leaf, mut of_bare, mut of_place) = (Vec::new(), Vec::new(), Vec::new());
    for (first, last) in blocks(1, count + WARM_UP) {
        for _ in first..=last {
            of_leaf.push(request(&ours.ann, subject).await?);
        }
        for _ in first..=last {
            of_bare.push(request(&bare.hub, bare::REQUEST).await?);
        }
        for _ in first..=last {
            of_place.push(request(&ours.ann, in_place_of_leafd::COMMAND).await?);
        }
    }
    let mut times = [Duration::ZERO; 3];
    for (first, last) in blocks(1, count) {
        let requests = 10 * (last - first + 1);
        times[0] += at_once(&ours.ann, subject, requests).await?;
        times[1] += at_once(&bare.hub, bare::REQUEST, requests).await?;
        times[2] += at_once(&ours.ann, in_place_of_leafd::COMMAND, requests).await?;
    }
    in_place.stop().await;
    ours.stop().await?;
    let figures = [of_leaf, of_bare, of_place].into_iter().zip(times);
    let [leaf, bare, place] = figures
        .map(|(each, time)| {
            let mut figures = quantiles(each);
            figures["per_second"] = ((10 * count) as f64 / time.as_secs_f64()).into();
            figures
        })
        .collect::<Vec<_>>()
        .try_into()
        .expect("three of them");
    Ok(json!({ "reply_bytes": bytes, "leaf": leaf, "bare": bare, "in_place": place }))
}

async fn request(client: &Client, subject: &'static str) -> Result<Duration> {
    let began = Instant::now();
    client.request(subject, "{}".into()).await?;
    Ok(began.elapsed())
}

/// Sends requests, many at once, until all are answered.
async fn at_once(client: &Client, subject: &'static str, count: u64) -> Result<Duration> {
    let began = Instant::now();
    let done = futures::stream::iter(0..count)
        .map(|_| client.request(subject, "{}".into()))
        .buffer_unordered(AT_ONCE)
        .fold(
            0_u64,
            |done, reply| async move { done + u64::from(reply.is_ok()) },
        )
        .await;
    ensure!(done == count, "{done} of {count} requests were answered");
    Ok(began.elapsed())
}

/// Returns median and 99th percentile in microseconds, without the first ones.
fn quantiles(times: Vec<Duration>) -> Value {
    let mut micros: Vec<f64> = times
        .into_iter()
        .skip(usize::try_from(WARM_UP).unwrap_or(0))
        .map(|time| time.as_secs_f64() * 1e6)
        .collect();
    micros.sort_by(f64::total_cmp);
    let at = |share: f64| micros[((micros.len() - 1) as f64 * share) as usize];
    json!({ "p50": at(0.5), "p99": at(0.99) })
}
