//! The hub belongs to somebody else, who has every right in the account of the leaves' connections.

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use leaf_core::subject;
use libtest_mimic::Trial;

use super::{LinkedLeaf, TestHub, heard, instance, until_heard, until_linked};
use crate::support::{LIMIT, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_hostile_hub_changes_nothing_on_a_leaf", changes_nothing),
        trial(
            "a_leaf_answers_a_hub_on_the_replies_of_the_hubs_server_only",
            chooses_no_reply,
        ),
        trial(
            "a_hostile_hub_hears_only_what_a_leaf_sends_up",
            hears_what_goes_up,
        ),
        trial(
            "a_hostile_hub_reads_the_events_and_the_state_of_a_leaf_and_no_more",
            reads,
        ),
    ]
}

/// What the owner of a hub may try to send to a leaf.
pub(super) const FORBIDDEN: [&str; 30] = [
    "leaf.v1.evt.edge.leaf.edge.started",
    "leaf.v1.beat.edge",
    "leaf.v1.state.edge.leaf",
    "leaf.v1.job.edge.x.log",
    "leaf.v1.ctr.edge.web.hello",
    "leaf.v1.cmd.other.ann.leaf.show",
    "leaf.v1.hub.edge.claim",
    "leaf.v1.copy.edge.evt.a.b.c",
    "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.events.purge",
    "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.state.delete",
    "$KV.leaf_state.edge.leaf",
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.EVENTS_edge",
    "$JS.API.STREAM.DELETE.EVENTS_edge",
    "$JS.API.STREAM.PURGE.EVENTS_edge",
    "$JS.API.STREAM.UPDATE.EVENTS_edge",
    "$JS.API.STREAM.CREATE.EVIL",
    "$JS.API.STREAM.MSG.DELETE.EVENTS_edge",
    "$JS.API.CONSUMER.CREATE.EVENTS_edge",
    "$JS.API.CONSUMER.DURABLE.CREATE.EVENTS_edge.x",
    "$JS.API.SERVER.REMOVE",
    "$JS.edge.API.STREAM.PURGE.EVENTS_edge",
    "$JS.ACK.EVENTS_edge.c.1.1.1.1.1",
    "$JS.FC.EVENTS_edge.c.1",
    "$O.bucket.C.x",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.CLAIMS.UPDATE",
    "_INBOX.leafd.guessed",
    "_INBOX.admin.guessed",
    "_R_.guess.guess",
];

async fn changes_nothing() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    let server = LinkedLeaf::start(&hub).await?;
    let keeper = server.with_streams().await?;
    let js = async_nats::jetstream::new(keeper);
    js.publish(subject::event(&leaf(), "leaf", "edge", "started"), "{}".into())
        .await?
        .await?;
    js.publish(subject::state_key(&leaf(), "leaf"), "{}".into())
        .await?
        .await?;
    until_linked(&hub, &server).await?;
    let owner = hub.owner().await?;
    let before = states(&js).await?;
    let (of_streams, of_people) = (server.listener(true).await?, server.listener(false).await?);
    let mut in_streams = of_streams.subscribe(">").await?;
    let mut of_callers = of_people.subscribe(">").await?;
    until_heard(&of_streams, "are.we.listening", &mut in_streams).await?;
    until_heard(&of_people, "are.we.listening", &mut of_callers).await?;
    for forbidden in FORBIDDEN {
        for reply in [
            "leaf.v1.evt.edge.a.b.c",
            "$KV.leaf_state.edge.leaf",
            "_INBOX.leafd.x",
            "leaf.v1.beat.edge",
        ] {
            owner.publish_with_reply(forbidden, reply, "evil".into()).await?;
        }
    }
    // What a hub may ask, with a reply subject where a reply would be stored.
    for asked in [
        "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.events.info",
        "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.events.get",
        "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.state.get",
    ] {
        for reply in [
            "leaf.v1.evt.edge.a.b.c",
            "$KV.leaf_state.edge.leaf",
            "leaf.v1.beat.edge",
        ] {
            owner
                .publish_with_reply(asked, reply, r#"{"seq":1,"batch":1}"#.into())
                .await?;
        }
    }
    owner.flush().await?;
    let found = heard(&mut in_streams).await;
    // The requests that it may make, the server's replies to them, and its advisories about them.
    let of_requests = |found: &String| {
        let asked = [
            "$JS.API.STREAM.INFO.EVENTS_edge",
            "$JS.API.DIRECT.GET.EVENTS_edge",
            "$JS.API.DIRECT.GET.KV_leaf_state",
        ];
        asked.contains(&found.as_str()) || found.starts_with("_R_.") || found == "$JS.EVENT.ADVISORY.API"
    };
    let found: Vec<_> = found.into_iter().filter(|found| !of_requests(found)).collect();
    ensure!(
        found.is_empty(),
        "the hub reaches the account of the streams: {found:?}"
    );
    let found = heard(&mut of_callers).await;
    ensure!(
        found.is_empty(),
        "the hub reaches the callers' account: {found:?}"
    );
    ensure!(
        states(&js).await? == before,
        "{before:?} is {:?}",
        states(&js).await?
    );
    server.server.stop().await;
    Ok(())
}

/// Returns the names of all streams, and what they hold.
pub(super) async fn states(
    js: &async_nats::jetstream::Context,
) -> anyhow::Result<Vec<(String, u64, u64, usize)>> {
    let mut states = Vec::new();
    let mut streams = js.streams();
    while let Some(info) = streams.next().await {
        let info = info?;
        let state = (
            info.config.name,
            info.state.messages,
            info.state.last_sequence,
            info.state.consumer_count,
        );
        states.push(state);
    }
    states.sort();
    Ok(states)
}

