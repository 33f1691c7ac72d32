//! The agent with real servers: a hub and leaves on loopback. Each test is a fault, and what the copies are after it.
#![allow(clippy::print_stdout, reason = "a test program prints what it skips")]

mod guide;
mod servers;
mod site;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::SignedDuration;
use leaf_bus::embedded::NatsServer;
use leaf_core::fleet::{ClaimReply, CopyPage, CopyState, ReadCopy};
use leaf_core::id::InstanceId;
use leaf_core::subject;
use libtest_mimic::{Arguments, Trial};
use uuid::Uuid;

use crate::site::{LIMIT, Site};

/// The variable with a nats-server of the oldest supported version.
const OLDEST_VARIABLE: &str = "CIM_LEAF_OLDEST_NATS_SERVER";

fn main() {
    let mut arguments = Arguments::from_args();
    // Each starts several servers.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let runs = runtime().block_on(servers::program()).is_ok();
    let trial =
        |name: &str, test: fn() -> Outcome| Trial::test(name, move || run(test)).with_ignored_flag(!runs);
    if !runs {
        println!("the agent's tests are skipped: no nats-server 2.12 or newer");
    }
    let mut trials = vec![
        trial("events_and_state_are_copied_as_they_happen", || Box::pin(live())),
        trial(
            "after_a_cut_of_the_link_the_copy_is_whole_within_10_seconds",
            || Box::pin(cut_link()),
        ),
        trial("after_the_leafs_server_was_killed_the_copy_goes_on", || {
            Box::pin(leaf_killed())
        }),
        trial("a_hub_that_lost_its_store_is_filled_again", || {
            Box::pin(lost_store())
        }),
        trial("a_hub_restored_from_an_older_copy_is_filled_again", || {
            Box::pin(older_store())
        }),
        trial(
            "an_agent_killed_20_times_amid_10000_events_copies_each_once",
            || Box::pin(killed_agent()),
        ),
        trial("a_gap_is_shown_until_the_copy_is_reset", || Box::pin(gap())),
        trial("a_different_history_is_shown_until_the_copy_is_reset", || {
            Box::pin(different())
        }),
        trial(
            "a_name_belongs_to_one_instance_also_after_the_agent_was_killed",
            || Box::pin(one_instance()),
        ),
        trial("a_leaf_whose_clock_is_weeks_off_is_there_as_any_other", || {
            Box::pin(wrong_clock())
        }),
        trial("a_request_with_a_forged_reply_subject_is_ignored", || {
            Box::pin(forged())
        }),
        trial(
            "of_two_instances_at_two_ends_of_a_cut_link_the_second_is_refused",
            || Box::pin(two_ends()),
        ),
        trial(
            "each_command_of_the_readme_and_of_the_guide_to_a_fleet_exists",
            || Box::pin(guide::exist()),
        ),
        trial("what_the_guide_to_a_fleet_makes_is_valid", || {
            Box::pin(guide::valid())
        }),
    ];
    let oldest = std::env::var_os(OLDEST_VARIABLE).is_some();
    if runs && !oldest {
        println!("the test of servers of two versions is skipped: {OLDEST_VARIABLE} is not set");
    }
    trials.push(
        trial(
            "a_leaf_on_the_oldest_server_is_copied_by_a_hub_on_a_newer_one",
            || Box::pin(oldest_server()),
        )
        .with_ignored_flag(!runs || !oldest),
    );
    libtest_mimic::run(&arguments, trials).exit();
}

type Outcome = std::pin::Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("a runtime")
}

fn run(test: fn() -> Outcome) -> Result<(), libtest_mimic::Failed> {
    match runtime().block_on(async { tokio::time::timeout(6 * LIMIT, test()).await }) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{error:?}").into()),
        Err(_) => Err("it did not end".into()),
    }
}

async fn live() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1", "edge-2"]).await?;
    let (mut one, mut two) = (site.leaf("edge-1").await?, site.leaf("edge-2").await?);
    one.publish(5).await?;
    ensure!(one.claimed().await?.is_none(), "there was no copy");
    two.claimed().await?;
    site.shows(&one, CopyState::Current).await?;
    site.has_all(&one, LIMIT).await?;
    for _ in 0..20 {
        one.publish(3).await?;
        two.publish(1).await?;
    }
    site.has_all(&one, Duration::from_secs(5)).await?;
    site.has_all(&two, Duration::from_secs(5)).await?;
    ensure!(one.claimed().await? == Some(65), "the reply has the copy's end");
    let shown = site.command(&["status", "--json"]).await?;
    ensure!(
        shown.contains("\"edge-2\"") && shown.contains("\"current\""),
        "{shown}"
    );
    ensure!(
        site.facts(&one)
            .await?
            .first()
            .is_some_and(|fact| fact == "joined"),
        "the leaf joined"
    );
    // What is left of it when it comes back is read from the copy.
    let body = serde_json::to_vec(&ReadCopy { from: 60 })?;
    let page: CopyPage = one.ask(&subject::hub_copy_read(&one.name), body).await?;
    ensure!(
        page.last == 65 && page.events.len() == 6 && page.events[0].sequence == 60,
        "{page:?}"
    );
    Ok(())
}

