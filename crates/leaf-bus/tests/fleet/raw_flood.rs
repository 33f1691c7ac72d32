//! A leaf is stolen, and the thief sends more events than the hub's server stores: it is answered all the same, on a subject of
//! its choice, in the account of the hub's streams (`queueInbound` in `server/stream.go` of nats-server).

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use jiff::Timestamp;
use leaf_core::fleet::fact::{FleetEvent, FleetFact};
use leaf_core::fleet::{ActiveAgent, CopyState, CopyStatus};
use leaf_core::subject;
use libtest_mimic::Trial;

use super::kept::beat;
use super::raw::{Introduction, RawPeer};
use super::{STREAMS, TestHub, instance, stolen};
use crate::support::{LIMIT, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![trial(
        "a_thief_who_floods_the_hub_changes_nothing_but_the_copy_of_the_stolen_leaf",
        floods,
    )]
}

/// A subject that a person at the hub listens to. The thief has some events answered there: an answer shows that the server
/// refused events.
const HEARD: &str = "leaf.v1.evt.edge.heard.of.flood";

async fn floods() -> anyhow::Result<()> {
    let hub = Box::pin(TestHub::start_that_is_soon_flooded()).await?;
    let keeper = hub.keeper().await?;
    let registry = keeper.registry().await?;
    let now = Timestamp::now();
    let status = CopyStatus {
        leaf: leaf(),
        state: CopyState::Current,
        since: now,
        copied: 0,
        leaf_last: 0,
        reason: None,
    };
    registry.put_beat(&beat(&leaf())).await?;
    registry.put_status(&status).await?;
    let active = ActiveAgent {
        instance: instance(),
        hostname: "hub".to_owned(),
        version: "1".to_owned(),
        since: now,
        renewed: now,
        process: None,
        released: false,
    };
    registry.put_active(&active, 0).await?;
    let fact = FleetEvent {
        before: None,
        time: now,
        fact: FleetFact::Joined,
        status,
    };
    registry.put_event(&fact).await?;
    let state = keeper.state_copy().await?;
    let entry = ("leaf".to_owned(), Some(Bytes::from_static(b"{}")));
    state.apply(&leaf(), vec![entry]).await?;
    keeper.copy(&leaf(), 1 << 20).begin(1).await?;
    let own = keeper.copy(&stolen(), 1 << 20);
    own.begin(1).await?;
    own.admit(instance(), 0).await?;

    let agent = hub.agent().await?;
    let before = contents(&agent).await?;
    let (mut resets, ann) = (keeper.resets().await?, hub.ann().await?);
    let mut heard = ann.subscribe(HEARD).await?;
    ann.flush().await?;
    let mut thief = RawPeer::connect(
        hub.server.leaf_port.context("it listens for leaf nodes")?,
        &Introduction::honest(&hub.stolen),
    )
    .await?;
    let of_streams = STREAMS
        .iter()
        .flat_map(|stream| ["PURGE", "DELETE"].map(|verb| format!("$JS.API.STREAM.{verb}.{stream}")));
    let stored = [
        "leaf.v1.beat.edge",
        "$KV.leaf_state.edge.leaf",
        "$KV.fleet.edge",
        "$KV.fleet.agent.active",
        "leaf.v1.fleet.edge.reset",
        "leaf.v1.evt.edge.a.b.c",
    ];
    // Where earlier agents wrote.
    let written_before = [
        "leaf.v1.copy.edge.beat",
        "leaf.v1.copy.edge.state.leaf",
        "leaf.v1.copy.edge.closed",
    ];
    let known = stored.into_iter().chain(written_before).map(str::to_owned);
    for target in known.chain(of_streams) {
        flood(&mut thief, &target, &mut heard)
            .await
            .with_context(|| format!("a flood with replies to {target}"))?;
        let after = contents(&agent).await?;
        ensure!(after == before, "{target}: {before:?} became {after:?}");
    }
    // The agent takes no such answer for a person's command.
    let reset = tokio::time::timeout(super::QUIET, resets.next()).await;
    ensure!(reset.is_err(), "{reset:?}");
    Ok(())
}

/// Sends events with this reply subject until some were refused.
async fn flood(thief: &mut RawPeer, reply: &str, heard: &mut Subscriber) -> anyhow::Result<()> {
    let refused = async {
        loop {
            for reply in [reply, HEARD] {
                let event = format!(
                    "LMSG {}a.b.c {reply} 4\r\nevil\r\n",
                    subject::up_prefix(&stolen(), instance())
                );
                thief.send(event.repeat(2000)).await?;
            }
            ensure!(thief.still_there().await, "{:?}", thief.errors());
            // The answers come in the order of the events.
            if tokio::time::timeout(super::QUIET, heard.next()).await.is_ok() {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(LIMIT, refused)
        .await
        .context("no event was refused")??;
    while tokio::time::timeout(super::QUIET, heard.next()).await.is_ok() {}
    Ok(())
}

/// Returns how many messages each stream has, and the number of its last one.
async fn contents(agent: &Client) -> anyhow::Result<BTreeMap<&'static str, (u64, u64)>> {
    let js = async_nats::jetstream::new(agent.clone());
    let mut found = BTreeMap::new();
    for name in STREAMS {
        let info = js.get_stream(name).await.context(name)?.get_info().await?;
        found.insert(name, (info.state.messages, info.state.last_sequence));
    }
    Ok(found)
}
