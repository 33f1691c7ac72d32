//! The permissions of each user, tested against the real server.

mod credentials;
mod documented;
mod forged;
mod rights;

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use futures::StreamExt as _;
use leaf_bus::identity::{Permissions, daemon_caller};
use leaf_core::id::{Caller, ContainerName};
use leaf_core::subject;
use libtest_mimic::Trial;

use crate::support::{LIMIT, Site, User, leaf, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("the_daemon_writes_its_events_and_the_admin_reads_them", events),
        trial("the_daemon_may_not_write_for_another_leaf", daemon),
        trial(
            "the_admin_may_neither_act_for_others_nor_write_events_nor_change_streams",
            admin,
        ),
        trial("a_second_person_is_held_to_their_own_name", second_person),
        trial("a_container_may_do_nothing_but_its_own", container),
        trial("a_container_answers_requests_for_its_health", health),
    ];
    trials.extend(forged::trials());
    trials.extend(credentials::trials());
    trials.extend(rights::trials());
    trials.extend(documented::trials());
    trials
}

/// The daemon where the streams are.
async fn keeper_of(site: &Site) -> anyhow::Result<User> {
    site.connect(&site.identity.leaf_credentials(), &daemon_caller())
        .await
}

/// The daemon where its callers are.
async fn service_of(site: &Site) -> anyhow::Result<User> {
    site.connect(&site.identity.service_credentials(), &daemon_caller())
        .await
}

/// A container.
async fn container_of(site: &Site, name: &ContainerName) -> anyhow::Result<User> {
    site.connect(&site.identity.container_credentials(name), &name.caller(&leaf()))
        .await
}

/// Fails unless the server refused a connection for its credentials.
fn is_unauthorized(connected: anyhow::Result<User>) -> anyhow::Result<()> {
    let error = format!("{:?}", connected.err().context("it connected")?).to_lowercase();
    ensure!(error.contains("authorization violation"), "{error}");
    Ok(())
}

async fn events_stream(user: &User) -> anyhow::Result<jetstream::Context> {
    let js = jetstream::new(user.client.clone());
    js.create_stream(jetstream::stream::Config {
        name: subject::event_stream(&leaf()),
        subjects: vec![subject::events_of(&leaf())],
        allow_direct: true,
        ..Default::default()
    })
    .await?;
    Ok(js)
}

async fn events() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let daemon = keeper_of(&site).await?;
    let js = events_stream(&daemon).await?;
    let admin = site.admin().await?;
    let mut heard = admin.client.subscribe(subject::events()).await?;
    admin.client.request("$JS.API.INFO", "".into()).await?;
    let event = subject::event(&leaf(), "leaf", "edge", "started");
    for n in 1..=3u64 {
        let ack = js.publish(event.clone(), n.to_string().into()).await?.await?;
        ensure!(ack.sequence == n, "{ack:?}");
    }
    for n in 1..=3u64 {
        let message = tokio::time::timeout(LIMIT, heard.next())
            .await?
            .context("an event")?;
        ensure!(message.subject.as_str() == event && message.payload == n.to_string());
    }

    // As `nats stream info` and `nats stream get` ask.
    let js = jetstream::new(admin.client.clone());
    let stream = js.get_stream(subject::event_stream(&leaf())).await?;
    ensure!(stream.cached_info().state.messages == 3);
    for n in 1..=3u64 {
        let direct = stream.direct_get(n).await?;
        let raw = stream.get_raw_message(n).await?;
        ensure!(direct.payload == n.to_string() && raw.payload == n.to_string());
    }
    ensure!(js.stream_names().count().await == 1);
    site.end().await
}

async fn daemon() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let mut keeper = keeper_of(&site).await?;
    for own in [
        "leaf.v1.evt.edge.leaf.edge.started",
        "leaf.v1.beat.edge",
        "$KV.leaf_state.edge.hardware",
    ] {
        keeper.may_publish(own).await?;
    }
    for other in [
        "leaf.v1.evt.other.leaf.other.started",
        "leaf.v1.beat.other",
        "leaf.v1.cmd.edge.admin.leaf.show",
        "$KV.leaf_state.other.hardware",
        "_INBOX.admin.1",
    ] {
        keeper.may_not_publish(other).await?;
    }
    keeper.may_subscribe("_INBOX.leafd.x").await?;
    keeper.may_not_subscribe("leaf.*.cmd.edge.>").await?;

    let mut service = service_of(&site).await?;
    for own in [
        "leaf.v1.job.edge.x.log",
        "leaf.v1.ctr.edge.web.health",
        "_INBOX.admin.1",
    ] {
        service.may_publish(own).await?;
    }
    for other in [
        "leaf.v1.evt.edge.leaf.edge.started",
        "leaf.v1.beat.edge",
        "leaf.v1.cmd.edge.admin.leaf.show",
        "$KV.leaf_state.edge.hardware",
        "$JS.API.STREAM.DELETE.EVENTS_edge",
    ] {
        service.may_not_publish(other).await?;
    }
    for own in [
        "leaf.*.cmd.edge.>",
        "leaf.v1.ask.>",
        "$SRV.>",
        "leaf.v1.ctr.edge.>",
        "_INBOX.leafd.x",
    ] {
        service.may_subscribe(own).await?;
    }
    service.may_not_subscribe("leaf.*.cmd.other.>").await?;
    service.may_not_subscribe("_INBOX.admin.>").await?;
    site.end().await
}

