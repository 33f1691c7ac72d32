//! What a newer leafd wrote: kept as it is, shown, passed on, and not acted on (decision 9).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use jiff::Timestamp;
use leaf_bus::client::CallError;
use leaf_core::command::{
    CancelJob, CommandRecord, LabelLeaf, ListContainers, ListHardware, Request, RescanHardware,
    ShowContainer, ShowHardware, ShowJob,
};
use leaf_core::event::{Event, EventRecord, Fact, UnknownFact};
use leaf_core::hardware::{Device, DeviceStatus};
use leaf_core::id::{Caller, CommandId, ContainerName, DeviceId, JobId};
use leaf_core::problem::ProblemCode;
use leaf_journal::{Batch, Opened};
use serde_json::{Value, json};

use super::journal::open_with_state;
use crate::support::{OLD_LEAFD, Setup, TestLeaf, until};

const JOB: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

/// How many events it takes until a snapshot follows: the fewest that the settings allow.
const SNAPSHOT_EVERY: u64 = 100;

/// Entries as a newer leafd may leave them, by key.
fn entries() -> BTreeMap<&'static str, Value> {
    let desired = json!({
        "generation": 3, "run": "running", "gpu": { "device": "pci-1", "share": 0.5 },
        "source": { "type": "toplevel", "path": "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-web" },
        "network": { "host_address": "10.233.1.1", "container_address": "10.233.1.2" },
    });
    BTreeMap::from([
        (
            "container.web",
            json!({
                "name": "web", "desired": desired, "phase": "running", "cause": {},
                "created_at": "2026-11-20T16:00:00Z", "changed_at": "2026-11-20T16:00:02.5Z",
            }),
        ),
        (
            "device.npu-1",
            json!({ "id": "npu-1", "identity": "serial", "kind": "neural_processor", "status": "present" }),
        ),
        (
            "job.01890a5d-ac96-774b-bcce-b302099a8057",
            json!({
                "id": JOB, "owner": "admin", "phase": "running", "cause": {},
                "task": { "type": "evaluate", "expression": "1 + 1" },
                "queued_at": "2026-11-20T16:00:00Z", "started_at": "2026-11-20T16:00:01Z",
            }),
        ),
        (
            "tunnel.office",
            json!({ "peer": "edge-2", "since": 1.5, "keys": ["a", { "b": null }] }),
        ),
    ])
}

/// An event of a type that is not known.
fn unknown(leaf: &TestLeaf, epoch: u64, sequence: u64, aggregate: &str, id: &str) -> EventRecord {
    let event = Event {
        sequence,
        time: Timestamp::now(),
        causation: None,
        correlation: Some("newer".to_owned()),
        fact: Fact::Unknown(UnknownFact {
            kind: format!("cim.leaf.{aggregate}.polished.v1"),
            subject: format!("leaf.v1.evt.{}.{aggregate}.{id}.polished", leaf.name),
            body: json!({ "id": id, "shine": ["high", { "of": 7 }] }),
        }),
    };
    event.to_record(&leaf.name, epoch)
}

/// Commands as a newer leafd may have accepted and not answered them.
fn commands() -> anyhow::Result<Vec<CommandRecord>> {
    let command = |id: &str, noun_verb: &str, target: &str| {
        anyhow::Ok(CommandRecord {
            caller: Caller::new("admin")?,
            id: CommandId::new(id)?,
            noun_verb: noun_verb.to_owned(),
            fingerprint: "0".repeat(64),
            accepted_at: Timestamp::now(),
            target: Some(target.to_owned()),
            signer: Some("SHA256:uNiVztksCsDhcc0u9e8BgrJXVGDpQjzAAzGCsFZ7CXY".to_owned()),
            outcome: None,
        })
    };
    Ok(vec![
        command("open-1", "tunnel.open", "tunnel.office")?,
        command("polish-1", "container.polish", "container.other")?,
        // A command of this version, on what it can't read.
        command("start-1", "container.start", "container.web")?,
    ])
}

