//! A hub with its streams, a leaf, and everybody who could hear a thief.

use anyhow::{Context as _, ensure};
use async_nats::{Client, Subscriber};
use futures::future::join_all;
use leaf_core::subject;
use serde_json::{Value, json};

use super::raw::{Introduction, RawPeer};
use super::{LinkedLeaf, TestHub, heard, nothing_stored, until_linked};
use crate::support::leaf;

/// The subjects that a thief may publish on, by [`docs/fleet.md`](../../../../docs/fleet.md).
pub(super) const OWN: [&str; 6] = [
    "leaf.v1.beat.stolen",
    "leaf.v1.ctr.stolen.web.hello",
    "leaf.v1.hub.stolen.claim",
    "leaf.v1.job.stolen.x.log",
    "leaf.v1.state.stolen.leaf",
    "leaf.v1.up.stolen.00000000-0000-0000-0000-000000000007.leaf.stolen.started",
];

/// Subjects that a server does not check, since servers use them among themselves. They stay in the account of the connections, where
/// nobody listens to it.
pub(super) const UNCHECKED: [&str; 7] = [
    "_R_.guess.guess",
    "$JS.ACK.EVENTS_edge.c.1.1.1.1.1",
    "$JS.ACK.leaf.v1.cmd.edge.admin.leaf.show",
    "_GR_.aaaaaa.bbbbbb.leaf.v1.cmd.edge.admin.leaf.show",
    "_GR_.aaaaaa.bbbbbb.leaf.v1.evt.stolen.a.b.c",
    "$GR.aaaa.leaf.v1.cmd.edge.admin.leaf.show",
    "$MQTT.sub.leaf.v1.cmd.edge",
];

/// A hub with its streams, a leaf, and everybody who could hear a thief.
pub(super) struct Scene {
    pub(super) hub: TestHub,
    pub(super) leaf: LinkedLeaf,
    pub(super) agent: Client,
    pub(super) keeper: Client,
    pub(super) everywhere: Vec<(String, Subscriber)>,
}

/// Whoever owns the hub hears all that a leaf can send.
pub(super) const OWNER: &str = "the owner";

impl Scene {
    pub(super) async fn begin() -> anyhow::Result<Self> {
        let hub = Box::pin(TestHub::start()).await?;
        let leaf_server = Box::pin(LinkedLeaf::start(&hub)).await?;
        let agent = hub.agent().await?;
        hub.with_streams().await?;
        let keeper = leaf_server.with_streams().await?;
        until_linked(&hub, &leaf_server).await?;
        let ann = hub.ann().await?;
        let mut everywhere = Vec::new();
        for (who, client, subject) in [
            (OWNER, hub.owner().await?, ">".to_owned()),
            ("the agent", agent.clone(), subject::state_changes()),
            ("the agent", agent.clone(), "_INBOX.hub.>".to_owned()),
            ("the agent", hub.agent_in_links().await?, subject::hub_requests()),
            ("ann", ann.clone(), subject::events()),
            ("ann", ann.clone(), subject::beats()),
            ("ann", ann.clone(), subject::state_keys()),
            ("ann", ann.clone(), subject::jobs()),
            ("ann", ann, "_INBOX.ann.>".to_owned()),
            (
                "the other leaf",
                leaf_server.listener(true).await?,
                ">".to_owned(),
            ),
            (
                "the other leaf",
                leaf_server.listener(false).await?,
                ">".to_owned(),
            ),
        ] {
            everywhere.push((who.to_owned(), client.subscribe(subject).await?));
            client.flush().await?;
        }
        let mut scene = Self {
            hub,
            leaf: leaf_server,
            agent,
            keeper,
            everywhere,
        };
        scene.arrived().await;
        Ok(scene)
    }

    pub(super) fn port(&self) -> anyhow::Result<u16> {
        self.hub.server.leaf_port.context("it listens for leaf nodes")
    }

    pub(super) async fn thief(&self) -> anyhow::Result<RawPeer> {
        self.thief_who_says(json!({})).await
    }

    pub(super) async fn thief_who_says(&self, says: Value) -> anyhow::Result<RawPeer> {
        RawPeer::connect(self.port()?, &Introduction::saying(&self.hub.stolen, says)).await
    }

    /// Returns the messages that have arrived anywhere: their listener and subject.
    pub(super) async fn arrived(&mut self) -> Vec<(String, String)> {
        let listeners = self.everywhere.iter_mut().map(|(name, subscription)| async {
            let subjects = heard(subscription).await;
            let name = name.clone();
            subjects
                .into_iter()
                .map(move |subject| (name.clone(), subject))
                .collect::<Vec<_>>()
        });
        let mut all = join_all(listeners).await.concat();
        // What the other leaf says of itself meanwhile.
        all.retain(|(_, subject)| *subject != subject::beat(&leaf()));
        all
    }

    /// Makes sure that nothing has arrived anywhere but under these subjects, and what the owner of the hub alone can hear,
    /// and that nothing was stored.
    pub(super) async fn unharmed(&mut self, but: &[&str]) -> anyhow::Result<()> {
        let arrived = self.arrived().await;
        self.unharmed_by(arrived, but).await
    }

    pub(super) async fn unharmed_by(
        &mut self,
        mut arrived: Vec<(String, String)>,
        but: &[&str],
    ) -> anyhow::Result<()> {
        arrived.retain(|(who, subject)| {
            let subject = subject.as_str();
            !(but.contains(&subject) || who == OWNER && UNCHECKED.contains(&subject))
        });
        ensure!(arrived.is_empty(), "the thief's messages arrive: {arrived:?}");
        nothing_stored(&self.agent, &self.keeper).await?;
        // The hub still works. What was asked here is heard, too.
        until_linked(&self.hub, &self.leaf).await?;
        self.arrived().await;
        Ok(())
    }

    pub(super) async fn end(self) {
        self.leaf.server.stop().await;
    }
}