async fn admin() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let keeper = keeper_of(&site).await?;
    let js = events_stream(&keeper).await?;
    let mut admin = site.admin().await?;
    for own in [
        "leaf.v1.cmd.edge.admin.container.start",
        "leaf.v1.ask.nix.build",
        "$SRV.PING",
        "leaf.v1.ctr.edge.web.health",
    ] {
        admin.may_publish(own).await?;
    }
    for other in [
        "leaf.v1.cmd.edge.bob.container.start",
        "leaf.v1.cmd.edge.leafd.container.start",
        "leaf.v1.evt.edge.leaf.edge.started",
        "leaf.v1.job.edge.x.log",
        "leaf.v1.beat.edge",
        "$KV.leaf_state.edge.hardware",
        "_INBOX.leafd.x",
        "$JS.API.STREAM.DELETE.EVENTS_edge",
        "$JS.API.STREAM.PURGE.EVENTS_edge",
        "$JS.API.STREAM.UPDATE.EVENTS_edge",
        "$JS.API.STREAM.CREATE.MINE",
        "$JS.API.STREAM.MSG.DELETE.EVENTS_edge",
    ] {
        admin.may_not_publish(other).await?;
    }
    admin.may_subscribe("leaf.v1.evt.>").await?;
    admin.may_subscribe("leaf.v1.job.>").await?;
    for other in ["leaf.v1.cmd.>", "_INBOX.>", "_INBOX.leafd.>", ">"] {
        admin.may_not_subscribe(other).await?;
    }
    js.get_stream(subject::event_stream(&leaf()))
        .await
        .context("the stream is still there")?;
    site.end().await
}

async fn second_person() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let bob = Caller::new("bob")?;
    let credentials = site.identity.user_credentials(&bob, &Permissions::person(&bob));
    let mut bob = site.connect(&credentials, &bob).await?;
    bob.may_publish("leaf.v1.cmd.edge.bob.leaf.show").await?;
    bob.may_not_publish("leaf.v1.cmd.edge.admin.leaf.show").await?;
    bob.may_not_subscribe("_INBOX.admin.>").await?;
    site.end().await
}

async fn container() -> anyhow::Result<()> {
    let site = Site::start().await?;
    // A name that is no token, and one that is.
    for (name, token) in [("Web", "_57eb"), ("db", "db")] {
        let name = ContainerName::new(name)?;
        let mut user = container_of(&site, &name).await?;
        user.may_publish(&format!("leaf.v1.ctr.edge.{token}.says.hello"))
            .await?;
        user.may_subscribe(&subject::container_health(&leaf(), &name))
            .await?;
        user.may_subscribe(&format!("_INBOX.ctr-{token}__edge.>")).await?;
        for other in [
            "leaf.v1.ctr.edge.other.says.hello",
            "leaf.v1.ctr.other.db.says.hello",
            "leaf.v1.evt.edge.leaf.edge.started",
            "leaf.v1.cmd.edge.admin.leaf.show",
            "leaf.v1.cmd.edge.ctr-db__edge.leaf.show",
            "$JS.API.INFO",
            "$SRV.PING",
            "_INBOX.admin.x",
            "_INBOX.leafd.x",
        ] {
            user.may_not_publish(other).await?;
        }
        for other in [
            "leaf.v1.>",
            "leaf.v1.ctr.edge.other.>",
            "_INBOX.>",
            "_INBOX.admin.>",
            "$SRV.>",
            ">",
        ] {
            user.may_not_subscribe(other).await?;
        }
    }
    site.end().await
}

async fn health() -> anyhow::Result<()> {
    let site = Site::start().await?;
    let name = ContainerName::new("Web")?;
    let health = subject::container_health(&leaf(), &name);
    let mut web = container_of(&site, &name).await?;
    let mut requests = web.client.subscribe(health.clone()).await?;
    web.may_publish(&format!("{}.up", subject::container_prefix(&leaf(), &name)))
        .await?;
    let daemon = service_of(&site).await?;
    let admin = site.admin().await?;
    for caller in [&daemon, &admin] {
        let ask = caller.client.request(health.clone(), "".into());
        let answer = async {
            let request = requests.next().await.context("a request")?;
            let reply = request.reply.context("a reply subject")?;
            web.client.publish(reply.clone(), "well".into()).await?;
            web.client.flush().await?;
            anyhow::Ok(reply)
        };
        let (answered, reply) = tokio::join!(ask, answer);
        ensure!(answered?.payload == "well");
        // One answer was allowed, and was given.
        web.may_not_publish(&reply?).await?;
    }
    site.end().await
}
