//! Messages that look like a leaf's. A reader can have the server send its answers, and messages of streams, to any subject
//! of the callers' account. They are in no stream, and nothing of ours believes them.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use leaf_bus::client::{CallOptions, EventsFrom};
use leaf_bus::identity::{Permissions, admin_caller, daemon_caller};
use leaf_bus::kv::StateBucket;
use leaf_bus::lease::Lease;
use leaf_bus::stream::{EventStream, StreamSettings};
use leaf_core::command::{Destroyed, StopContainer};
use leaf_core::id::{Caller, ContainerName, JobId};
use leaf_core::subject;
use libtest_mimic::Trial;

use super::leases::{beat, beats};
use super::{admin, commands, record, site_with_daemon};
use crate::support::{LIMIT, Site, User, leaf, trial};

pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("a_forged_event_is_not_among_the_events", event),
        trial("a_forged_beat_makes_no_leaf", lease),
        trial("a_forged_entry_is_not_in_the_state", entry),
        trial("a_forged_message_of_a_job_is_a_hint_without_a_content", job),
        trial("a_forged_command_is_not_carried_out", command),
        trial("a_forged_reply_in_the_inbox_of_another_answers_nothing", reply),
    ]
}

/// A person who may only read, and what they can have the server send.
struct Forger(User);

impl Forger {
    async fn at(site: &Site) -> anyhow::Result<Self> {
        let caller = Caller::new("mallory")?;
        let credentials = site
            .identity
            .user_credentials(&caller, &Permissions::person(&caller));
        Ok(Self(site.connect(&credentials, &caller).await?))
    }

