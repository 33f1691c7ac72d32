//! A leaf and the hub's copy of its events: what a leaf does at its start and while it runs, with an agent that answers as
//! the contract says, and with one that doesn't.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use leaf_bus::client::EventsFrom;
use leaf_core::command::HubReport;
use leaf_core::event::EventRecord;
use leaf_core::fleet::CopyState;

use crate::support::{HubSite, Manner, Setup, TestAgent, TestLeaf, Wire, until};

/// A hub, an agent, and a leaf that is connected to it.
struct Site {
    hub: HubSite,
    agent: TestAgent,
    wire: Wire,
}

impl Site {
    async fn start() -> anyhow::Result<Self> {
        let hub = HubSite::start().await?;
        let agent = TestAgent::start(&hub).await?;
        let wire = hub.wire().await?;
        Ok(Self { hub, agent, wire })
    }

    fn setup(&self) -> Setup {
        self.hub.setup(&self.wire)
    }

    /// A stopped leaf whose events are all in the copy, and an older image of its disk.
    async fn with_an_older_image(&self) -> anyhow::Result<Aged> {
        let mut leaf = self.setup().start().await?;
        some_history(&mut leaf, 2).await?;
        leaf.stop().await?;
        let image = leaf.scratch().join("image");
        copy_directory(&leaf.state_dir, &image)?;
        leaf.start_again().await?;
        some_history(&mut leaf, 4).await?;
        let events = stopped_with_events(&mut leaf).await?;
        self.agent.has(&events);
        self.agent.forgets_the_holder();
        Ok(Aged { leaf, image, events })
    }
}

struct Aged {
    leaf: TestLeaf,
    image: PathBuf,
    events: Vec<EventRecord>,
}

impl Aged {
    /// Puts the older image back.
    fn restore(&mut self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.leaf.state_dir)?;
        copy_directory(&self.image, &self.leaf.state_dir)?;
        self.leaf.forget_client();
        Ok(())
    }

    /// Takes the whole disk away.
    fn lose(&mut self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.leaf.state_dir)?;
        self.leaf.forget_client();
        Ok(())
    }

    /// Makes sure that the leaf's stream has these events, then those of a new start, each number once.
    async fn went_on(&mut self) -> anyhow::Result<()> {
        went_on(&mut self.leaf, &self.events).await
    }
}

async fn went_on(leaf: &mut TestLeaf, before: &[EventRecord]) -> anyhow::Result<()> {
    leaf.published().await?;
    let events = leaf.complete_events(1).await?;
    ensure!(events.len() > before.len(), "it did not go on");
    ensure!(events[..before.len()] == *before, "the history is another one");
    ensure!(
        events[before.len()].kind() == Some("cim.leaf.leaf.started.v1"),
        "{:?} comes next",
        events[before.len()].kind()
    );
    let replayed = TestLeaf::replay(&events)?;
    super::load::check_shown(leaf, &replayed).await
}

fn copy_directory(from: &Path, to: &Path) -> anyhow::Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Some events more: those of starts and stops.
async fn some_history(leaf: &mut TestLeaf, restarts: usize) -> anyhow::Result<()> {
    for _ in 0..restarts {
        leaf.restart().await?;
    }
    leaf.published().await.map(drop)
}

/// Stops a leaf and returns its events, with those of its end.
async fn stopped_with_events(leaf: &mut TestLeaf) -> anyhow::Result<Vec<EventRecord>> {
    leaf.published().await?;
    let mut events = leaf.complete_events(1).await?;
    leaf.stop().await?;
    let journal = super::journal::open(leaf).await?;
    while (events.len() as u64) < journal.last_sequence() {
        events.extend(journal.read(events.len() as u64 + 1, 1 << 20)?);
    }
    journal.close().await;
    Ok(events)
}

/// Waits until the leaf shows such a connection to its hub.
async fn shows_hub(leaf: &mut TestLeaf, is: impl Fn(&HubReport) -> bool) -> anyhow::Result<HubReport> {
    let mut last = None;
    let found = until("the leaf shows its hub so", async || {
        last = leaf.show().await?.hub;
        Ok(last.clone().filter(|hub| is(hub)))
    })
    .await;
    found.with_context(|| format!("it shows {last:?}"))
}

