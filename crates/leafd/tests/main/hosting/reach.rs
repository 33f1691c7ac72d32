//! What a container can reach, and what it can publish.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use async_nats::jetstream;
use futures::StreamExt as _;
use leaf_core::host_op::Secret;
use leaf_core::id::ContainerName;
use leaf_core::subject;
use leaf_host::contract::HostPaths;
use libtest_mimic::Trial;

use super::systems::{WAITS, system};
use super::{leaf, name, toplevel};
use crate::support::{Host, LIMIT, Need, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let needs = &[Need::Containers];
    vec![
        host.trial(
            "a container's NATS user can only publish to its own subjects",
            needs,
            publishes_its_own,
        ),
        host.trial(
            "from inside a container only its leaf's NATS port is reachable",
            needs,
            only_nats_answers,
        ),
        host.trial(
            "the credentials of a container that was destroyed are refused, and its name can be used again",
            needs,
            revoked,
        ),
    ]
}

/// Returns the NATS credentials that a container has.
pub(super) fn credentials(leaf: &TestLeaf, name: &ContainerName) -> anyhow::Result<Secret> {
    let state = HostPaths::new(&leaf.name).state.join(name.as_str());
    Ok(Secret::new(std::fs::read_to_string(
        state.join("credentials/nats.creds"),
    )?))
}

async fn publishes_its_own() -> anyhow::Result<()> {
    own_subjects_only(&mut leaf().await?).await
}

/// Fails if a container of this leaf can publish to other subjects than its own.
pub(super) async fn own_subjects_only(leaf: &mut TestLeaf) -> anyhow::Result<()> {
    let other = name();
    let name = name();
    let waits = system(WAITS).await?;
    leaf.create(&name, toplevel(&waits), true).await?;
    leaf.create(&other, toplevel(&waits), false).await?;
    leaf.published().await?;
    let before = leaf.show().await?.sequence;
    let inside = leaf
        .nats(&credentials(leaf, &name)?, &name.caller(&leaf.name))
        .await?;
    let daemon = leaf.nats_as_service().await?;
    let admin = leaf.nats_as_admin().await?;

    let l = &leaf.name;
    let health = format!("{}.health", subject::container_prefix(l, &name));
    let mut commands = daemon.subscribe(subject::commands_of(l)).await?;
    let mut own = daemon.subscribe(subject::containers_of(l)).await?;
    let mut events = admin.subscribe(subject::events_of(l)).await?;
    // The server has a subscription once it has answered something later of the same connection; a flush does not tell.
    daemon.publish(health.clone(), "asked".into()).await?;
    let asked = tokio::time::timeout(LIMIT, own.next())
        .await?
        .context("a message")?;
    ensure!(asked.payload == "asked", "{asked:?}");
    let show = format!("leaf.v1.cmd.{l}.admin.leaf.show");
    admin.request(show.clone(), "{}".into()).await?;
    let command = tokio::time::timeout(LIMIT, commands.next())
        .await?
        .context("a command")?;
    ensure!(command.subject.as_str() == show, "{command:?}");
    for forbidden in [
        format!("leaf.v1.evt.{l}.container.{}.stopped", name.token()),
        format!("leaf.v1.cmd.{l}.admin.leaf.show"),
        format!("leaf.v1.cmd.{l}.{}.leaf.show", name.caller(&leaf.name)),
        format!("leaf.v1.beat.{l}"),
        format!("{}.news", subject::container_prefix(l, &other)),
        health,
        format!("$KV.leaf_state.{l}.leaf"),
        format!("$JS.API.STREAM.DELETE.EVENTS_{l}"),
        "_INBOX.admin.x".to_owned(),
    ] {
        inside.publish(forbidden, "forged".into()).await?;
    }
    let allowed = format!("{}.news", subject::container_prefix(l, &name));
    inside.publish(allowed.clone(), "hello".into()).await?;
    inside.flush().await?;
    // What is allowed came last, so all that was to come before it would be here.
    let first = tokio::time::timeout(LIMIT, own.next())
        .await?
        .context("a message")?;
    ensure!(
        first.subject.as_str() == allowed && first.payload == "hello",
        "{first:?}"
    );
    let nothing = Duration::from_millis(200);
    for (what, subscription) in [("a command", &mut commands), ("an event", &mut events)] {
        let came = tokio::time::timeout(nothing, subscription.next()).await;
        ensure!(came.is_err(), "{what} came through: {came:?}");
    }
    ensure!(leaf.show().await?.sequence == before, "nothing happened");
    let stream = jetstream::new(leaf.nats_as_leafd().await?)
        .get_stream(format!("EVENTS_{}", leaf.name))
        .await
        .context("its stream is still there")?;
    ensure!(stream.cached_info().state.last_sequence == before);
    leaf.destroy(&name).await?;
    leaf.destroy(&other).await
}

async fn only_nats_answers() -> anyhow::Result<()> {
    only_nats_is_reachable(&mut leaf().await?).await
}

/// Fails if a container of this leaf reaches more, or less, than NATS on its leaf's address.
pub(super) async fn only_nats_is_reachable(leaf: &mut TestLeaf) -> anyhow::Result<()> {
    let name = name();
    let address = leaf.address()?;
    // Another service of the host, on the same address.
    let other = tokio::net::TcpListener::bind((address, 0)).await?;
    let port = other.local_addr()?.port();
    let script = format!(
        "url=$($b sed 's/.*nats:..\\([0-9.]*\\):\\([0-9]*\\).*/\\1 \\2/' $CREDENTIALS_DIRECTORY/leaf.json | $b grep '^[0-9.]* [0-9]*$')\n\
         for i in 1 2 3 4 5 6 7 8 9 10; do $b nc -w 1 $url </dev/null | $b grep -q INFO && {{ echo nats open; break; }}; $b sleep 0.1; done\n\
         $b nc -w 1 {address} {port} </dev/null && echo other open || echo other closed\n{WAITS}"
    );
    leaf.create(&name, toplevel(&system(&script).await?), true)
        .await?;
    let console = leaf.console(&name).await?;
    let lines: Vec<&str> = console
        .lines()
        .filter(|line| line.ends_with("open") || line.ends_with("closed"))
        .collect();
    ensure!(lines == ["nats open", "other closed"], "{console}");
    // The service is there for the host itself.
    tokio::net::TcpStream::connect((address, port)).await?;
    leaf.destroy(&name).await
}

async fn revoked() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    let waits = system(WAITS).await?;
    leaf.create(&name, toplevel(&waits), false).await?;
    let old = credentials(&leaf, &name)?;
    let inside = leaf.nats(&old, &name.caller(&leaf.name)).await?;
    leaf.destroy(&name).await?;
    until("the connection is dropped", async || {
        let connected = inside.connection_state() == async_nats::connection::State::Connected;
        Ok((!connected).then_some(()))
    })
    .await?;
    ensure!(leaf.nats(&old, &name.caller(&leaf.name)).await.is_err());
    leaf.create(&name, toplevel(&waits), false).await?;
    leaf.nats(&credentials(&leaf, &name)?, &name.caller(&leaf.name))
        .await?;
    ensure!(leaf.nats(&old, &name.caller(&leaf.name)).await.is_err());
    leaf.destroy(&name).await
}