async fn hears_what_goes_up() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    let server = LinkedLeaf::start(&hub).await?;
    let keeper = server.with_streams().await?;
    until_linked(&hub, &server).await?;
    let owner = hub.owner().await?;
    let mut named = Vec::new();
    for subject in ["_INBOX.>", "leaf.v1.cmd.>", "$JS.>", "$KV.>", "leaf.v1.ctr.>"] {
        named.push(owner.subscribe(subject).await?);
    }
    let mut all = owner.subscribe(">").await?;
    owner.flush().await?;
    until_heard(&keeper, &subject::beat(&leaf()), &mut all).await?;
    let _ = heard(&mut all).await;
    // A leaf's own people work on it.
    let service = server.service().await?;
    let mut commands = service.subscribe(subject::commands_of(&leaf())).await?;
    service.flush().await?;
    let admin = server
        .connect(&server.identity.admin_credentials(), "_INBOX.admin")
        .await?;
    let ask = admin.request("leaf.v1.cmd.edge.admin.leaf.show", "secret".into());
    let answer = async {
        let request = commands.next().await.context("a command")?;
        service
            .publish(request.reply.context("a reply subject")?, "secret".into())
            .await?;
        anyhow::Ok(())
    };
    let (reply, answered) = tokio::join!(tokio::time::timeout(LIMIT, ask), answer);
    answered?;
    reply??;
    let js = async_nats::jetstream::new(keeper);
    js.publish(subject::state_key(&leaf(), "leaf"), "{}".into())
        .await?
        .await?;
    admin
        .request("$JS.API.STREAM.INFO.EVENTS_edge", "".into())
        .await?;
    let found = heard(&mut all).await;
    ensure!(found == ["leaf.v1.state.edge.leaf"], "the hub hears {found:?}");
    for subscription in &mut named {
        let found = heard(subscription).await;
        ensure!(found.is_empty(), "the hub hears {found:?}");
    }
    server.server.stop().await;
    Ok(())
}

async fn reads() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    let server = LinkedLeaf::start(&hub).await?;
    let keeper = server.with_streams().await?;
    let js = async_nats::jetstream::new(keeper);
    let event = subject::event(&leaf(), "leaf", "edge", "started");
    js.publish(event.clone(), "{}".into()).await?.await?;
    js.publish(subject::state_key(&leaf(), "leaf"), "{}".into())
        .await?
        .await?;
    until_linked(&hub, &server).await?;
    let agent = hub.agent().await?;
    for (read, expected) in [
        (subject::LinkRead::EventsGet, event),
        (subject::LinkRead::StateGet, subject::state_key(&leaf(), "leaf")),
    ] {
        let get = subject::link_read(&leaf(), instance(), read);
        let reply = agent.request(get, r#"{"seq":1}"#.into()).await?;
        let found = reply
            .headers
            .as_ref()
            .and_then(|headers| headers.get("Nats-Subject"));
        ensure!(
            found.map(|subject| subject.as_str()) == Some(expected.as_str()),
            "{reply:?}"
        );
    }
    // No other stream can be named.
    for asked in [
        "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.leases.info",
        "leaf.v1.link.edge.00000000-0000-0000-0000-000000000007.events",
    ] {
        let reply = agent.request(asked, "".into()).await;
        ensure!(reply.is_err(), "{asked}: {reply:?}");
    }
    server.server.stop().await;
    Ok(())
}

/// A hub gives its commands reply subjects on which the leaf may publish, or its people listen.
async fn chooses_no_reply() -> anyhow::Result<()> {
    let hub = TestHub::start().await?;
    let server = LinkedLeaf::start(&hub).await?;
    until_linked(&hub, &server).await?;
    let mut answering = server.takes_commands().await?;
    let (owner, links, ann) = (hub.owner().await?, hub.agent_in_links().await?, hub.ann().await?);
    let mut claims = links.subscribe(subject::hub_requests()).await?;
    links.flush().await?;
    let command = "leaf.v1.cmd.edge.ann.leaf.show";
    let chosen = [
        subject::hub_claim(&leaf()),
        "leaf.v1.evt.edge.leaf.edge.started".to_owned(),
        "_INBOX.ann.x".to_owned(),
        "_INBOX.edge.x".to_owned(),
    ];
    let asked = async {
        // The interest of either side may take a moment to cross.
        while ann.request(command, "{}".into()).await.is_err() {}
        for reply in chosen {
            owner.publish_with_reply(command, reply, "{}".into()).await?;
        }
        owner.flush().await?;
        // It is answered after the others were seen, and what they would have caused was sent.
        ann.request(command, "{}".into()).await?;
        anyhow::Ok(())
    };
    let answered = async {
        while let Some(command) = answering.next().await {
            command.responder.reply(None, Ok(b"{}".to_vec())).await;
        }
    };
    tokio::select! {
        () = answered => anyhow::bail!("the leaf takes no commands"),
        asked = tokio::time::timeout(LIMIT, asked) => asked??,
    }
    let found = heard(&mut claims).await;
    ensure!(found.is_empty(), "the agent hears {found:?}");
    let refused = answering.refused_silently();
    ensure!(refused == 4, "{refused} of 4 were refused");
    server.server.stop().await;
    Ok(())
}
