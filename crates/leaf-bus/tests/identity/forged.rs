//! Ways in which a user could have the server, or an answer, write where the user itself may not.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use futures::StreamExt as _;
use leaf_bus::identity::{Permissions, admin_caller};
use leaf_core::id::{Caller, ContainerName};
use leaf_core::subject;
use libtest_mimic::Trial;

use super::{container_of, events_stream, keeper_of};
use crate::support::{LIMIT, Site, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "callers_may_not_have_the_server_write_into_a_stream",
            server_writes,
        ),
        trial(
            "a_service_of_the_streams_account_answers_into_the_callers_account_only",
            split,
        ),
        trial(
            "a_user_that_may_ask_itself_could_write_anywhere_by_answering",
            answering_oneself,
        ),
        trial(
            "a_container_cannot_write_elsewhere_by_answering_itself",
            reflection,
        ),
    ]
}

/// The requests that callers try: everything that makes a server publish.
async fn server_writes() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let keeper = keeper_of(&site).await?;
    let js = events_stream(&keeper).await?;
    js.create_stream(jetstream::stream::Config {
        name: "OTHER".to_owned(),
        subjects: vec!["$KV.leaf_state.>".to_owned()],
        allow_direct: true,
        ..Default::default()
    })
    .await?;
    let event = subject::event(&leaf(), "leaf", "edge", "started");
    js.publish(event.clone(), "1".into()).await?.await?;
    js.publish("$KV.leaf_state.edge.leaf", "x".into()).await?.await?;

    let bob = Caller::new("bob")?;
    let bob_credentials = site.identity.user_credentials(&bob, &Permissions::person(&bob));
    let web = ContainerName::new("web")?;
    let container = site.identity.container_credentials(&web);
    let targets = [
        event.as_str(),
        "$KV.leaf_state.edge.forged",
        "$KV.leaf_state.edge.leaf",
    ];
    for (credentials, caller) in [
        (&site.identity.admin_credentials(), &admin_caller()),
        (&bob_credentials, &bob),
        (&container, &web.caller(&leaf())),
    ] {
        let mut user = site.connect(credentials, caller).await?;
        // An answer to a question, with the stream's subject as its reply subject.
        for target in targets {
            for (question, body) in [
                ("$JS.API.INFO", ""),
                ("$JS.API.STREAM.INFO.EVENTS_edge", ""),
                ("$JS.API.STREAM.NAMES", ""),
                ("$JS.API.STREAM.LIST", ""),
                ("$JS.API.STREAM.MSG.GET.EVENTS_edge", r#"{"seq":1}"#),
                ("$JS.API.DIRECT.GET.EVENTS_edge", r#"{"seq":1}"#),
                ("$JS.API.DIRECT.GET.EVENTS_edge", r#"{"seq":1,"batch":9}"#),
                ("$JS.API.DIRECT.GET.OTHER", r#"{"seq":1}"#),
                ("$JS.API.DIRECT.GET.OTHER.$KV.leaf_state.edge.leaf", ""),
                ("$SYS.REQ.USER.INFO", ""),
                ("$SRV.PING", ""),
                ("leaf.v1.ask.nix.build", ""),
                ("leaf.v1.cmd.edge.admin.leaf.show", ""),
                ("leaf.v1.ctr.edge.web.says.x", ""),
                ("leaf.v1.ctr.edge.web.health", ""),
                ("$JS.API.STREAM.CREATE.MINE", r#"{"name":"MINE"}"#),
                ("$JS.ACK.OTHER.c.1.1.1.1.0", "+NXT"),
                ("$JS.FC.OTHER.c.x", ""),
            ] {
                user.client
                    .publish_with_reply(question, target.to_owned(), body.into())
                    .await?;
            }
        }
        // A consumer whose deliveries go there, by each of its subjects.
        let push = |target: &str, name: Option<&str>| {
            let mut config = serde_json::json!({
                "deliver_subject": target, "deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant",
            });
            if let Some(name) = name {
                config["name"] = name.into();
            }
            serde_json::json!({ "stream_name": "OTHER", "config": config, "action": "create" }).to_string()
        };
        for target in targets {
            for (subject, body) in [
                ("$JS.API.CONSUMER.CREATE.OTHER", push(target, None)),
                ("$JS.API.CONSUMER.CREATE.OTHER.mine", push(target, Some("mine"))),
                (
                    "$JS.API.CONSUMER.CREATE.OTHER.mine.$KV.leaf_state.>",
                    push(target, Some("mine")),
                ),
                (
                    "$JS.API.CONSUMER.DURABLE.CREATE.OTHER.mine",
                    push(target, Some("mine")),
                ),
                ("$JS.API.CONSUMER.MSG.NEXT.OTHER.mine", "1".to_owned()),
            ] {
                user.client
                    .publish_with_reply(subject, target.to_owned(), body.into())
                    .await?;
                user.may_not_publish(subject).await?;
            }
        }
        user.may_not_publish("$JS.ACK.OTHER.c.1.1.1.1.0").await?;
    }

    // Whatever the server would do, it has done before it answers this, which came later on the same stream.
    for (name, subject, count) in [
        ("EVENTS_edge", event.as_str(), 1),
        ("OTHER", "$KV.leaf_state.edge.leaf", 1),
    ] {
        let ack = js.publish(subject.to_owned(), "after".into()).await?.await?;
        ensure!(ack.sequence == count + 1, "{name} has more: {ack:?}");
        let mut stream = js.get_stream(name).await?;
        let info = stream.info().await?;
        ensure!(info.state.messages == count + 1, "{name}: {:?}", info.state);
        ensure!(info.state.consumer_count == 0, "{name}: {:?}", info.state);
    }
    site.end().await
}

/// Why there are two accounts: what the server does for a user of the streams' own account who may only read.
async fn split() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let js = events_stream(&keeper_of(&site).await?).await?;
    js.create_stream(jetstream::stream::Config {
        name: "OTHER".to_owned(),
        subjects: vec!["$KV.leaf_state.>".to_owned()],
        ..Default::default()
    })
    .await?;
    js.publish("$KV.leaf_state.edge.leaf", "x".into()).await?.await?;
    let event = subject::event(&leaf(), "leaf", "edge", "started");
    let caller = Caller::new("reader")?;
    let mut reads = Permissions::person(&caller);
    reads.publish.push("$JS.API.CONSUMER.CREATE.>".to_owned());
    let credentials = site.identity.trusted_credentials(&caller, &reads);
    let mut reader = site.connect(&credentials, &caller).await?;
    reader.may_not_publish(&event).await?;

    // The answer to a question is stored as an event, and so is what a consumer delivers while somebody listens.
    let question = "$JS.API.STREAM.INFO.EVENTS_edge";
    reader
        .client
        .publish_with_reply(question, event.clone(), "".into())
        .await?;
    let _listens = reader.client.subscribe(event.clone()).await?;
    jetstream::new(reader.client.clone())
        .create_consumer_on_stream(
            jetstream::consumer::push::Config {
                deliver_subject: event.clone(),
                ack_policy: jetstream::consumer::AckPolicy::None,
                ..Default::default()
            },
            "OTHER",
        )
        .await?;
    let mut stream = js.get_stream("EVENTS_edge").await?;
    let stored = async {
        while stream.info().await?.state.messages < 2 {}
        anyhow::Ok(())
    };
    tokio::time::timeout(LIMIT, stored)
        .await
        .context("what the server wrote into the stream")??;

    // To a caller the answer comes back, and goes nowhere else.
    let admin = site.admin().await?;
    let mut heard = admin.client.subscribe(subject::events()).await?;
    admin
        .client
        .publish_with_reply(question, event.clone(), "".into())
        .await?;
    let answer = tokio::time::timeout(LIMIT, heard.next())
        .await?
        .context("the answer")?;
    ensure!(
        answer
            .payload
            .starts_with(br#"{"type":"io.nats.jetstream.api.v1.stream_info_response""#)
    );
    let ack = js.publish(event, "3".into()).await?.await?;
    ensure!(ack.sequence == 3, "{ack:?}");
    site.end().await
}

/// What nats-server does, and why a container may not publish to what it listens to: with a right to answer and
/// overlapping subjects, a user writes into the event log.
async fn answering_oneself() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut admin = site.admin().await?;
    let mut events = admin.client.subscribe(subject::events()).await?;
    // Its complaints come in order: once this is through, so is the subscription.
    admin.may_publish("$SRV.PING").await?;
    let caller = Caller::new("careless")?;
    let careless = Permissions {
        publish: vec!["own.>".to_owned()],
        subscribe: vec!["own.>".to_owned()],
        responses: Some((1, LIMIT)),
        ..Permissions::default()
    };
    let credentials = site.identity.user_credentials(&caller, &careless);
    let mut user = site.connect(&credentials, &caller).await?;
    let target = "leaf.v1.evt.edge.leaf.edge.started";
    user.may_not_publish(target).await?;
    let mut echoes = user.client.subscribe("own.x").await?;
    user.client
        .publish_with_reply("own.x", target, "x".into())
        .await?;
    tokio::time::timeout(LIMIT, echoes.next())
        .await?
        .context("the echo")?;
    user.may_publish(target).await?;
    let event = tokio::time::timeout(LIMIT, events.next())
        .await?
        .context("an event")?;
    ensure!(event.subject.as_str() == target);
    site.end().await
}

/// To answer a request a container may publish to its reply subject, whatever that is. Were a container able to
/// send such a request to itself, it could write anywhere.
async fn reflection() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let name = ContainerName::new("web")?;
    let mut web = container_of(&site, &name).await?;
    let prefix = subject::container_prefix(&leaf(), &name);
    let target = "leaf.v1.evt.edge.leaf.edge.started";
    for own in ["health", "x", "health.x"].map(|last| format!("{prefix}.{last}")) {
        let mut echoes = web.client.subscribe(own.clone()).await?;
        web.client
            .publish_with_reply(own.clone(), target, "x".into())
            .await?;
        web.may_not_publish(target).await.with_context(|| own.clone())?;
        ensure!(
            tokio::time::timeout(Duration::ZERO, echoes.next()).await.is_err(),
            "a container heard itself on {own}"
        );
    }
    site.end().await
}
