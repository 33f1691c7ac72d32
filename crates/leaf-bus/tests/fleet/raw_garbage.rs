//! Bytes and credentials that no leaf sends: invalid protocol, invalid headers, the key or the name of another leaf.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::Subscriber;
use futures::StreamExt as _;
use leaf_core::subject;
use libtest_mimic::Trial;
use nkeys::KeyPair;
use serde_json::json;

use super::TestHub;
use super::raw::{Introduction, RawPeer};
use super::raw_scene::{OWN, Scene};
use crate::support::{LIMIT, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
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

/// The server passes a header on as it is, and async-nats takes one that it can't read for a broken connection.
async fn breaks_a_header() -> anyhow::Result<()> {
    const BEAT: &str = "leaf.v1.beat.stolen";
    let hub = Box::pin(TestHub::start()).await?;
    let port = hub.server.leaf_port.context("a port for leaf nodes")?;
    let thief = RawPeer::connect(port, &Introduction::honest(&hub.stolen)).await?;
    let ann = hub.ann().await?;
    let mut beats = ann.subscribe(subject::beats()).await?;
    ann.flush().await?;
    let hear = async |beats: &mut Subscriber| {
        loop {
            thief.publish(BEAT, None, "{}").await?;
            let heard = tokio::time::timeout(Duration::from_millis(50), beats.next()).await;
            if let Ok(Some(message)) = heard
                && message.payload == "{}"
            {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(LIMIT, hear(&mut beats)).await??;
    let connects = || {
        let statistics = ann.statistics();
        statistics.connects.load(std::sync::atomic::Ordering::Relaxed)
    };
    let before = connects();
    thief
        .publish_with_header(BEAT, "no name of a header", "x")
        .await?;
    let again = async {
        while connects() == before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, again)
        .await
        .context("waiting for the listener's next connection")?;
    tokio::time::timeout(LIMIT, hear(&mut beats)).await?
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
    ensure!(
        !thief.still_there().await,
        "a message above the limit is accepted"
    );
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