/// Puts all of that into the journal of a leaf that does not run, with events enough for a snapshot to follow.
async fn write_as_a_newer_leafd(leaf: &TestLeaf) -> anyhow::Result<Vec<EventRecord>> {
    let (journal, _) = open_with_state(leaf).await?;
    let first = journal.last_sequence() + 1;
    let events: Vec<EventRecord> = (first..first + SNAPSHOT_EVERY)
        .map(|sequence| unknown(leaf, journal.epoch(), sequence, "tunnel", "office"))
        .collect();
    let json = |(key, value): (&str, Value)| (key.to_owned(), Some(Bytes::from(value.to_string())));
    let batch = Batch {
        events: events.clone(),
        entries: entries().into_iter().map(json).collect(),
        commands: commands()?,
    };
    journal.commit(batch).await?;
    journal.mark(Timestamp::now()).await?;
    journal.close().await;
    Ok(events)
}

/// Makes sure that a journal holds the [entries] as they were put in.
fn holds_the_entries(opened: &Opened) -> anyhow::Result<()> {
    for (key, value) in entries() {
        let found = opened.entries.get(key);
        ensure!(found == Some(&value), "{key} is {found:?}");
    }
    Ok(())
}

/// Makes sure that the journal of a leaf that does not run holds all of that as it was put in.
async fn untouched(leaf: &TestLeaf) -> anyhow::Result<()> {
    let (journal, opened) = open_with_state(leaf).await?;
    holds_the_entries(&opened)?;
    for command in commands()? {
        let found = journal.command(&command.caller, &command.id)?;
        let found = found.with_context(|| format!("{} is gone", command.id))?;
        ensure!(found.outcome.is_none(), "{} was answered: {found:?}", command.id);
        ensure!(found.target == command.target && found.noun_verb == command.noun_verb);
        ensure!(found.signer == command.signer, "{:?}", found.signer);
    }
    journal.close().await;
    Ok(())
}

/// Makes sure that a command is refused since it is about what a newer leafd wrote.
async fn refused<R: Request>(leaf: &mut TestLeaf, request: &R, key: &str) -> anyhow::Result<()> {
    match leaf.call(request).await {
        Err(CallError::Problem(problem)) => {
            ensure!(problem.code == ProblemCode::Unsupported, "{problem:?}");
            let says = format!("{key} was written by a newer leafd");
            ensure!(problem.detail.contains(&says), "{problem:?}");
            Ok(())
        }
        Ok(_) => anyhow::bail!("{} is answered", R::DECLARATION.noun_verb),
        Err(other) => Err(other.into()),
    }
}

/// Makes sure that a leaf shows what it can't read, passes it on, and leaves it alone.
async fn shown_and_left_alone(leaf: &mut TestLeaf) -> anyhow::Result<()> {
    let raw: BTreeMap<String, String> = leaf
        .show()
        .await?
        .raw_entries
        .into_iter()
        .map(|raw| (raw.key, raw.reason))
        .collect();
    for key in entries().into_keys() {
        let reason = raw
            .get(key)
            .with_context(|| format!("{key} is not shown: {raw:?}"))?;
        ensure!(!reason.is_empty());
        leaf.logged(&format!("key=\"{key}\"")).await?;
    }
    ensure!(raw["container.web"].contains("desired.gpu"), "{raw:?}");
    let mirrored = until("the bucket has the entries", async || {
        let bucket = leaf.bucket().await?;
        let all = entries()
            .iter()
            .all(|(key, value)| bucket.get(*key) == Some(value));
        Ok(all.then_some(bucket))
    })
    .await?;
    ensure!(mirrored.contains_key("leaf"));

    let web = ContainerName::new("web")?;
    refused(leaf, &ShowContainer { name: web.clone() }, "container.web").await?;
    refused(
        leaf,
        &ShowHardware {
            id: DeviceId::new("npu-1")?,
        },
        "device.npu-1",
    )
    .await?;
    let job: JobId = JOB.parse()?;
    refused(leaf, &ShowJob { id: job }, &format!("job.{JOB}")).await?;
    refused(leaf, &CancelJob { id: job }, &format!("job.{JOB}")).await?;
    ensure!(leaf.call(&ListContainers {}).await?.containers.is_empty());
    let scan = leaf.call(&RescanHardware {}).await?;
    ensure!(scan.vanished.is_empty(), "{scan:?}");
    Ok(())
}

