//! A history of faults, checked as a whole: the link is cut, slow, lossy or silent, the leaf, its server and the hub agent are
//! killed, in an order of chance, while callers at the hub and at the leaf send commands. `CIM_LEAF_TEST_SEED` repeats a run,
//! `CIM_LEAF_TEST_FAULTS` makes it longer, and `CIM_LEAF_TEST_SEEDS=1-1000` makes a test of each of these seeds.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leaf_bus::client::CallOptions;
use leaf_core::command::ShowLeaf;
use leaf_core::event::EventRecord;
use libtest_mimic::Trial;

use super::kills::Chance;
use super::load::{self, Load};
use crate::support::{Host, HubSite, Need, TestLeaf, Weather, Wire, until};

const KILLS: &str = "through cuts of the link and kills of leaf, server and hub agent each event is at the hub once, and each command is carried out once";

const WEATHER: &str = "over a link that is slow, lossy, silent or cut each event is at the hub once, each command is carried out once, and the leaf is not taken for away while it is heard";

/// The variable with the first and the last of the seeds that are each run, as `1-1000`.
const SEEDS: &str = "CIM_LEAF_TEST_SEEDS";

/// How many faults there are.
const FAULTS: u64 = 10;

/// The longest time that a fault lasts, and that is between two, in milliseconds.
const LONGEST_MS: u64 = 1500;

/// For how long the link may carry nothing, but for the pauses between faults, in which a claim need not get through: the last claim before
/// may be ten seconds old, a new one takes a few, and a leaf whose claim is thirty seconds old is away.
const UNHEARD: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy)]
enum Fault {
    Cut,
    Leaf,
    Server,
    Agent,
    Slow,
    Lossy,
    Silent,
}

/// The two kinds of histories: what they are called, and the faults that they draw from.
const KINDS: [(&str, [Fault; 4]); 2] = [
    (KILLS, [Fault::Cut, Fault::Leaf, Fault::Server, Fault::Agent]),
    (WEATHER, [Fault::Cut, Fault::Slow, Fault::Lossy, Fault::Silent]),
];

/// One test of each kind, or one for each of the seeds that the environment names.
pub(super) fn trials(host: &Host) -> Vec<Trial> {
    let needs = [Need::Nix, Need::HubAgent];
    let Some(seeds) = std::env::var_os(SEEDS) else {
        return KINDS
            .map(|(name, faults)| host.trial(name, &needs, move || checked(Chance::new(), faults)))
            .into();
    };
    let bounds = seeds
        .to_str()
        .and_then(|seeds| seeds.split_once('-'))
        .and_then(|(first, last)| Some(first.parse::<u64>().ok()?..=last.parse().ok()?));
    let Some(bounds) = bounds.filter(|bounds| !bounds.is_empty()) else {
        panic!("{SEEDS} is {seeds:?} and not the first and the last seed, such as 1-1000");
    };
    let of_kind = |(name, faults)| {
        bounds.clone().map(move |seed| {
            let name = format!("{name}, with the seed {seed}");
            host.trial(name, &needs, move || checked(Chance::of(seed), faults))
        })
    };
    KINDS.into_iter().flat_map(of_kind).collect()
}