    /// Has the server send to this subject, and returns once all of it was heard by `heard`.
    async fn forge(&self, target: &str, heard: &mut async_nats::Subscriber) -> anyhow::Result<()> {
        let questions = [
            ("$JS.API.STREAM.INFO.EVENTS_edge", ""),
            ("$JS.API.STREAM.MSG.GET.EVENTS_edge", r#"{"seq":1}"#),
            ("$JS.API.DIRECT.GET.EVENTS_edge", r#"{"seq":1}"#),
        ];
        for (question, body) in questions {
            let sent = self
                .0
                .client
                .publish_with_reply(question, target.to_owned(), body.into());
            sent.await?;
        }
        for _ in questions {
            let message = tokio::time::timeout(LIMIT, heard.next())
                .await
                .with_context(|| format!("what the server sends to {target}"))?;
            let message = message.context("a message")?;
            ensure!(*message.subject == *target, "{message:?}");
        }
        Ok(())
    }
}

/// A raw subscription of a user, which is with the server when this returns.
async fn listen(user: &User, subject: &str) -> anyhow::Result<async_nats::Subscriber> {
    let heard = user.client.subscribe(subject.to_owned()).await?;
    user.client.request("$JS.API.INFO", "".into()).await?;
    Ok(heard)
}

/// A server with a daemon that has published an event.
async fn site() -> anyhow::Result<(Site, leaf_bus::connect::Bus, EventStream)> {
    let (site, bus) = site_with_daemon().await?;
    let (stream, _) = EventStream::ensure(&bus, &leaf(), StreamSettings::default(), 1).await?;
    let mut publisher = stream.publisher(0).await?;
    publisher.publish(record(1)).await?;
    publisher.settle().await?;
    Ok((site, bus, stream))
}

async fn event() -> anyhow::Result<()> {
    let (site, _bus, stream) = site().await?;
    let client = admin(&site).await?;
    let mut events = client.events(&leaf(), EventsFrom::Beginning);
    let mut next = async || {
        let next = tokio::time::timeout(LIMIT, events.next()).await?;
        anyhow::Ok(next.context("an event")??)
    };
    ensure!(next().await? == record(1));
    let user = site.admin().await?;
    let target = subject::event(&leaf(), "leaf", "edge", "started");
    let mut heard = listen(&user, &target).await?;
    Forger::at(&site).await?.forge(&target, &mut heard).await?;
    let mut publisher = stream.publisher(1).await?;
    publisher.publish(record(2)).await?;
    publisher.settle().await?;
    ensure!(next().await? == record(2), "nothing comes between the two");
    ensure!(stream.state().await?.events == 2);
    Ok(())
}

async fn lease() -> anyhow::Result<()> {
    let (site, bus, _) = site().await?;
    let client = admin(&site).await?;
    let lease = Lease::acquire(&bus, &beat(1, 1), false).await?;
    let user = site.admin().await?;
    let forger = Forger::at(&site).await?;
    for target in [subject::beat(&leaf()), "leaf.v1.beat.other".to_owned()] {
        let mut heard = listen(&user, &target).await?;
        forger.forge(&target, &mut heard).await?;
        ensure!(beats(&client).await? == [beat(1, 1)], "{target}");
    }
    lease.release().await?;
    ensure!(client.leaves().await?.heard.is_empty());
    Ok(())
}

async fn entry() -> anyhow::Result<()> {
    let (site, bus, _) = site().await?;
    let client = admin(&site).await?;
    let bucket = StateBucket::ensure(&bus, &leaf()).await?;
    bucket.apply(&[("leaf".to_owned(), Some("{}".into()))]).await?;
    let before = client.state_entries(&leaf()).await?;
    let user = site.admin().await?;
    let forger = Forger::at(&site).await?;
    for key in ["leaf", "container.web"] {
        let target = subject::state_key(&leaf(), key);
        let mut heard = listen(&user, &target).await?;
        forger.forge(&target, &mut heard).await?;
    }
    ensure!(client.state_entries(&leaf()).await? == before);
    Ok(())
}

async fn job() -> anyhow::Result<()> {
    let (site, _bus, _) = site().await?;
    let client = admin(&site).await?;
    let user = site.admin().await?;
    let forger = Forger::at(&site).await?;
    let job = JobId(uuid::Uuid::from_u128(9));
    let mut hints = client.job_hints(&leaf(), job).await?;
    for target in [
        subject::job_progress(&leaf(), job),
        subject::job_log(&leaf(), job),
        subject::job_ended(&leaf(), job),
    ] {
        let mut heard = listen(&user, &target).await?;
        forger.forge(&target, &mut heard).await?;
        // All that a client gets of it is that it may ask.
        let began = tokio::time::Instant::now();
        hints.next(LIMIT).await;
        ensure!(began.elapsed() < LIMIT, "{target} is no hint");
    }
    Ok(())
}

async fn command() -> anyhow::Result<()> {
    let (site, bus, _) = site().await?;
    let mut server = commands::server(&bus).await?;
    let client = admin(&site).await?;
    let service = site
        .connect(&site.identity.service_credentials(), &daemon_caller())
        .await?;
    let forger = Forger::at(&site).await?;
    let target = "leaf.v1.cmd.edge.admin.container.destroy";
    let mut heard = listen(&service, target).await?;
    forger.forge(target, &mut heard).await?;
    let name = ContainerName::new("web")?;
    let stop = StopContainer {
        name: name.clone(),
        if_generation: None,
    };
    let leaf = leaf();
    let call = client.call_raw(
        &leaf,
        "container",
        "stop",
        serde_json::to_vec(&stop)?,
        CallOptions::default(),
    );
    let serve = async {
        let incoming = server.next().await.context("a command")?;
        ensure!(
            incoming.verb == "stop",
            "a forged {}.{} is a command",
            incoming.noun,
            incoming.verb
        );
        let reply = serde_json::to_vec(&Destroyed { name })?;
        incoming.responder.reply(None, Ok(reply)).await;
        anyhow::Ok(())
    };
    let (called, served) = tokio::join!(call, serve);
    served?;
    called?;
    ensure!(server.refused_silently() == 3, "{}", server.refused_silently());
    Ok(())
}

async fn reply() -> anyhow::Result<()> {
    let (site, bus, _) = site().await?;
    let mut server = commands::server(&bus).await?;
    let client = admin(&site).await?;
    let user = site.admin().await?;
    let forger = Forger::at(&site).await?;
    // Nobody else sees the names of the inboxes; this one is given away.
    let target = format!("{}.guessed", subject::inbox_prefix(&admin_caller()));
    let mut heard = listen(&user, &target).await?;
    let name = ContainerName::new("web")?;
    let stop = StopContainer {
        name: name.clone(),
        if_generation: None,
    };
    let (leaf, body) = (leaf(), serde_json::to_vec(&stop)?);
    let options = CallOptions {
        timeout: Duration::from_secs(20),
        ..CallOptions::default()
    };
    let call = client.call_raw(&leaf, "container", "stop", body, options);
    let serve = async {
        let incoming = server.next().await.context("a command")?;
        forger.forge(&target, &mut heard).await?;
        incoming.responder.reply(None, Ok(b"the leaf's".to_vec())).await;
        anyhow::Ok(())
    };
    let (called, served) = tokio::join!(call, serve);
    served?;
    ensure!(called? == b"the leaf's");
    Ok(())
}
