//! Killed again and again while events are made: what was answered stays, each event stands once and in order, and a
//! replay gives the state that the leaf shows.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, ensure};
use leaf_core::event::EventRecord;

use super::load::{self, Load};
use crate::support::{TestLeaf, until};

const KILLS_OF_THE_SERVER: usize = 20;
const KILLS_OF_THE_LEAF: usize = 50;

/// The longest time from a start of the leaf to its end, in milliseconds.
const LIFE_MS: u64 = 1500;

/// Chance that can be repeated (SplitMix64).
pub(super) struct Chance(u64);

impl Chance {
    /// From `CIM_LEAF_TEST_SEED`, or from the clock.
    pub(super) fn new() -> Self {
        let given = std::env::var("CIM_LEAF_TEST_SEED")
            .ok()
            .and_then(|text| text.parse().ok());
        Self(given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            now.map_or(1, |now| now.as_nanos() as u64)
        }))
    }

    /// From this seed.
    pub(super) fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// What repeats it, before anything was drawn.
    pub(super) fn seed(&self) -> u64 {
        self.0
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// Ends the load, and holds all that was answered against the stream and against what the leaf shows.
async fn check_all(leaf: &mut TestLeaf, load: Load) -> anyhow::Result<()> {
    let done = load.finish().await?;
    let events = shown_as_published(leaf).await?;
    load::check_done(&events, &done)?;
    // And the journal agrees, when nobody has it in memory any more.
    let status = leaf.stop().await?;
    ensure!(status.success(), "{status}");
    leaf.start_again().await?;
    shown_as_published(leaf).await.map(drop)
}

/// Checks that the leaf shows the state that its events give, and returns them. It may record another event between two
/// looks at it, such as a change of the hardware: then both are read again.
async fn shown_as_published(leaf: &mut TestLeaf) -> anyhow::Result<Vec<EventRecord>> {
    for _ in 0..10 {
        let last = leaf.published().await?;
        let events = leaf.complete_events(1).await?;
        let shown = load::check_shown(leaf, &TestLeaf::replay(&events)?).await;
        if leaf.show().await?.sequence == last {
            shown?;
            ensure!(
                events.len() as u64 == last,
                "{} events of {last} are in the stream",
                events.len()
            );
            return Ok(events);
        }
    }
    anyhow::bail!("it recorded an event between any two looks at it")
}

/// Runs a test with a leaf that is under load. Where it fails, the error has the seed of its chance, and the log.
async fn under_load(
    test: impl AsyncFnOnce(&mut TestLeaf, Load, &mut Chance) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (mut leaf, _) = load::busy_leaf(load::setup()).await?;
    let load = Load::start(&leaf);
    let mut chance = Chance::new();
    let seed = chance.seed();
    let tested = test(&mut leaf, load, &mut chance).await;
    leaf.with_log(tested.with_context(|| format!("with CIM_LEAF_TEST_SEED={seed}")))
}

pub(super) async fn the_server() -> anyhow::Result<()> {
    under_load(async |leaf, mut load, chance| {
        for kill in 0..KILLS_OF_THE_SERVER {
            load.answers_more(1 + chance.below(40))
                .await
                .with_context(|| format!("before kill {kill}"))?;
            let killed = leaf.kill_nats().await?;
            until("another nats-server runs", async || {
                Ok(leaf.nats_pid().filter(|pid| *pid != killed))
            })
            .await?;
        }
        check_all(leaf, load).await
    })
    .await
}

pub(super) async fn the_leaf() -> anyhow::Result<()> {
    under_load(async |leaf, mut load, chance| {
        load.answers_more(10).await?;
        let mut answered = load.answered();
        let mut busy = 0;
        for kill in 0..KILLS_OF_THE_LEAF {
            let end = Instant::now() + Duration::from_millis(chance.below(LIFE_MS));
            tokio::time::sleep_until(end.into()).await;
            busy += usize::from(load.answered() > answered);
            answered = load.answered();
            leaf.kill().await.with_context(|| format!("kill {kill}"))?;
            leaf.launch_again()?;
        }
        ensure!(
            busy >= KILLS_OF_THE_LEAF / 10,
            "commands were answered in {busy} lives only: this shows nothing"
        );
        leaf.ready().await?;
        load.answers_more(10).await?;
        check_all(leaf, load).await
    })
    .await
}