async fn checked(mut chance: Chance, kinds: [Fault; 4]) -> anyhow::Result<()> {
    let mut hub = HubSite::start().await?;
    let wire = hub.wire().await?;
    hub.start_agent()?;
    let (mut leaf, _) = load::busy_leaf(hub.setup(&wire).set("nix.max_jobs", 1)).await?;
    let seed = chance.seed();
    let tested = async {
        let at_hub = hub.context()?;
        let mut loads = [Load::start(&leaf), Load::through(&leaf, &at_hub, "hub")];
        let faults = std::env::var("CIM_LEAF_TEST_FAULTS")
            .ok()
            .and_then(|text| text.parse().ok());
        let mut happened = Vec::new();
        let (mut carried, mut unheard) = (Instant::now(), Duration::ZERO);
        for _ in 0..faults.unwrap_or(FAULTS) {
            tokio::time::sleep(Duration::from_millis(chance.below(LONGEST_MS))).await;
            let fault = kinds[chance.below(4) as usize];
            happened.push(fault);
            let lasts = Duration::from_millis(chance.below(LONGEST_MS));
            suffer(fault, lasts, &mut leaf, &wire, &mut hub)
                .await
                .with_context(|| format!("after {happened:?}"))?;
            if matches!(fault, Fault::Slow | Fault::Lossy) {
                carried = Instant::now();
            }
            unheard = unheard.max(carried.elapsed());
        }
        until("the leaf runs, and answers", async || {
            leaf.launch_again_if_ended()?;
            let person = hub.ann().await?;
            let shown = person.call(&leaf.name, &ShowLeaf {}, CallOptions::default());
            Ok(Some(shown.await?))
        })
        .await
        .with_context(|| format!("after {happened:?}"))?;
        // Both kinds of callers are answered again. A leaf whose claim the hub refuses for a while is started again, as by systemd.
        let answered = async {
            for load in &mut loads {
                load.answers_more(20)
                    .await
                    .with_context(|| format!("after {happened:?}"))?;
            }
            anyhow::Ok(())
        };
        let kept_up = async {
            loop {
                leaf.launch_again_if_ended()?;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::select! {
            answered = answered => answered?,
            ended = kept_up => return ended,
        }
        let mut done = Vec::new();
        for load in loads {
            done.extend(load.finish().await?);
        }
        let own = settled(&mut leaf).await?;
        let copied = copied(&hub, &leaf, own.len()).await?;
        ensure!(
            copied == own,
            "after {happened:?} the hub's copy is not what the leaf has"
        );
        ensure!(
            unheard > UNHEARD
                || happened.iter().any(|fault| matches!(fault, Fault::Leaf))
                || !hub.agent_log().contains("state=away"),
            "after {happened:?} the agent took the leaf for away, though the link carried nothing for {unheard:?} at most"
        );
        load::check_done(&copied, &done).with_context(|| format!("after {happened:?}"))
    };
    let tested: anyhow::Result<()> = tested.await;
    let said = |error: anyhow::Error| {
        error.context(format!(
            "with CIM_LEAF_TEST_SEED={seed}; the hub agent's log:\n{}",
            hub.agent_log()
        ))
    };
    leaf.with_log(tested.map_err(said))
}

async fn suffer(
    fault: Fault,
    lasts: Duration,
    leaf: &mut TestLeaf,
    wire: &Wire,
    hub: &mut HubSite,
) -> anyhow::Result<()> {
    match fault {
        Fault::Cut => changed(wire, Weather::Cut, lasts).await,
        // It takes a while until a queue is long.
        Fault::Slow => changed(wire, Weather::Slow, 4 * lasts).await,
        Fault::Lossy => changed(wire, Weather::Lossy, 4 * lasts).await,
        // The servers at both ends take a silent connection for dead after two pings, of two seconds each.
        Fault::Silent => changed(wire, Weather::Stalled, 4 * lasts).await,
        Fault::Leaf => {
            leaf.launch_again_if_ended()?;
            leaf.kill().await?;
            tokio::time::sleep(lasts).await;
            leaf.launch_again()?;
        }
        // One that is killed during its start ends the start of the leaf, which systemd begins anew.
        Fault::Server => {
            until("a nats-server was killed", async || {
                leaf.launch_again_if_ended()?;
                match leaf.nats_pid() {
                    Some(_) => leaf.kill_nats().await.map(Some),
                    None => Ok(None),
                }
            })
            .await?;
        }
        Fault::Agent => {
            hub.kill_agent().await?;
            tokio::time::sleep(lasts).await;
            hub.start_agent()?;
        }
    }
    Ok(())
}

async fn changed(wire: &Wire, weather: Weather, lasts: Duration) {
    wire.becomes(weather);
    tokio::time::sleep(lasts).await;
    wire.mend();
}

/// Returns the leaf's events when it records no more.
async fn settled(leaf: &mut TestLeaf) -> anyhow::Result<Vec<EventRecord>> {
    // Its server's address is another one if the old one was taken meanwhile.
    leaf.forget_client();
    for _ in 0..10 {
        let events = leaf.complete_events(1).await?;
        if leaf.show().await?.sequence == events.len() as u64 {
            return Ok(events);
        }
    }
    anyhow::bail!("it recorded an event between any two looks at it")
}

/// Returns the hub's copy, as a person reads it, when it has this many events.
async fn copied(hub: &HubSite, leaf: &TestLeaf, events: usize) -> anyhow::Result<Vec<EventRecord>> {
    use futures::StreamExt as _;
    use leaf_bus::client::EventsFrom;
    let person = hub.ann().await?;
    until("the copy is whole", async || {
        let last = person.last_sequence(&leaf.name).await?;
        Ok((last >= events as u64).then_some(()))
    })
    .await?;
    let all = person.events(&leaf.name, EventsFrom::Sequence(1)).take(events);
    let all: Vec<_> = all.collect().await;
    Ok(all.into_iter().collect::<Result<_, _>>()?)
}
