//! A leaf is stolen, and the thief speaks the protocol of leaf nodes by hand: no server of theirs keeps back what the hub has
//! to refuse. What remains possible is what `docs/security.md` lists.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::{Client, Subscriber};
use futures::StreamExt as _;
use futures::future::join_all;
use leaf_core::subject;
use libtest_mimic::Trial;
use nkeys::KeyPair;
use serde_json::{Value, json};

use super::raw::{Introduction, RawPeer};
use super::stolen_leaf::FORBIDDEN;
use super::{LinkedLeaf, TestHub, heard, instance, stolen, until_linked};
use crate::support::{LIMIT, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_thief_with_a_protocol_of_their_own_sends_in_the_name_of_the_stolen_leaf_only",
            sends_in_its_own_name,
        ),
        trial(
            "a_thief_who_claims_to_be_a_hub_sends_in_the_name_of_the_stolen_leaf_only",
            claims_to_be_a_hub,
        ),
        trial(
            "a_thief_with_a_protocol_of_their_own_hears_what_all_leaves_are_asked_and_no_more",
            hears_what_all_are_asked,
        ),
        trial(
            "a_thief_with_a_protocol_of_their_own_forges_no_reply",
            forges_no_reply,
        ),
        trial("a_hub_outlives_what_is_no_protocol", outlives_garbage),
        trial(
            "a_header_that_is_none_costs_whoever_hears_it_a_connection_and_no_more",
            breaks_a_header,
        ),
        trial("a_hub_takes_no_leaf_without_its_key", without_the_key),
        trial(
            "a_thief_displaces_another_leaf_only_by_the_key_of_its_account",
            displaces_nobody,
        ),
    ]
}

/// What a thief may send, by [`docs/fleet.md`](../../../../docs/fleet.md).
const OWN: [&str; 6] = [
    "leaf.v1.beat.stolen",
    "leaf.v1.ctr.stolen.web.hello",
    "leaf.v1.evt.stolen.leaf.stolen.started",
    "leaf.v1.hub.stolen.claim",
    "leaf.v1.job.stolen.x.log",
    "leaf.v1.state.stolen.leaf",
];

/// What a server does not check, since servers use it among themselves. It stays in the account of the connections, where
/// nobody listens to it.
const UNCHECKED: [&str; 7] = [
    "_R_.guess.guess",
    "$JS.ACK.EVENTS_edge.c.1.1.1.1.1",
    "$JS.ACK.leaf.v1.cmd.edge.admin.leaf.show",
    "_GR_.aaaaaa.bbbbbb.leaf.v1.cmd.edge.admin.leaf.show",
    "_GR_.aaaaaa.bbbbbb.leaf.v1.evt.stolen.a.b.c",
    "$GR.aaaa.leaf.v1.cmd.edge.admin.leaf.show",
    "$MQTT.sub.leaf.v1.cmd.edge",
];

/// Subjects that no message may have.
const WILDCARDS: [&str; 12] = [
    ">",
    "*.v1.evt.stolen.a.b.c",
    "leaf.>",
    "leaf.v1.>",
    "leaf.v1.evt.>",
    "leaf.v1.evt.*.a.b.c",
    "leaf.v1.beat.*",
    "leaf.v1.state.*.leaf",
    "leaf.v1.hub.*.claim",
    "leaf.v1.*.stolen.x",
    "leaf.*.cmd.edge.>",
    "_INBOX.>",
];

/// Where a reply, or the trace of a message, would do harm.
const HARMFUL: [&str; 5] = [
    "leaf.v1.copy.edge.evt.a.b.c",
    "leaf.v1.evt.edge.a.b.c",
    "leaf.v1.state.edge.leaf",
    "leaf.v1.cmd.edge.admin.leaf.show",
    "_INBOX.edge.guessed",
];

