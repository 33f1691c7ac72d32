//! Durable events a second: facts through the loop's own history and commits into the journal and JetStream (publisher), until
//! the stream has acknowledged the last. Prints JSON. `cargo xtask bench` runs it.
//!
//! `durable DIRECTORY RECORDS COUNT` makes a leaf in DIRECTORY with an embedded server, as the daemon does, and writes
//! some of its events to RECORDS, so that a bare program can publish the same bytes.
#![allow(clippy::print_stdout, reason = "a program")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use leaf_bus::connect::{ConnectSettings, Credentials};
use leaf_bus::embedded::{EmbeddedServer, EmbeddedSettings};
use leaf_bus::identity::{Identity, daemon_caller};
use leaf_bus::stream::StreamSettings;
use leaf_core::cause::Cause;
use leaf_core::engine::history::Draft;
use leaf_core::engine::{Effect, History, Record, Snapshots};
use leaf_core::event::{DeviceChanged, Fact};
use leaf_core::hardware::Device;
use leaf_core::id::LeafName;
use leaf_core::state::State;
use leaf_core::subject;
use leaf_journal::{Journal, Options};
use leafd::commits::Commits;
use leafd::publisher::{EventPublisher, Published};
use leafd::tasks::Tasks;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};

/// How many devices change in turn.
const DEVICES: u64 = 64;
/// How many facts wait for their commit at most: as many inputs as the daemon queues.
const WAITING: usize = 1024;
const WARM_UP: u64 = 5_000;
/// As in the daemon.
const CACHE_BYTES: usize = 2 << 20;
const SNAPSHOTS: Snapshots = Snapshots {
    every_events: 10_000,
    every_bytes: 256 << 20,
};
const WITHIN: Duration = Duration::from_secs(120);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let [directory, records, count] = args[..] else {
        bail!("this is a part of `cargo xtask bench`");
    };
    let count = count.parse()?;
    let events = leafd::daemon::events_runtime()?;
    let runtime = leafd::daemon::runtime()?;
    runtime.block_on(run(
        Path::new(directory),
        Path::new(records),
        count,
        events.handle().clone(),
    ))
}

async fn run(directory: &Path, records: &Path, count: u64, events: Handle) -> Result<()> {
    let leaf = LeafName::new("bench")?;
    let options = Options {
        leaf: leaf.clone(),
        epoch_if_new: 1_760_000_000_000,
        cache_bytes: CACHE_BYTES,
        holder: "bench".to_owned(),
    };
    let (journal, _) = Journal::open(directory, &options)?;
    let identity = Identity::open_or_create(&directory.join("identity"), &leaf)?;
    let server = EmbeddedSettings::new(directory.join("nats"), "127.0.0.1:0".parse()?);
    let server = EmbeddedServer::start(server, &identity).await?;
    let (published_at, mut published) = watch::channel(Published::default());
    let publisher = EventPublisher {
        connect: ConnectSettings {
            credentials: Credentials::Text(identity.leaf_credentials()),
            inbox_prefix: subject::inbox_prefix(&daemon_caller()),
            ..ConnectSettings::new(&server.client_url())
        },
        leaf: leaf.clone(),
        journal: journal.clone(),
        settings: StreamSettings::default(),
        published: published_at,
        silent: mpsc::channel(1).0,
    };
    let mut tasks = Tasks::default();
    tasks.keep_on(&events, "publisher", publisher.run());
    let mut history = History::new(leaf, journal.epoch(), State::default(), SNAPSHOTS);
    let mut commits = Commits::new(journal.clone());

    let facts: Vec<Fact> = (0..2 * DEVICES)
        .map(|number| Ok(Fact::from(change(number)?)))
        .collect::<Result<_>>()?;
    let mut next = 0;
    record(&mut history, &mut commits, &facts, &mut next, WARM_UP).await?;
    reached(&mut published, journal.last_sequence()).await?;
    let transactions = journal.transactions();
    let began = Instant::now();
    record(&mut history, &mut commits, &facts, &mut next, count).await?;
    let committed = began.elapsed().as_secs_f64();
    let last = journal.last_sequence();
    reached(&mut published, last).await?;
    let seconds = began.elapsed().as_secs_f64();

    let from = last - DEVICES;
    let sample = journal.read(from, 1 << 20)?;
    let sample: Vec<_> = sample.into_iter().take(DEVICES as usize).collect();
    let bytes: usize = sample.iter().map(|record| record.body.len()).sum();
    let lines: Vec<String> = sample
        .iter()
        .map(serde_json::to_string)
        .collect::<Result<_, _>>()?;
    std::fs::write(records, lines.join("\n"))?;
    println!(
        "{}",
        json!({
            "events": count,
            "seconds": seconds,
            "committed_after_seconds": committed,
            "per_second": count as f64 / seconds,
            "fsyncs": journal.transactions() - transactions,
            "body_bytes": bytes / sample.len(),
        })
    );
    tasks.stop().await;
    server.stop().await;
    journal.close().await;
    Ok(())
}

/// Records facts as the loop does, one a record with an effect each, and takes the effects as they come.
async fn record(
    history: &mut History,
    commits: &mut Commits,
    facts: &[Fact],
    next: &mut u64,
    count: u64,
) -> Result<()> {
    let end = *next + count;
    let mut waiting = 0;
    while *next < end || commits.has_pending() {
        while *next < end && waiting < WAITING {
            let fact = facts[*next as usize % facts.len()].clone();
            let (mut draft, now) = (Draft::default(), Timestamp::now());
            history.record(&mut draft, now, &Cause::default(), fact);
            let (batch, _) = history.finish(draft, now);
            let effects = vec![Effect::ScanHardware { rescan: *next }];
            commits.push(Record { batch, effects });
            *next += 1;
            waiting += 1;
        }
        waiting -= commits.committed().await?.len();
    }
    Ok(())
}

async fn reached(published: &mut watch::Receiver<Published>, last: u64) -> Result<()> {
    let reached = published.wait_for(|published| published.sequence >= last);
    tokio::time::timeout(WITHIN, reached)
        .await
        .with_context(|| format!("the stream did not acknowledge event {last}"))??;
    Ok(())
}

/// A network card whose link comes and goes: an event of about 300 bytes.
fn change(number: u64) -> Result<DeviceChanged> {
    let (card, up) = (number % DEVICES, (number / DEVICES).is_multiple_of(2));
    let device: Device = serde_json::from_value(json!({
        "id": format!("pci-8086-1539-{card:02}"),
        "identity": "serial",
        "kind": "network",
        "status": "present",
        "vendor": "Intel",
        "model": "I211",
        "serial": format!("00:1b:21:00:00:{card:02x}"),
        "bus": "pci",
        "drivers": ["igb"],
        "sysfs_path": format!("/devices/pci0000:00/0000:00:{card:02x}.0"),
        "attributes": { "link": if up { "up" } else { "down" } },
    }))?;
    Ok(DeviceChanged {
        device,
        changed: vec!["attributes".to_owned()],
    })
}
