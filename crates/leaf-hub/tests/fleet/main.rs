//! The agent with real servers: a hub and leaves on loopback. Each test is a fault, and what the copies are after it.
#![allow(clippy::print_stdout, reason = "a test program prints what it skips")]

mod agents;
mod guide;
mod servers;
mod site;
mod stores;
mod test_leaf;
mod witness;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use jiff::SignedDuration;
use leaf_bus::embedded::NatsServer;
use leaf_bus::hub::RemoteError;
use leaf_core::fleet::{ClaimReply, CopyPage, CopyState, ReadCopy};
use leaf_core::id::InstanceId;
use leaf_core::subject;
use libtest_mimic::{Arguments, Trial};
use uuid::Uuid;

use crate::servers::until;
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
            Box::pin(stores::lost_store())
        }),
        trial("a_hub_restored_from_an_older_copy_is_filled_again", || {
            Box::pin(stores::older_store())
        }),
        trial(
            "an_agent_killed_20_times_amid_10000_events_copies_each_once",
            || Box::pin(agents::killed_agent()),
        ),
        trial("a_gap_is_shown_until_the_copy_is_reset", || {
            Box::pin(stores::gap())
        }),
        trial("a_different_history_is_shown_until_the_copy_is_reset", || {
            Box::pin(stores::different())
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
    trials.extend([
        trial(
            "nothing_is_read_from_a_clone_that_is_connected_in_the_holders_place",
            || Box::pin(clone_in_place()),
        ),
        trial("a_name_is_free_once_its_holder_gives_it_back", || {
            Box::pin(given_back())
        }),
        trial("of_two_agents_one_is_active_and_the_other_takes_over", || {
            Box::pin(agents::two_agents())
        }),
        trial("a_leaf_that_is_lost_for_good_is_forgotten", || {
            Box::pin(agents::forgotten())
        }),
        trial(
            "a_witness_signs_for_the_leaf_on_whose_subject_it_is_asked",
            || Box::pin(witness::signs_for_the_leaf_of_the_subject()),
        ),
        trial("a_leaf_gets_no_signature_of_a_witness_in_anothers_name", || {
            Box::pin(witness::not_in_anothers_name())
        }),
        trial("a_witness_signs_also_while_the_hubs_store_is_gone", || {
            Box::pin(witness::without_a_store())
        }),
        trial("a_hub_without_a_key_refuses_to_be_a_witness", || {
            Box::pin(witness::without_a_key())
        }),
        trial("an_event_that_fits_into_no_reply_is_named", || {
            Box::pin(stores::too_large())
        }),
    ]);
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

/// A clone of a leaf's disk, with its key, whose history parted after the copy's end, displaces the holder's server.
async fn clone_in_place() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(100).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    leaf.wire.cut();
    let mut remote = site.hub.leaf(&leaf.name);
    remote.is_held_by(leaf.instance);
    until("the link is cut", LIMIT, async || {
        Ok(matches!(remote.extent().await, Err(RemoteError::NotLinked { .. })).then_some(()))
    })
    .await?;
    leaf.publish(30).await?;
    let copy = site.hub.copy(&leaf.name, 64 << 20);
    let end = async || anyhow::Ok(copy.extent().await?.map(|extent| extent.last));
    ensure!(end().await? == Some(100), "the link is not cut");
    let mut clone = site
        .leaf_with("edge-1", "edge-1-clone", &servers::program().await?)
        .await?;
    clone.publish(100).await?;
    clone.diverges(30).await?;
    ensure!(end().await? == Some(100), "what the clone published was copied");
    // The holder's last claim, which was under way when its server was displaced: the agent reads what is missing.
    let mut claims = clone.claims();
    claims.claim.beat.instance = leaf.instance;
    claims.claimed().await?;
    let status = site.shows(&leaf, CopyState::Stalled).await;
    let status = status.with_context(|| "the copy of a leaf whose server is displaced")?;
    ensure!(
        status.copied == 100
            && status
                .reason
                .as_ref()
                .is_some_and(|why| why.contains("another server with its key")),
        "{status:?}"
    );
    clone.server.kill().await?;
    leaf.wire.mend();
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await
}

async fn given_back() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(10).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    let other = InstanceId(Uuid::now_v7());
    ensure!(!leaf.released(other).await?, "another instance gave it back");
    ensure!(matches!(leaf.claim_as(other).await?, ClaimReply::Held { .. }));
    // The claim of another instance makes the agent compare again.
    leaf.publish(1).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    leaf.publish(1).await?;
    ensure!(leaf.released(leaf.instance).await?);
    let status = site.shows(&leaf, CopyState::Away).await?;
    ensure!(
        status.copied == 12 && status.reason.as_deref() == Some("its leafd was stopped"),
        "{status:?}"
    );
    // Also after the agent was killed, and though its clock says that the claim is young.
    site.kill_agent().await?;
    site.start_agent()?;
    let reply = leaf.claim_as(other).await?;
    ensure!(matches!(reply, ClaimReply::Granted { .. }), "{reply:?}");
    Ok(())
}