/// The streams of a hub, and what is written into each.
const COPIES: [(&str, &str); 6] = [
    ("EVENTS_edge", "leaf.v1.copy.edge.evt.>"),
    ("EVENTS_stolen", "leaf.v1.copy.stolen.evt.>"),
    ("LEASES", "leaf.v1.copy.*.beat"),
    ("KV_leaf_state", "leaf.v1.copy.*.state.>"),
    ("KV_fleet", "$KV.fleet.>"),
    ("FLEET", "leaf.v1.fleet.>"),
];

/// A hub with its streams, a leaf, and everybody who could hear a thief.
struct Scene {
    hub: TestHub,
    leaf: LinkedLeaf,
    agent: Client,
    keeper: Client,
    everywhere: Vec<(String, Subscriber)>,
}

/// Whoever owns the hub hears all that a leaf can send.
const OWNER: &str = "the owner";

impl Scene {
    async fn begin() -> anyhow::Result<Self> {
        let hub = Box::pin(TestHub::start()).await?;
        let leaf_server = Box::pin(LinkedLeaf::start(&hub)).await?;
        let agent = hub.agent().await?;
        let js = async_nats::jetstream::new(agent.clone());
        for (name, subjects) in COPIES {
            js.create_stream(async_nats::jetstream::stream::Config {
                name: name.to_owned(),
                subjects: vec![subjects.to_owned()],
                allow_direct: true,
                ..Default::default()
            })
            .await?;
        }
        let keeper = leaf_server.with_streams().await?;
        until_linked(&hub, &leaf_server).await?;
        let ann = hub.ann().await?;
        let mut everywhere = Vec::new();
        for (who, client, subject) in [
            (OWNER, hub.owner().await?, ">".to_owned()),
            ("the agent", agent.clone(), subject::events()),
            ("the agent", agent.clone(), subject::beats()),
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

    fn port(&self) -> anyhow::Result<u16> {
        self.hub.server.leaf_port.context("it listens for leaf nodes")
    }

    async fn thief(&self) -> anyhow::Result<RawPeer> {
        self.thief_who_says(json!({})).await
    }

    async fn thief_who_says(&self, says: Value) -> anyhow::Result<RawPeer> {
        RawPeer::connect(self.port()?, &Introduction::saying(&self.hub.stolen, says)).await
    }

    /// What has arrived anywhere: who heard it, and its subject.
    async fn arrived(&mut self) -> Vec<(String, String)> {
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
    async fn unharmed(&mut self, but: &[&str]) -> anyhow::Result<()> {
        let arrived = self.arrived().await;
        self.unharmed_by(arrived, but).await
    }

    async fn unharmed_by(&mut self, mut arrived: Vec<(String, String)>, but: &[&str]) -> anyhow::Result<()> {
        arrived.retain(|(who, subject)| {
            let subject = subject.as_str();
            !(but.contains(&subject) || who == OWNER && UNCHECKED.contains(&subject))
        });
        ensure!(arrived.is_empty(), "the thief's messages arrive: {arrived:?}");
        let names = COPIES.map(|(name, _)| (name, &self.agent));
        let of_leaf = ["EVENTS_edge", "KV_leaf_state"].map(|name| (name, &self.keeper));
        for (name, client) in names.into_iter().chain(of_leaf) {
            let js = async_nats::jetstream::new(client.clone());
            let info = js.get_stream(name).await?.get_info().await?;
            ensure!(info.state.messages == 0, "{name} has {:?}", info.state);
        }
        // The hub still works. What was asked here is heard, too.
        until_linked(&self.hub, &self.leaf).await?;
        self.arrived().await;
        Ok(())
    }

    async fn end(self) {
        self.leaf.server.stop().await;
    }
}

async fn sends_in_its_own_name() -> anyhow::Result<()> {
    let mut scene = Box::pin(Scene::begin()).await?;
    let mut thief = scene.thief().await?;
    for own in OWN {
        thief.publish(own, None, "stolen").await?;
    }
    ensure!(thief.still_there().await, "{:?}", thief.errors());
    let arrived = scene.arrived().await;
    let mut at_owner: Vec<_> = arrived
        .iter()
        .filter(|(who, _)| who == OWNER)
        .map(|(_, subject)| subject.as_str())
        .collect();
    at_owner.sort_unstable();
    ensure!(at_owner == OWN, "the owner hears {at_owner:?}");

    // The hub ends the connection at each message that it refuses.
    for forbidden in FORBIDDEN.iter().chain(&WILDCARDS) {
        for reply in [None].into_iter().chain(HARMFUL.map(Some)) {
            let mut thief = scene.thief().await?;
            thief.publish(forbidden, reply, "stolen").await?;
            ensure!(!thief.still_there().await, "{forbidden} is not refused");
            let errors = thief.errors();
            ensure!(
                errors
                    .iter()
                    .any(|error| error.contains("Permissions Violation for Publish")),
                "{forbidden}: {errors:?}"
            );
        }
    }
    scene.unharmed(&[]).await?;
    for unchecked in UNCHECKED {
        for reply in [None].into_iter().chain(HARMFUL.map(Some)) {
            let mut thief = scene.thief().await?;
            thief.publish(unchecked, reply, "stolen").await?;
            thief.still_there().await;
        }
    }
    scene.unharmed(&[]).await?;

    // What it may send, with what would have a server send more: reply subjects, queue groups, and traces.
    let mut thief = scene.thief().await?;
    for own in OWN {
        for harmful in HARMFUL {
            thief.publish(own, Some(harmful), "stolen").await?;
            thief
                .send(format!("LMSG {own} + {harmful} q 4\r\nevil\r\n"))
                .await?;
            thief
                .send(format!("LMSG {own} | q {harmful} 4\r\nevil\r\n"))
                .await?;
            thief.publish_with_header(own, "Nats-Trace-Dest", harmful).await?;
        }
    }
    ensure!(thief.still_there().await, "{:?}", thief.errors());
    let mut own: Vec<&str> = OWN.to_vec();
    own.push("$KV.leaf_state.stolen.leaf");
    scene.unharmed(&own).await?;
    scene.end().await;
    Ok(())
}

/// The server of a hub takes another role for such a connection: it reports no violation and does not end it.
async fn claims_to_be_a_hub() -> anyhow::Result<()> {
    let mut scene = Box::pin(Scene::begin()).await?;
    for says in [
        json!({ "is_hub": true }),
        json!({ "is_hub": true, "remote_account": "FLEET", "domain": "hub", "cluster": "hub", "jetstream": true }),
        json!({ "is_hub": true, "isolate": true, "deny_pub": [">"] }),
    ] {
        let mut thief = scene.thief_who_says(says).await?;
        for all in [">", "_INBOX.>", "$JS.>", "_R_.>", "leaf.v1.>"] {
            thief.subscribe(all).await?;
        }
        for forbidden in FORBIDDEN.iter().chain(&UNCHECKED).chain(&WILDCARDS) {
            thief.publish(forbidden, None, "stolen").await?;
            for harmful in HARMFUL {
                thief.publish(forbidden, Some(harmful), "stolen").await?;
            }
        }
        thief.still_there().await;
        let mut arrived = scene.arrived().await;
        // In this role its server lets subjects with wildcards pass, to whoever listens to all leaves. They name no other leaf.
        arrived.retain(|(_, subject)| {
            let names_another = subject::leaf_of(subject).is_some_and(|leaf| leaf != stolen());
            names_another || subject::is_literal(subject)
        });
        scene.unharmed_by(arrived, &[]).await?;
    }
    scene.end().await;
    Ok(())
}

async fn hears_what_all_are_asked() -> anyhow::Result<()> {
    let scene = Box::pin(Scene::begin()).await?;
    for literal in [
        "leaf.v1.cmd.edge.ann.leaf.show",
        "leaf.v1.hub.edge.claim",
        "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.events.get",
        "leaf.v1.evt.edge.leaf.edge.started",
        "leaf.v1.beat.edge",
        "_INBOX.edge.guessed",
        "_INBOX.hub.guessed",
        "_INBOX.ann.guessed",
        "$JS.API.INFO",
        "$KV.leaf_state.edge.leaf",
        "$SYS.REQ.SERVER.PING",
    ] {
        let mut thief = scene.thief().await?;
        thief.subscribe(literal).await?;
        ensure!(!thief.still_there().await, "{literal} is not refused");
        let errors = thief.errors();
        ensure!(
            errors
                .iter()
                .any(|error| error.contains("Permissions Violation for Subscription")),
            "{literal}: {errors:?}"
        );
    }
    // A wildcard is taken, and each message checked.
    let mut thieves = Vec::new();
    for says in [
        json!({}),
        json!({ "name": "another", "is_hub": true }),
        json!({ "name": "a third", "isolate": true }),
    ] {
        let mut thief = scene.thief_who_says(says).await?;
        for all in [
            ">",
            "*.>",
            "leaf.>",
            "leaf.v1.*.edge.>",
            "leaf.*.cmd.*.>",
            "leaf.v1.ask.>",
            "leaf.v1.cmd.> q 1000000",
            "leaf.*.cmd.edge.> q 1000000",
            "leaf.v1.hub.> q 1000000",
            "leaf.v1.link.> q 1000000",
            "_INBOX.>",
            "_R_.>",
            "_GR_.>",
            "$JS.>",
            "$KV.>",
            "$SYS.>",
            "$SRV.>",
        ] {
            thief.subscribe(all).await?;
        }
        ensure!(thief.still_there().await, "{:?}", thief.errors());
        thieves.push(thief);
    }
    everybody_works(&scene).await?;
    tokio::time::sleep(super::QUIET).await;
    for thief in &mut thieves {
        thief.hears("leaf.v1.ask.").await?;
        ensure!(thief.still_there().await, "{:?}", thief.errors());
        let subjects: Vec<_> = thief
            .messages()
            .into_iter()
            .map(|message| message.subject)
            .collect();
        let of_others: Vec<_> = subjects
            .iter()
            .filter(|subject| !subject.starts_with("leaf.v1.ask.") && !subject.starts_with("$SRV."))
            .collect();
        ensure!(of_others.is_empty(), "the thief hears {of_others:?}");
        // What the hub asks a leaf for names nobody else.
        let interest = thief.interest();
        let of_others: Vec<_> = interest
            .iter()
            .filter(|subject| {
                subject.contains("edge") || subject.contains("ann") || subject.starts_with("_INBOX")
            })
            .collect();
        ensure!(of_others.is_empty(), "the hub tells the thief of {of_others:?}");
    }
    scene.end().await;
    Ok(())
}

/// All that there is to hear: commands, questions, claims, events, states, beats, jobs, messages of containers, reads.
async fn everybody_works(scene: &Scene) -> anyhow::Result<()> {
    let service = scene.leaf.service().await?;
    let mut commands = service.subscribe(subject::commands_of(&leaf())).await?;
    service.flush().await?;
    let links = scene.hub.agent_in_links().await?;
    let mut claims = links.subscribe(subject::hub_requests()).await?;
    links.flush().await?;
    let (ann, claimant) = (scene.hub.ann().await?, scene.leaf.claimant().await?);
    let answer = async {
        for (client, requests) in [(&service, &mut commands), (&links, &mut claims)] {
            let request = requests.next().await.context("a request")?;
            let reply = request.reply.context("a reply subject")?;
            client.publish(reply, "secret".into()).await?;
        }
        anyhow::Ok(())
    };
    let ask = async {
        // Its interest may take a moment to cross.
        while ann
            .request("leaf.v1.cmd.edge.ann.leaf.show", "secret".into())
            .await
            .is_err()
        {}
        claimant
            .request(subject::hub_claim(&leaf()), "secret".into())
            .await?;
        anyhow::Ok(())
    };
    let (answered, asked) = tokio::time::timeout(LIMIT, async { tokio::join!(answer, ask) }).await?;
    answered?;
    asked?;
    ann.publish_with_reply("leaf.v1.ask.leaf.list", ann.new_inbox(), "".into())
        .await?;
    ann.publish_with_reply("$SRV.PING", ann.new_inbox(), "".into())
        .await?;
    ann.flush().await?;
    for of_leaf in ["leaf.v1.beat.edge", "leaf.v1.evt.edge.x.y.z"] {
        scene.keeper.publish(of_leaf, "secret".into()).await?;
    }
    for of_leaf in ["leaf.v1.job.edge.x.log", "leaf.v1.ctr.edge.web.hello"] {
        service.publish(of_leaf, "secret".into()).await?;
    }
    scene
        .keeper
        .publish(subject::state_key(&leaf(), "leaf"), "secret".into())
        .await?;
    scene.keeper.flush().await?;
    service.flush().await?;
    let read = subject::link_read(&leaf(), instance(), subject::LinkRead::EventsInfo);
    scene.agent.request(read, "".into()).await?;
    Ok(())
}

async fn forges_no_reply() -> anyhow::Result<()> {
    let scene = Box::pin(Scene::begin()).await?;
    let service = scene.leaf.service().await?;
    let mut commands = service.subscribe(subject::commands_of(&leaf())).await?;
    service.flush().await?;
    let mut thief = scene.thief().await?;
    thief.subscribe("leaf.*.cmd.stolen.>").await?;
    ensure!(thief.still_there().await, "{:?}", thief.errors());
    // It learns the form of a reply subject from a request of its own, to which it replies twice.
    let ann = scene.hub.ann().await?;
    let inbox = ann.new_inbox();
    let mut replies = ann.subscribe(inbox.clone()).await?;
    ann.publish_with_reply("leaf.v1.cmd.stolen.ann.leaf.show", inbox.clone(), "".into())
        .await?;
    let seen = thief
        .hears("leaf.v1.cmd.stolen.")
        .await?
        .reply
        .context("a reply subject")?;
    for _ in 0..2 {
        thief.publish(&seen, None, "mine").await?;
    }
    ensure!(thief.still_there().await, "{:?}", thief.errors());
    let found = heard(&mut replies).await;
    ensure!(found.len() == 1, "one command has {} replies", found.len());
    let (prefix, own) = seen.rsplit_once('.').context("its last token")?;
    // A request to the other leaf is open. The thief guesses at its reply subject, among them the neighbours of its own.
    let inbox = ann.new_inbox();
    let mut replies = ann.subscribe(inbox.clone()).await?;
    let asked = async {
        loop {
            ann.publish_with_reply("leaf.v1.cmd.edge.ann.leaf.show", inbox.clone(), "".into())
                .await?;
            if let Ok(Some(request)) = tokio::time::timeout(Duration::from_millis(500), commands.next()).await
            {
                return anyhow::Ok(request);
            }
        }
    };
    let request = tokio::time::timeout(LIMIT, asked).await.context("a command")??;
    let (shared, _) = own.split_at(own.len().saturating_sub(2));
    let mut guesses = String::new();
    for guess in 0..20_000 {
        guesses.push_str(&format!("LMSG {prefix}.{guess:06} 6\r\nforged\r\n"));
        guesses.push_str(&format!(
            "LMSG {prefix}.{shared}{:02} 6\r\nforged\r\n",
            guess % 100
        ));
    }
    for all in ["_R_.>", "_R_.*.*", &format!("{prefix}.>"), &format!("{prefix}.*")] {
        guesses.push_str(&format!("LMSG {all} 6\r\nforged\r\n"));
    }
    thief.send(guesses).await?;
    thief.still_there().await;
    ensure!(heard(&mut replies).await.is_empty(), "a forged reply arrived");
    let reply = request.reply.context("a reply subject")?;
    service.publish(reply, "true".into()).await?;
    let reply = tokio::time::timeout(LIMIT, replies.next())
        .await?
        .context("a reply")?;
    ensure!(reply.payload == "true", "{reply:?}");
    scene.end().await;
    Ok(())
}

/// The server passes a header on as it is, and async-nats takes one that it can't read for a broken connection.
async fn breaks_a_header() -> anyhow::Result<()> {
    const EVENT: &str = "leaf.v1.evt.stolen.leaf.stolen.started";
    let hub = Box::pin(TestHub::start()).await?;
    let port = hub.server.leaf_port.context("a port for leaf nodes")?;
    let thief = RawPeer::connect(port, &Introduction::honest(&hub.stolen)).await?;
    let ann = hub.ann().await?;
    let mut events = ann.subscribe(subject::events()).await?;
    ann.flush().await?;
    let hear = async |events: &mut Subscriber| {
        loop {
            thief.publish(EVENT, None, "{}").await?;
            let heard = tokio::time::timeout(Duration::from_millis(50), events.next()).await;
            if let Ok(Some(message)) = heard
                && message.payload == "{}"
            {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(LIMIT, hear(&mut events)).await??;
    let connects = || {
        let statistics = ann.statistics();
        statistics.connects.load(std::sync::atomic::Ordering::Relaxed)
    };
    let before = connects();
    thief
        .publish_with_header(EVENT, "no name of a header", "x")
        .await?;
    let again = async {
        while connects() == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, again)
        .await
        .context("waiting for the listener's next connection")?;
    tokio::time::timeout(LIMIT, hear(&mut events)).await?
}

async fn outlives_garbage() -> anyhow::Result<()> {
    let mut scene = Box::pin(Scene::begin()).await?;
    let long = "x".repeat(64 << 10);
    let garbage = [
        "RMSG LINKS leaf.v1.evt.edge.a.b.c 4\r\nevil\r\n".to_owned(),
        "PUB leaf.v1.evt.edge.a.b.c 4\r\nevil\r\n".to_owned(),
        "HPUB leaf.v1.evt.edge.a.b.c 12 16\r\nNATS/1.0\r\n\r\nevil\r\n".to_owned(),
        "SUB > 1\r\n".to_owned(),
        "RS+ LINKS >\r\n".to_owned(),
        "A+ LINKS\r\n".to_owned(),
        "LS+\r\n".to_owned(),
        "LS+ a b\r\n".to_owned(),
        "LS+ a b c d\r\n".to_owned(),
        "LS+ ..\r\n".to_owned(),
        format!("LS+ {long}.>\r\n"),
        "LS- never.subscribed\r\n".to_owned(),
        "LMSG leaf.v1.beat.stolen\r\n".to_owned(),
        "LMSG leaf.v1.beat.stolen -1\r\n".to_owned(),
        "LMSG leaf.v1.beat.stolen 99999999999999999999\r\n".to_owned(),
        "LMSG leaf.v1.beat.stolen 1048577\r\n".to_owned(),
        "LMSG leaf.v1.beat.stolen * a b 4\r\nevil\r\n".to_owned(),
        "LMSG leaf.v1.evt.edge.a.b.c 4\r\nevil, and more than four bytes\r\n".to_owned(),
        "HMSG leaf.v1.beat.stolen 9 4\r\nevil\r\n".to_owned(),
        "HMSG leaf.v1.beat.stolen 4 8\r\nevilevil\r\n".to_owned(),
        // Rights and another account, as a hub gives them.
        "INFO {\"import\":{\"allow\":[\">\"]},\"export\":{\"allow\":[\">\"]},\"remote_account\":\"FLEET\"}\r\nLMSG leaf.v1.evt.edge.a.b.c 4\r\nevil\r\n"
            .to_owned(),
        "CONNECT {}\r\nLMSG leaf.v1.evt.edge.a.b.c 4\r\nevil\r\n".to_owned(),
        "CONNECT {\"is_hub\":true}\r\nLMSG leaf.v1.evt.edge.a.b.c 4\r\nevil\r\n".to_owned(),
        "CONNECT [".repeat(1000),
        "\0\u{1}\u{2}\r\n\r\n\r\n".to_owned(),
        format!("{long}\r\n"),
    ];
    for sent in &garbage {
        let mut thief = scene.thief().await?;
        thief.send(sent).await?;
        thief.still_there().await;
    }
    // The largest message that is allowed, and one byte more.
    let mut thief = scene.thief().await?;
    thief
        .publish("leaf.v1.beat.stolen", None, &"x".repeat(1 << 20))
        .await?;
    ensure!(thief.still_there().await, "{:?}", thief.errors());
    thief
        .publish("leaf.v1.beat.stolen", None, &"x".repeat((1 << 20) + 1))
        .await?;
    ensure!(!thief.still_there().await, "a message above the limit is taken");
    scene.unharmed(&["leaf.v1.beat.stolen"]).await?;
    scene.end().await;
    Ok(())
}

async fn without_the_key() -> anyhow::Result<()> {
    let mut scene = Box::pin(Scene::begin()).await?;
    let (stolen_key, leaf_key) = (&scene.hub.stolen, &scene.hub.leaf);
    let foreign = KeyPair::new_user();
    for introduction in [
        // The other leaf's public key, which is no secret, without its seed.
        Introduction {
            key: leaf_key,
            signed_by: stolen_key,
            says: json!({}),
        },
        Introduction::honest(&foreign),
        Introduction::saying(
            stolen_key,
            json!({ "nkey": null, "sig": null, "user": "hub", "pass": "" }),
        ),
        Introduction::saying(stolen_key, json!({ "sig": "" })),
        Introduction::saying(stolen_key, json!({ "jwt": "e30.e30.e30" , "nkey": null })),
        // The keys of people and of the agent are for clients.
        Introduction::honest(&scene.hub.ann),
    ] {
        let (mut thief, nonce) = RawPeer::reach(scene.port()?).await?;
        thief.introduce(&nonce, &introduction).await?;
        for own in OWN {
            thief.publish(own, None, "stolen").await?;
        }
        let still = thief.still_there().await;
        // A person's key may connect, in the account of people, where a leaf's subjects are imports.
        let is_person = introduction.key.public_key() == scene.hub.ann.public_key();
        ensure!(!still || is_person, "{} was let in", introduction.says);
    }
    // Before it says who it is.
    let (mut thief, _) = RawPeer::reach(scene.port()?).await?;
    thief
        .send("LS+ >\r\nLMSG leaf.v1.beat.stolen 4\r\nevil\r\n")
        .await?;
    ensure!(!thief.still_there().await, "it was let in without a key");
    scene.unharmed(&[]).await?;
    scene.end().await;
    Ok(())
}

/// A server ends the older one of two connections of one server: those of the same name, whose account has the same name at
/// the leaf. The names of leaves are known; a leaf's account there has a key that only the hub is told.
async fn displaces_nobody() -> anyhow::Result<()> {
    let scene = Box::pin(Scene::begin()).await?;
    let account = "AKEY";
    let says = |account: &str| json!({ "name": "edge", "remote_account": account });
    let mut victim = RawPeer::connect(
        scene.port()?,
        &Introduction::saying(&scene.hub.leaf, says(account)),
    )
    .await?;
    for guess in ["", "LINK", "LINKS", "edge", "A"] {
        let mut thief = scene.thief_who_says(says(guess)).await?;
        ensure!(thief.still_there().await, "{:?}", thief.errors());
    }
    ensure!(
        victim.still_there().await,
        "a thief displaced it: {:?}",
        victim.errors()
    );
    // What it takes.
    let _thief = scene.thief_who_says(says(account)).await?;
    ensure!(
        victim.is_closed_within(LIMIT).await,
        "the server has another rule"
    );
    scene.end().await;
    Ok(())
}