pub(super) async fn an_older_image() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut aged = site.with_an_older_image().await?;
    aged.restore()?;
    aged.leaf.start_again().await?;
    aged.leaf
        .logged("the hub has events that this leaf lacks")
        .await?;
    ensure!(site.agent.pages() > 2, "it was read page by page");
    // The agent, which waits for the end of the import, hears of it at once.
    let copied = aged.events.last().map(|event| event.sequence);
    let claimed = site.agent.last_claim().map(|claim| claim.stream_last);
    ensure!(claimed == copied, "the last claim says {claimed:?}");
    aged.went_on().await?;
    // And for good, without the hub as well.
    let last = aged.leaf.published().await?;
    site.wire.cut();
    aged.leaf.restart().await?;
    ensure!(aged.leaf.published().await? > last);
    aged.leaf.complete_events(1).await.map(drop)
}

pub(super) async fn an_older_image_without_the_hub() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut aged = site.with_an_older_image().await?;
    aged.restore()?;
    site.wire.cut();
    aged.leaf.start_again().await?;
    let hub = shows_hub(&mut aged.leaf, |hub| hub.problem.is_some()).await?;
    ensure!(!hub.connected && hub.claimed_at.is_none(), "{hub:?}");
    site.wire.mend();
    aged.leaf
        .refuses(&[
            "this leaf and the hub's copy have different events with the sequence number",
            &format!("leaf-hub reset {}", site.hub.leaf),
        ])
        .await?;

    // Now it knows before it does anything.
    let before = super::journal::open(&aged.leaf).await?;
    let last = before.last_sequence();
    before.close().await;
    aged.leaf.launch_again()?;
    let ready = "not ready: this is tried again until it succeeds";
    aged.leaf.logged(ready).await?;
    let claims = site.agent.claims();
    site.agent.next_claim().await?;
    ensure!(
        aged.leaf.log().matches(ready).count() == 1,
        "{claims} claims, and it is said more than once"
    );
    ensure!(aged.leaf.stop().await?.success(), "it can be stopped meanwhile");
    let after = super::journal::open(&aged.leaf).await?;
    ensure!(after.last_sequence() == last, "it recorded something");
    after.close().await;

    // As the error says.
    std::fs::remove_file(aged.leaf.journal_file())?;
    std::fs::remove_dir_all(aged.leaf.state_dir.join("nats"))?;
    aged.leaf.forget_client();
    site.agent.forgets_the_holder();
    aged.leaf.start_again().await?;
    aged.went_on().await
}

pub(super) async fn a_lost_disk() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut aged = site.with_an_older_image().await?;
    aged.lose()?;
    // A leaf without a history does not begin one while the hub may have it.
    site.wire.cut();
    aged.leaf.launch_again()?;
    aged.leaf
        .logged("this leaf has no events yet, and the hub, which may have its history, does not answer")
        .await?;
    site.wire.mend();
    aged.leaf.ready().await?;
    aged.went_on().await?;
    // What the copy has dropped is not missed.
    let events = stopped_with_events(&mut aged.leaf).await?;
    let kept = &events[events.len() / 2..];
    site.agent.has(kept);
    site.agent.forgets_the_holder();
    aged.lose()?;
    aged.leaf.start_again().await?;
    aged.leaf.published().await?;
    let found = aged.leaf.complete_events(kept[0].sequence).await?;
    ensure!(found[..kept.len()] == *kept, "the history is another one");
    Ok(())
}

pub(super) async fn two_at_the_ends_of_a_cut_wire() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut first = site.setup().start().await?;
    some_history(&mut first, 0).await?;
    let other_wire = site.hub.wire().await?;
    // A copy of its disk, as a virtual machine is cloned.
    first.stop().await?;
    let clone = first.scratch().join("clone");
    copy_directory(&first.state_dir, &clone)?;
    first.start_again().await?;
    let holder = first.show().await?.instance;
    other_wire.cut();
    let mut second = site.hub.setup(&other_wire).state_dir(&clone).launch().await?;
    second.ready().await?;
    ensure!(second.show().await?.instance != holder);
    other_wire.mend();
    second
        .refuses(&[
            &format!("leaf {} is held by instance {holder}", site.hub.leaf),
            "give this one another name",
        ])
        .await?;
    ensure!(first.show().await?.instance == holder, "the first one goes on");

    // At its next start it takes no commands, until the first one is gone.
    second.launch_again()?;
    second
        .logged("the hub says that another instance has this leaf's name")
        .await?;
    first.stop().await?;
    site.agent.forgets_the_holder();
    second.ready().await
}

