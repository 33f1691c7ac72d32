//! A link that is cut for weeks, in which the leaf records far more than its journal keeps once it is published.
//! `CIM_LEAF_TEST_EVENTS=1000000` makes it longer and prints how long each part took, and the memory.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use leaf_bus::client::{Client, EventsFrom};
use leaf_core::event::{Event, EventRecord, Fact, LeafStopped};
use leaf_core::id::{InstanceId, LeafName};
use leaf_journal::Batch;
use libtest_mimic::Trial;

use crate::support::{Host, HubSite, LIMIT, Need, TestLeaf, until};

const EVENTS: &str = "CIM_LEAF_TEST_EVENTS";

/// The time that the events are spread over.
const ABSENCE: SignedDuration = SignedDuration::from_hours(4 * 7 * 24);

/// How many events are one commit of the journal.
const BATCH: u64 = 1000;

/// What leafd, and what the agent, may need in memory at most, in KiB, however many events there are.
const MEMORY_KIB: u64 = 64 << 10;

pub(super) fn trial(host: &Host) -> Trial {
    let given = std::env::var(EVENTS).ok();
    let count = given.as_deref().map_or(50_000, |count| {
        count
            .parse()
            .unwrap_or_else(|_| panic!("{EVENTS} is no number: {count}"))
    });
    host.trial_within(
        Duration::from_secs(300 + count / 500),
        "after weeks without its hub all that a leaf recorded meanwhile is there, once and in order, and neither side needs more memory",
        &[Need::HubAgent],
        move || after_weeks(count, given.is_some()),
    )
}

async fn after_weeks(count: u64, tells: bool) -> anyhow::Result<()> {
    let mut hub = HubSite::start().await?;
    let wire = hub.wire().await?;
    hub.start_agent()?;
    let mut leaf = hub
        .setup(&wire)
        .set("log", "info,leafd::hub=debug")
        .start()
        .await?;
    let tested = async {
        let before = leaf.published().await?;
        let (admin, ann) = (leaf.connect().await?, hub.ann().await?);
        grows_to(&ann, &leaf.name, before).await?;
        wire.cut();
        leaf.stop().await?;
        let recorded = Instant::now();
        let missed = Missed::record(&leaf, count).await?;
        let recorded = recorded.elapsed();

        // It has no hub, and a journal from which it publishes.
        let published = Instant::now();
        leaf.start_again().await?;
        leaf.forget_client();
        let admin = until("the leaf's own people are back", async || {
            Ok(admin.last_sequence(&leaf.name).await.ok().map(|_| admin.clone()))
        })
        .await?;
        grows_to(&admin, &leaf.name, missed.last).await?;
        let last = leaf.published().await?;
        let published = published.elapsed();
        ensure!(
            ann.last_sequence(&leaf.name).await? < missed.first,
            "the link was not cut"
        );

        wire.mend();
        let copied = Instant::now();
        grows_to(&ann, &leaf.name, last).await?;
        let copied = copied.elapsed();
        missed.are_copied(&leaf.name, &admin, &ann, last).await?;

        let leafd = high_water_kib(leaf.pid())?;
        let agent = high_water_kib(hub.agent_pid())?;
        if tells {
            eprintln!(
                "{count} events: written into the journal in {recorded:.1?}, published into the leaf's stream in {published:.1?}, \
                 copied to the hub in {copied:.1?}; at most {leafd} KiB of memory for leafd, {agent} KiB for the agent"
            );
        }
        for (name, kib) in [("leafd", leafd), ("the agent", agent)] {
            ensure!(kib < MEMORY_KIB, "{name} needed {kib} KiB");
        }
        // And the link is as before.
        let last = last + 1;
        leaf.restart().await?;
        grows_to(&ann, &leaf.name, last).await
    };
    let tested: anyhow::Result<()> = tested.await;
    let tested = tested.with_context(|| format!("the hub agent's log:\n{}", hub.agent_log()));
    leaf.with_log(tested)
}

/// What was recorded while the hub was away.
struct Missed {
    first: u64,
    last: u64,
    begin: Timestamp,
    epoch: u64,
}

impl Missed {
    /// Writes events into the journal of a leaf that does not run.
    async fn record(leaf: &TestLeaf, count: u64) -> anyhow::Result<Self> {
        let journal = super::journal::open(leaf).await?;
        let first = journal.last_sequence() + 1;
        let missed = Self {
            first,
            last: first + count - 1,
            begin: Timestamp::now() - ABSENCE,
            epoch: journal.epoch(),
        };
        let mut next = first;
        while next <= missed.last {
            let end = missed.last.min(next + BATCH - 1);
            let events = (next..=end).map(|sequence| missed.event(&leaf.name, sequence));
            let batch = Batch {
                events: events.collect(),
                ..Batch::default()
            };
            journal.commit(batch).await?;
            next = end + 1;
        }
        journal.close().await;
        Ok(missed)
    }

    fn event(&self, leaf: &LeafName, sequence: u64) -> EventRecord {
        let count = i128::from(self.last - self.first + 1);
        let after = ABSENCE.as_nanos() * i128::from(sequence - self.first) / count;
        let event = Event {
            sequence,
            time: self.begin + SignedDuration::from_nanos_i128(after),
            causation: None,
            correlation: None,
            fact: Fact::from(LeafStopped {
                instance: InstanceId(uuid::Uuid::nil()),
                reason: format!("the event {sequence} of a long absence"),
            }),
        };
        event.to_record(leaf, self.epoch)
    }

    /// Makes sure that the hub's copy has these events, and is what the leaf's stream is up to this number.
    async fn are_copied(
        &self,
        leaf: &LeafName,
        at_leaf: &Client,
        at_hub: &Client,
        last: u64,
    ) -> anyhow::Result<()> {
        let own = at_leaf.events(leaf, EventsFrom::Sequence(1));
        let copied = at_hub.events(leaf, EventsFrom::Sequence(1));
        let mut both = own.zip(copied);
        for sequence in 1..=last {
            let next = tokio::time::timeout(LIMIT, both.next()).await;
            let (own, copied) = next
                .with_context(|| format!("reading event {sequence}"))?
                .context("the events end")?;
            let (own, copied) = (own?, copied?);
            ensure!(
                own.sequence == sequence,
                "{own:?} is event {sequence} of the leaf"
            );
            ensure!(
                copied == own,
                "event {sequence} is {own:?} at the leaf and {copied:?} at the hub"
            );
            if (self.first..=self.last).contains(&sequence) {
                ensure!(
                    copied == self.event(leaf, sequence),
                    "{copied:?} was not recorded so"
                );
            }
        }
        Ok(())
    }
}

/// Waits until a stream ends with this number or a later one. It may take its time as long as it grows.
async fn grows_to(client: &Client, leaf: &LeafName, wanted: u64) -> anyhow::Result<()> {
    let mut reached = 0;
    while reached < wanted {
        reached = until(
            &format!("there are more than {reached} of {wanted} events"),
            async || {
                let last = client.last_sequence(leaf).await?;
                Ok((last >= wanted || last > reached).then_some(last))
            },
        )
        .await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Returns the most memory that a process has had, in KiB.
fn high_water_kib(pid: Option<u32>) -> anyhow::Result<u64> {
    let pid = pid.context("it runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|line| line.split_whitespace().next())
        .context("VmHWM")?;
    Ok(kib.parse()?)
}