async fn one_instance() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1"]).await?;
    let leaf = site.leaf("edge-1").await?;
    leaf.claimed().await?;
    let other = InstanceId(Uuid::now_v7());
    let held = |reply: &ClaimReply| matches!(reply, ClaimReply::Held { by } if by.instance == leaf.instance);
    let reply = leaf.claim_as(other).await?;
    ensure!(held(&reply), "{reply:?}");
    site.kill_agent().await?;
    site.start_agent()?;
    let reply = leaf.claim_as(other).await?;
    ensure!(held(&reply), "after the agent's restart: {reply:?}");
    leaf.claimed().await?;
    Ok(())
}

/// The clock is set from one claim to the next, as NTP does after a start without a battery, and back.
async fn wrong_clock() -> anyhow::Result<()> {
    let weeks = SignedDuration::from_hours(4 * 7 * 24);
    let mut site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.claimed().await?;
    for off in [weeks, -weeks, weeks] {
        leaf.publish(3).await?;
        leaf.claims().by_a_clock_off_by(off).claimed().await?;
        site.has_all(&leaf, LIMIT).await?;
        site.shows(&leaf, CopyState::Current).await?;
        let other = leaf.claim_as(InstanceId(Uuid::now_v7())).await?;
        ensure!(
            matches!(&other, ClaimReply::Held { by } if by.instance == leaf.instance),
            "by a clock off by {off}: {other:?}"
        );
        // What the agent knows of it after a restart is by the clock of the hub, too.
        site.kill_agent().await?;
        site.start_agent()?;
        let other = leaf.claim_as(InstanceId(Uuid::now_v7())).await?;
        ensure!(
            matches!(other, ClaimReply::Held { .. }),
            "after a restart: {other:?}"
        );
        leaf.claims().by_a_clock_off_by(off).claimed().await?;
    }
    let facts = site.facts(&leaf).await?;
    ensure!(!facts.iter().any(|fact| fact == "away"), "{facts:?}");
    Ok(())
}

async fn forged() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1", "edge-2"]).await?;
    let (one, two) = (site.leaf("edge-1").await?, site.leaf("edge-2").await?);
    one.claimed().await?;
    two.claimed().await?;
    let mut inbox = two.link().subscribe("_INBOX.edge-2.victim").await?;
    two.link().flush().await?;
    let body = serde_json::to_vec(&ReadCopy { from: 1 })?;
    for reply in [
        "_INBOX.edge-2.victim",
        "leaf.v1.cmd.edge-2.admin.leaf.show",
        "_INBOX.edge-1.*",
    ] {
        let subject = subject::hub_copy_read(&one.name);
        one.link()
            .publish_with_reply(subject, reply, body.clone().into())
            .await?;
    }
    // The agent answers in the order of requests.
    one.claimed().await?;
    let heard = tokio::time::timeout(Duration::from_millis(300), futures::StreamExt::next(&mut inbox)).await;
    ensure!(heard.is_err(), "the agent answered into another leaf's inbox");
    ensure!(
        site.log().matches("is ignored").count() == 1,
        "it is logged once: {}",
        site.log()
    );
    Ok(())
}

async fn cut_link() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.claimed().await?;
    leaf.publish(50).await?;
    site.has_all(&leaf, LIMIT).await?;
    leaf.wire.cut();
    for _ in 0..30 {
        leaf.publish(50).await?;
    }
    leaf.wire.mend();
    let mended = Instant::now();
    leaf.claimed().await?;
    site.has_all(&leaf, Duration::from_secs(10)).await?;
    ensure!(
        mended.elapsed() < Duration::from_secs(10),
        "after {:?}",
        mended.elapsed()
    );
    site.shows(&leaf, CopyState::Current).await?;
    // Live events are heard again.
    leaf.publish(3).await?;
    site.has_all(&leaf, Duration::from_secs(5)).await
}

async fn leaf_killed() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(700).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    leaf.server.kill().await?;
    leaf.server.start_again().await?;
    leaf.connected().await?;
    leaf.publish(700).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, Duration::from_secs(10)).await
}