pub(super) async fn without_the_hub() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut leaf = site.setup().start().await?;
    leaf.published().await?;
    let hub = shows_hub(&mut leaf, |hub| hub.connected).await?;
    ensure!(hub.claimed_at.is_some() && hub.copied.is_none(), "{hub:?}");
    site.wire.cut();
    let began = Instant::now();
    leaf.restart().await?;
    let took = began.elapsed();
    ensure!(
        took > Duration::from_secs(5) && took < Duration::from_secs(20),
        "it waited for {took:?}"
    );
    leaf.logged("the leaf starts without the hub").await?;
    // Its own people are answered, and its events are recorded and published.
    let last = leaf.published().await?;
    site.agent.has(&leaf.complete_events(1).await?);
    site.wire.mend();
    leaf.logged("the hub answers, and its copy agrees with the leaf")
        .await?;
    let hub = shows_hub(&mut leaf, |hub| hub.connected).await?;
    ensure!(hub.copied.is_some_and(|copied| copied >= last), "{hub:?}");

    // While it runs, too.
    site.wire.cut();
    leaf.logged("no claim at the hub at the moment: the leaf goes on")
        .await?;
    let hub = shows_hub(&mut leaf, |hub| !hub.connected).await?;
    ensure!(
        hub.problem
            .is_some_and(|why| why.contains("no hub agent answers"))
            && hub.claimed_at.is_some()
    );
    Ok(())
}

pub(super) async fn a_hub_of_last_week() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut leaf = site.setup().start().await?;
    some_history(&mut leaf, 2).await?;
    let events = leaf.complete_events(1).await?;
    site.agent.has(&events);
    site.agent.next_claim().await?;
    let all = events.last().map(|event| event.sequence);
    shows_hub(&mut leaf, |hub| hub.copied == all).await?;
    let old = &events[..events.len() / 2];
    site.agent.has(old);
    let last = old.last().map(|event| event.sequence);
    shows_hub(&mut leaf, |hub| {
        hub.connected && hub.copied == last && hub.lost_after == all
    })
    .await?;
    // A hub that lost everything.
    site.agent.has(&[]);
    shows_hub(&mut leaf, |hub| {
        hub.connected && hub.copied.is_none() && hub.lost_after == all
    })
    .await?;
    site.agent.has(old);
    leaf.restart().await?;
    leaf.published().await?;
    leaf.complete_events(1).await.map(drop)
}

pub(super) async fn other_events_while_it_runs() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut leaf = site.setup().start().await?;
    leaf.published().await?;
    let mut events = leaf.complete_events(1).await?;
    let last = events.last_mut().context("it has events")?;
    last.body.extend(b" ");
    let differs = format!("different events with the sequence number {}", last.sequence);
    site.agent.has(&events);
    leaf.refuses(&[&differs]).await
}

pub(super) async fn an_agent_that_is_none() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut aged = site.with_an_older_image().await?;
    // Its answers can't be read: for a leaf with a history it is as if there were none.
    site.agent.behaves(Manner::Garbage);
    aged.leaf.start_again().await?;
    let hub = shows_hub(&mut aged.leaf, |hub| hub.problem.is_some()).await?;
    ensure!(
        hub.problem
            .as_ref()
            .is_some_and(|why| why.contains("can't be read")),
        "{hub:?}"
    );
    aged.events = stopped_with_events(&mut aged.leaf).await?;
    site.agent.has(&aged.events);

    // One that falls silent amid an import: the leaf knows that it lacks events, and waits.
    aged.restore()?;
    site.agent.behaves(Manner::SilentAfter(2));
    aged.leaf.launch_again()?;
    aged.leaf
        .logged("the hub's copy has events that this leaf lacks, and they can't be read at the moment")
        .await?;
    // It knows that after a restart as well, when the hub is not there at all.
    ensure!(aged.leaf.stop().await?.success(), "it can be stopped meanwhile");
    site.wire.cut();
    aged.leaf.launch_again()?;
    aged.leaf
        .logged("and the hub can't be asked for them: it is waited for")
        .await?;
    site.wire.mend();
    site.agent.behaves(Manner::TooLarge(aged.events.len() as u64));
    aged.leaf
        .logged(&format!("event {} takes too many bytes", aged.events.len()))
        .await?;
    site.agent.behaves(Manner::Honest);
    aged.leaf.ready().await?;
    aged.went_on().await?;
    let memory = aged.leaf.state_dir.join("hub-import.json");
    ensure!(!memory.exists(), "nothing is missing any more");

    // One that has events of something else.
    let events = stopped_with_events(&mut aged.leaf).await?;
    let mut foreign = events.clone();
    let at = events.len() - 2;
    foreign[at].subject = foreign[at].subject.replace(".evt.", ".copy.");
    aged.restore()?;
    site.agent.has(&foreign);
    site.agent.forgets_the_holder();
    aged.leaf.launch_again()?;
    aged.leaf
        .logged(&format!(
            "the hub's copy has an event with the sequence number {} that can't be imported",
            foreign[at].sequence
        ))
        .await?;
    aged.leaf.stop().await.map(drop)
}

