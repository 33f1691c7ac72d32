//! A leaf is stolen, and the thief speaks the protocol of leaf nodes by hand: no server of theirs keeps back what the hub has
//! to refuse. What remains possible is what `docs/security.md` lists.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use leaf_core::subject;
use libtest_mimic::Trial;
use serde_json::json;

use super::raw_scene::{OWN, OWNER, Scene, UNCHECKED};
use super::stolen_leaf::FORBIDDEN;
use super::{heard, instance, nothing_stored, stolen};
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
        trial(
            "what_a_thief_renames_is_heard_in_another_name_and_decides_and_changes_nothing",
            renames,
        ),
    ]
}

/// Subjects that no message may have.
const WILDCARDS: [&str; 14] = [
    ">",
    "*.v1.evt.stolen.a.b.c",
    "leaf.>",
    "leaf.v1.>",
    "leaf.v1.evt.>",
    "leaf.v1.evt.*.a.b.c",
    "leaf.v1.beat.*",
    "leaf.v1.state.*.leaf",
    "leaf.v1.hub.*.claim",
    "leaf.v1.up.*.00000000-0000-0000-0000-000000000007.a.b.c",
    "leaf.v1.up.edge.*.a.b.c",
    "leaf.v1.*.stolen.x",
    "leaf.*.cmd.edge.>",
    "_INBOX.>",
];

/// Where a reply, or the trace of a message, would do harm.
const HARMFUL: [&str; 6] = [
    "leaf.v1.copy.edge.state.leaf",
    "leaf.v1.up.edge.00000000-0000-0000-0000-000000000007.a.b.c",
    "leaf.v1.evt.edge.a.b.c",
    "leaf.v1.state.edge.leaf",
    "leaf.v1.cmd.edge.admin.leaf.show",
    "_INBOX.edge.guessed",
];

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
    // What its copy stores is heard.
    own.push("leaf.v1.evt.stolen.leaf.stolen.started");
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
        "leaf.v1.up.edge.00000000-0000-0000-0000-000000000007.leaf.edge.started",
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
    // A wildcard is accepted, and each message checked.
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
    let (service, in_link) = (scene.leaf.service().await?, scene.leaf.claimant().await?);
    let mut commands = in_link.subscribe(subject::commands_of(&leaf())).await?;
    in_link.flush().await?;
    let links = scene.hub.agent_in_links().await?;
    let mut claims = links.subscribe(subject::hub_requests()).await?;
    links.flush().await?;
    let (ann, claimant) = (scene.hub.ann().await?, scene.leaf.claimant().await?);
    let answer = async {
        for (client, requests) in [(&in_link, &mut commands), (&links, &mut claims)] {
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
    let in_link = scene.leaf.claimant().await?;
    let mut commands = in_link.subscribe(subject::commands_of(&leaf())).await?;
    in_link.flush().await?;
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
    in_link.publish(reply, "true".into()).await?;
    let reply = tokio::time::timeout(LIMIT, replies.next())
        .await?
        .context("a reply")?;
    ensure!(reply.payload == "true", "{reply:?}");
    scene.end().await;
    Ok(())
}

/// A server takes what follows the `@` in such a reply subject for the message's subject (`processMsgResults` in
/// `server/client.go` of nats-server).
async fn renames() -> anyhow::Result<()> {
    let mut scene = Box::pin(Scene::begin()).await?;
    let keeper = scene.hub.keeper().await?;
    let mut requests = keeper.requests().await?;
    let mut states = keeper.leaf(&leaf()).live_state().await?;
    // They are known to the server before the thief sends.
    scene.arrived().await;
    let mut thief = scene.thief().await?;
    let events = format!("leaf.v1.up.edge.{}.a.b.c", instance());
    for (own, renamed) in [
        ("leaf.v1.beat.stolen", "leaf.v1.beat.edge"),
        ("leaf.v1.job.stolen.x.log", "leaf.v1.job.edge.x.log"),
        ("leaf.v1.state.stolen.leaf", "leaf.v1.state.edge.leaf"),
        ("leaf.v1.hub.stolen.fill", "leaf.v1.hub.edge.fill"),
        ("leaf.v1.hub.stolen.witness", "leaf.v1.hub.edge.witness"),
        (OWN[5], &events),
        (OWN[5], "leaf.v1.evt.edge.a.b.c"),
        (OWN[5], "$JS.API.STREAM.PURGE.LEASES"),
    ] {
        // A body that each of these requests can have.
        let (change, nonce) = (instance(), "0".repeat(64));
        let body = json!({ "instance": instance(), "change": change, "nonce": nonce }).to_string();
        let reply = format!("$JS.ACK.s.c.1.1.1.1.1@{renamed}");
        thief.publish(own, Some(&reply), &body).await?;
    }
    // The last of all, and in its own name.
    let inbox = format!("{}.x", subject::leaf_inbox_prefix(&stolen()));
    let body = json!({ "instance": instance() }).to_string();
    thief
        .publish("leaf.v1.hub.stolen.fill", Some(&inbox), &body)
        .await?;
    ensure!(thief.still_there().await, "{:?}", thief.errors());
    let request = tokio::time::timeout(LIMIT, requests.next()).await??;
    ensure!(request.leaf == stolen(), "a request of {} arrives", request.leaf);
    let state = tokio::time::timeout(super::QUIET, states.next()).await;
    ensure!(state.is_err(), "{state:?}");
    let arrived = scene.arrived().await;
    let mut at_ann: Vec<_> = arrived
        .iter()
        .filter(|(who, subject)| who == "ann" && subject::leaf_of(subject) == Some(leaf()))
        .map(|(_, subject)| subject.as_str())
        .collect();
    // Callers import states under transformed subjects. Whether such a listener gets the renamed subject, or a piece of the
    // transformed one, depends on the order in which the server has the listeners. The renamed one names no entry of a bucket.
    at_ann.retain(|subject| *subject != "leaf.v1.state.edge.leaf");
    // As docs/security.md says.
    ensure!(at_ann == ["leaf.v1.job.edge.x.log"], "{arrived:?}");
    nothing_stored(&scene.agent, &scene.keeper).await?;
    scene.end().await;
    Ok(())
}