/// A leaf on an older server, and what a hub asks of it: its server refuses requests that need a newer API.
async fn oldest_server() -> anyhow::Result<()> {
    let oldest = std::env::var_os(OLDEST_VARIABLE).context("the trial is ignored without it")?;
    let oldest = NatsServer::find(Some(Path::new(&oldest))).await?;
    ensure!(oldest.version.starts_with("2.12."), "it is {}", oldest.version);
    let site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf_with("edge-1", "edge-1", &oldest.path).await?;
    leaf.publish(2000).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    leaf.publish(20).await?;
    site.has_all(&leaf, Duration::from_secs(5)).await?;
    leaf.wire.cut();
    leaf.publish(700).await?;
    leaf.wire.mend();
    leaf.claimed().await?;
    site.has_all(&leaf, Duration::from_secs(10)).await
}

/// A copy of a leaf's disk runs at the other end of a cut link, under the leaf's name.
async fn two_ends() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(100).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    let mut other = site
        .leaf_with("edge-1", "edge-1-copy", &servers::program().await?)
        .await?;
    other.wire.cut();
    other.publish(100).await?;
    leaf.publish(50).await?;
    other.diverges(30).await?;
    site.has_all(&leaf, LIMIT).await?;
    other.wire.mend();
    // The second one learns it when the link is back; nothing of it is copied.
    let reply = other.claims().reply().await?;
    ensure!(
        matches!(&reply, ClaimReply::Held { by } if by.instance == leaf.instance),
        "{reply:?}"
    );
    other.server.kill().await?;
    leaf.publish(50).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await
}

async fn lost_store() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1", "edge-2"]).await?;
    let (mut one, mut two) = (site.leaf("edge-1").await?, site.leaf("edge-2").await?);
    one.publish(3000).await?;
    two.publish(10).await?;
    one.claimed().await?;
    two.claimed().await?;
    site.has_all(&one, LIMIT).await?;
    site.server.kill().await?;
    std::fs::remove_dir_all(site.store())?;
    one.publish(10).await?;
    site.server.start_again().await?;
    one.claimed().await?;
    two.claimed().await?;
    site.has_all(&one, LIMIT).await?;
    site.has_all(&two, LIMIT).await?;
    site.shows(&one, CopyState::Current).await?;
    Ok(())
}

async fn older_store() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(300).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    site.server.kill().await?;
    let backup = site.directory.path().join("backup");
    copy_directory(&site.store(), &backup)?;
    site.server.start_again().await?;
    leaf.publish(900).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    site.server.kill().await?;
    std::fs::remove_dir_all(site.store())?;
    copy_directory(&backup, &site.store())?;
    site.server.start_again().await?;
    leaf.publish(5).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await
}

async fn killed_agent() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    for round in 0..20u64 {
        let claims = leaf.claims();
        let (published, killed) = tokio::join!(
            async {
                for _ in 0..10 {
                    leaf.publish(50).await?;
                }
                anyhow::Ok(())
            },
            async {
                claims.claimed().await?;
                // Another moment of the copying each time.
                tokio::time::sleep(Duration::from_millis(round * 7 % 60)).await;
                site.kill_agent().await?;
                site.start_agent()
            }
        );
        published?;
        killed?;
    }
    leaf.claimed().await?;
    ensure!(leaf.last() == 10_000);
    site.has_all(&leaf, LIMIT).await?;
    ensure!(
        site.facts(&leaf)
            .await?
            .iter()
            .filter(|fact| *fact == "joined")
            .count()
            == 1,
        "joined once"
    );
    Ok(())
}

async fn gap() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(10).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    leaf.starts_again().await?;
    leaf.rewrite(100, 20, "first").await?;
    leaf.succeeds().await?;
    let status = site.shows(&leaf, CopyState::Gap).await?;
    ensure!(status.copied == 10 && status.reason.is_some_and(|why| why.contains("begin with 100")));
    // Nothing is copied after the gap.
    leaf.publish(1).await?;
    leaf.claimed().await?;
    ensure!(site.shows(&leaf, CopyState::Gap).await?.copied == 10);
    let said = site.command(&["reset", "edge-1"]).await?;
    ensure!(said.contains("1 to 10"), "{said}");
    site.has_all(&leaf, LIMIT).await?;
    site.shows(&leaf, CopyState::Current).await?;
    let facts = site.facts(&leaf).await?;
    ensure!(
        facts.ends_with(&["gap", "reset", "recovered"].map(str::to_owned)),
        "{facts:?}"
    );
    Ok(())
}

async fn different() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(10).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    leaf.starts_again().await?;
    leaf.rewrite(1, 30, "second").await?;
    leaf.succeeds().await?;
    let status = site.shows(&leaf, CopyState::Differs).await?;
    ensure!(status.reason.is_some_and(|why| why.contains("number 10")));
    leaf.publish(1).await?;
    leaf.claimed().await?;
    ensure!(site.shows(&leaf, CopyState::Differs).await?.copied == 10);
    site.command(&["reset", "edge-1"]).await?;
    site.has_all(&leaf, LIMIT).await?;
    site.shows(&leaf, CopyState::Current).await?;
    Ok(())
}

fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