pub(super) async fn a_name_that_is_held() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut leaf = site.setup().start().await?;
    leaf.published().await?;
    let mut other = site.agent.next_claim().await?.beat;
    leaf.stop().await?;
    other.instance = leaf_core::id::InstanceId(uuid::Uuid::now_v7());
    other.hostname = "elsewhere".to_owned();
    site.agent.behaves(Manner::HeldBy(Box::new(other.clone())));
    leaf.launch_again()?;
    leaf.logged(&format!("is held by instance {} on elsewhere", other.instance))
        .await?;
    let log = leaf.log();
    let since = log.rfind("starting").context("it started")?;
    ensure!(
        !log[since..].contains("recorded sequence="),
        "it recorded something: {}",
        leaf.log_end()
    );
    site.agent.behaves(Manner::Honest);
    site.agent.forgets_the_holder();
    leaf.ready().await?;
    leaf.published().await?;
    leaf.complete_events(1).await.map(drop)
}

pub(super) async fn killed_twice_behind_a_cut_wire() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut leaf = site.setup().start().await?;
    leaf.published().await?;
    let first = site.agent.last_claim().context("a claim")?.beat.instance;
    site.wire.cut();
    // The second one never reaches the hub, and the journal of the third names it.
    leaf.kill().await?;
    leaf.start_again().await?;
    leaf.published().await?;
    leaf.kill().await?;
    site.wire.mend();
    let before = site.agent.claims();
    leaf.start_again().await?;
    leaf.published().await?;
    let claims = site.agent.claims_from(before);
    ensure!(
        claims[0].predecessor != Some(first),
        "the journal names it: {claims:?}"
    );
    ensure!(
        claims[1].predecessor == Some(first) && claims[1].beat.instance == claims[0].beat.instance,
        "{claims:?}"
    );
    leaf.stop().await.map(drop)
}

pub(super) async fn a_clean_stop_releases_the_name() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut leaf = site.setup().start().await?;
    leaf.published().await?;
    let instance = leaf.show().await?.instance;
    let copied = stopped_with_events(&mut leaf).await?;
    let releases = site.agent.releases();
    ensure!(
        releases.len() == 1
            && releases[0].instance == instance
            && releases[0].stream_last == copied.len() as u64,
        "{} events, and it released {releases:?}",
        copied.len()
    );
    // A new disk in another machine need not wait for the claim to expire; what is refused at its start is not released.
    site.agent.has(&copied);
    let mut other = site.agent.last_claim().context("a claim")?.beat;
    other.instance = leaf_core::id::InstanceId(uuid::Uuid::now_v7());
    site.agent.behaves(Manner::HeldBy(Box::new(other)));
    std::fs::remove_dir_all(&leaf.state_dir)?;
    leaf.forget_client();
    leaf.launch_again()?;
    leaf.logged("the hub says that another instance has this leaf's name")
        .await?;
    site.agent.behaves(Manner::Honest);
    leaf.ready().await?;
    went_on(&mut leaf, &copied).await
}

/// The real agent at a hub, and a leaf that is connected to it.
struct RealSite {
    hub: HubSite,
    wire: Wire,
}

impl RealSite {
    async fn start() -> anyhow::Result<Self> {
        let mut hub = HubSite::start().await?;
        hub.start_agent()?;
        let wire = hub.wire().await?;
        Ok(Self { hub, wire })
    }