/// A leaf that runs with what a newer leafd wrote, and the events of that.
async fn leaf_of_a_newer_leafd() -> anyhow::Result<(TestLeaf, Vec<EventRecord>)> {
    let mut leaf = Setup::new()
        .set("events.snapshot_every", i64::try_from(SNAPSHOT_EVERY)?)
        .start()
        .await?;
    leaf.stop().await?;
    let events = write_as_a_newer_leafd(&leaf).await?;
    leaf.start_again().await?;
    shown_and_left_alone(&mut leaf).await?;
    Ok((leaf, events))
}

/// Makes sure that these events are in the stream as they were written; returns all that are in it.
async fn published_unchanged(
    leaf: &mut TestLeaf,
    events: &[EventRecord],
) -> anyhow::Result<Vec<EventRecord>> {
    leaf.published().await?;
    let published = leaf.complete_events(1).await?;
    let from = usize::try_from(events[0].sequence)? - 1;
    ensure!(
        published[from..from + events.len()] == *events,
        "the events were changed"
    );
    Ok(published)
}

/// A leaf, and a device of it.
async fn leaf_with_a_device() -> anyhow::Result<(TestLeaf, Device)> {
    let mut leaf = TestLeaf::start().await?;
    // The first scan may not have ended yet.
    leaf.call(&RescanHardware {}).await?;
    let devices = leaf.call(&ListHardware {}).await?.devices;
    let device = devices.into_iter().next().context("a device")?;
    Ok((leaf, device))
}

pub(super) async fn kept_shown_and_left_alone() -> anyhow::Result<()> {
    let (mut leaf, events) = leaf_of_a_newer_leafd().await?;
    // The events are in the stream as they were written, and a snapshot with the entries follows them.
    let published = published_unchanged(&mut leaf, &events).await?;
    let last = usize::try_from(events[events.len() - 1].sequence)?;
    let snapshot = published[last..]
        .iter()
        .find(|event| event.kind() == Some("cim.leaf.leaf.snapshotted.v1"))
        .context("a snapshot follows")?;
    let snapshot: Value = serde_json::from_slice(&snapshot.body)?;
    for (key, value) in entries() {
        ensure!(
            snapshot["entries"][key] == value,
            "{key} in the snapshot: {snapshot}"
        );
    }
    leaf.stop().await?;
    untouched(&leaf).await?;

    // It goes on, from the journal and, without it, from the stream.
    leaf.start_again().await?;
    shown_and_left_alone(&mut leaf).await?;
    leaf.published().await?;
    leaf.stop().await?;
    untouched(&leaf).await?;
    std::fs::remove_file(leaf.journal_file())?;
    leaf.start_again().await?;
    leaf.logged("importing the stream's events into the journal")
        .await?;
    shown_and_left_alone(&mut leaf).await?;
    let status = leaf.stop().await?;
    ensure!(status.success(), "{status}");
    let (journal, opened) = open_with_state(&leaf).await?;
    holds_the_entries(&opened)?;
    journal.close().await;
    Ok(())
}

pub(super) async fn an_event_is_kept_with_what_it_is_about() -> anyhow::Result<()> {
    let (mut leaf, device) = leaf_with_a_device().await?;
    leaf.published().await?;
    leaf.kill().await?;
    let (journal, opened) = open_with_state(&leaf).await?;
    let key = format!("device.{}", device.id);
    let entry = opened.entries[&key].clone();
    let sequence = journal.last_sequence() + 1;
    let record = unknown(&leaf, journal.epoch(), sequence, "device", device.id.as_str());
    journal.close().await;
    super::stream::publish(&leaf, &record).await?;

    leaf.start_again().await?;
    leaf.logged("importing the stream's events into the journal")
        .await?;
    let raw_key = format!("raw.{sequence:020}");
    for _ in 0..2 {
        let raw = leaf.show().await?.raw_entries;
        ensure!(
            raw.iter()
                .any(|raw| raw.key == key && raw.reason.contains("polished")),
            "{raw:?}"
        );
        refused(
            &mut leaf,
            &ShowHardware {
                id: device.id.clone(),
            },
            &key,
        )
        .await?;
        leaf.call(&RescanHardware {}).await?;
        let bucket = until("the bucket has the event", async || {
            let bucket = leaf.bucket().await?;
            Ok(bucket.contains_key(&raw_key).then_some(bucket))
        })
        .await?;
        ensure!(bucket[&raw_key]["about"] == json!(key), "{:?}", bucket[&raw_key]);
        ensure!(bucket.get(&key) == Some(&entry), "{:?}", bucket.get(&key));
        leaf.restart().await?;
    }
    leaf.published().await?;
    let events = leaf.complete_events(1).await?;
    let about: Vec<&EventRecord> = events
        .iter()
        .filter(|event| {
            event.sequence >= sequence && event.subject.contains(&format!(".device.{}.", device.id))
        })
        .collect();
    ensure!(about == [&record], "{about:?}");
    Ok(())
}

/// An event that an older leafd kept is added to the state by the first that can read it.
pub(super) async fn an_event_that_was_kept_is_read_later() -> anyhow::Result<()> {
    let (mut leaf, mut device) = leaf_with_a_device().await?;
    leaf.stop().await?;
    device.id = DeviceId::new("late-1")?;
    let (journal, _) = open_with_state(&leaf).await?;
    let sequence = journal.last_sequence() + 1;
    let raw_key = format!("raw.{sequence:020}");
    let raw = json!({
        "sequence": sequence, "time": Timestamp::now(), "kind": "cim.leaf.device.appeared.v1",
        "about": "device.late-1", "body": { "device": device },
    });
    let batch = Batch {
        events: vec![unknown(&leaf, journal.epoch(), sequence, "tunnel", "office")],
        entries: vec![(raw_key.clone(), Some(Bytes::from(raw.to_string())))],
        commands: Vec::new(),
    };
    journal.commit(batch).await?;
    journal.close().await;

    leaf.start_again().await?;
    ensure!(leaf.show().await?.raw_entries.is_empty());
    leaf.call(&RescanHardware {}).await?;
    let shown = leaf
        .call(&ShowHardware {
            id: device.id.clone(),
        })
        .await?;
    ensure!(
        shown.status == DeviceStatus::Absent,
        "no look finds it: {shown:?}"
    );
    let status = leaf.stop().await?;
    ensure!(status.success(), "{status}");
    let (journal, opened) = open_with_state(&leaf).await?;
    ensure!(
        !opened.entries.contains_key(&raw_key),
        "the event is in the state now"
    );
    ensure!(opened.entries.contains_key("device.late-1"));
    journal.close().await;
    Ok(())
}

/// This leafd, then an older one, then this one again, over one state directory. The older one has to be of the commit that
/// brought decision 9 (0859ea8) or a later one: those before it don't start on an entry that they can't read.
pub(super) async fn to_an_older_program_and_back() -> anyhow::Result<()> {
    let old = std::env::var_os(OLD_LEAFD)
        .map(PathBuf::from)
        .context("it is skipped without")?;
    let (mut leaf, events) = leaf_of_a_newer_leafd().await?;
    // The older one knows no labels, and records its own start in the same entry.
    leaf.call(&LabelLeaf {
        set: [("rack".to_owned(), "7".to_owned())].into(),
        remove: BTreeSet::new(),
    })
    .await?;
    leaf.stop().await?;
    for _ in 0..2 {
        leaf.run_program(&old);
        leaf.start_again().await?;
        shown_and_left_alone(&mut leaf).await?;
        leaf.published().await?;
        let status = leaf.stop().await?;
        ensure!(status.success(), "{status}");
        untouched(&leaf).await?;
        // It keeps the marks of the time as they are, and they don't say any more since when all commands are known.
        let (journal, _) = open_with_state(&leaf).await?;
        let marks = journal.marks();
        ensure!(marks.floor.is_none() && marks.seen.is_some(), "{marks:?}");
        journal.close().await;
        leaf.run_own_program();
        leaf.start_again().await?;
        let labels = leaf.show().await?.labels;
        ensure!(labels.get("rack").is_some_and(|value| value == "7"), "{labels:?}");
        shown_and_left_alone(&mut leaf).await?;
        published_unchanged(&mut leaf, &events).await?;
        leaf.stop().await?;
        untouched(&leaf).await?;
    }
    Ok(())
}