    /// A stopped leaf, an older image of its disk, and its events, of which the hub has all.
    async fn with_an_older_image(&self) -> anyhow::Result<Aged> {
        let mut leaf = self.hub.setup(&self.wire).start().await?;
        some_history(&mut leaf, 1).await?;
        leaf.stop().await?;
        let image = leaf.scratch().join("image");
        copy_directory(&leaf.state_dir, &image)?;
        leaf.start_again().await?;
        some_history(&mut leaf, 3).await?;
        let copied = leaf.complete_events(1).await?;
        self.copy_ends_with(copied.last()).await?;
        leaf.stop().await?;
        // Nothing more of it arrives then.
        self.is(CopyState::Away).await?;
        let ann = self.hub.ann().await?;
        let events = self.copy(&ann).await?;
        ensure!(events.starts_with(&copied), "the hub has other events");
        leaf.forget_client();
        Ok(Aged { leaf, image, events })
    }

    /// Waits until the agent says that the copy is in this state.
    async fn is(&self, state: CopyState) -> anyhow::Result<()> {
        let ann = self.hub.ann().await?;
        let is = until(&format!("the copy is {state}"), async || {
            let copy = ann.copy_status(&self.hub.leaf).await?;
            Ok(copy.filter(|copy| copy.state == state).map(drop))
        })
        .await;
        is.with_context(|| self.hub.agent_log())
    }

    /// Waits until the copy ends with this event, and returns all of it.
    async fn copy_ends_with(&self, last: Option<&EventRecord>) -> anyhow::Result<Vec<EventRecord>> {
        let ann = self.hub.ann().await?;
        let copied = until("the copy ends so", async || {
            let copy = self.copy(&ann).await?;
            Ok((copy.last() == last).then_some(copy))
        })
        .await;
        copied.with_context(|| self.hub.agent_log())
    }

    async fn copy(&self, ann: &leaf_bus::client::Client) -> anyhow::Result<Vec<EventRecord>> {
        let last = ann.last_sequence(&self.hub.leaf).await?;
        let mut events = ann.events(&self.hub.leaf, EventsFrom::Beginning);
        let mut copy: Vec<EventRecord> = Vec::new();
        while copy.last().map_or(0, |event| event.sequence) < last {
            copy.push(events.next().await.context("the events end")??);
        }
        Ok(copy)
    }

    /// The leaf went on from these events, and the copy has every event of it once.
    async fn went_on(&self, aged: &mut Aged) -> anyhow::Result<()> {
        aged.went_on().await?;
        let events = aged.leaf.complete_events(1).await?;
        let copy = self.copy_ends_with(events.last()).await?;
        ensure!(copy == events, "the copy is another one");
        Ok(())
    }
}

pub(super) async fn an_older_image_with_the_real_agent() -> anyhow::Result<()> {
    let site = RealSite::start().await?;
    let mut aged = site.with_an_older_image().await?;
    aged.restore()?;
    aged.leaf.start_again().await?;
    aged.leaf
        .logged("the hub has events that this leaf lacks")
        .await?;
    site.went_on(&mut aged).await?;
    // And without its disk: then the last instance may be alive, for all that this one and the hub know.
    aged.leaf.kill().await?;
    aged.lose()?;
    aged.leaf.launch_again()?;
    aged.leaf
        .logged("the hub says that another instance has this leaf's name")
        .await?;
    aged.events = site.copy(&site.hub.ann().await?).await?;
    aged.leaf.ready().await?;
    site.went_on(&mut aged).await
}

pub(super) async fn an_older_image_without_the_real_agent() -> anyhow::Result<()> {
    let site = RealSite::start().await?;
    let mut aged = site.with_an_older_image().await?;
    aged.restore()?;
    site.wire.cut();
    aged.leaf.start_again().await?;
    let published = aged.leaf.published().await?;
    ensure!(
        published < aged.events.len() as u64,
        "{published}: the new events have old numbers"
    );
    site.wire.mend();
    aged.leaf
        .refuses(&["this leaf and the hub's copy have different events with the sequence number"])
        .await?;
    // As systemd does: it is not ready, and the agent compares as well.
    aged.leaf.launch_again()?;
    site.is(CopyState::Differs).await?;
    let ann = site.hub.ann().await?;
    ensure!(site.copy(&ann).await? == aged.events, "the copy is harmed");

    aged.leaf.stop().await?;
    std::fs::remove_file(aged.leaf.journal_file())?;
    std::fs::remove_dir_all(aged.leaf.state_dir.join("nats"))?;
    aged.leaf.forget_client();
    aged.leaf.start_again().await?;
    site.went_on(&mut aged).await
}
