//! Others of the same name, no server to speak to, and the end.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leaf_bus::client::{CallError, CallOptions};
use leaf_core::command::Build;
use leaf_core::job::Installable;
use leaf_core::problem::ProblemCode;
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::load::{self, Load};
use crate::support::{Hub, Setup, TestLeaf, until};

pub(super) async fn the_same_directory() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let instance = leaf.show().await?.instance;
    let pid = leaf.pid().context("it runs")?;
    let (status, said) = leaf.second().await?;
    ensure!(!status.success(), "{status}");
    for text in [
        leaf.name.as_str(),
        &instance.to_string(),
        &pid.to_string(),
        &leaf.state_dir.display().to_string(),
    ] {
        ensure!(said.contains(text), "it does not say {text:?}, but {said:?}");
    }
    ensure!(leaf.show().await?.instance == instance, "the first one goes on");
    Ok(())
}

pub(super) async fn the_same_name() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let mut first = hub.setup().start().await?;
    let shown = first.show().await?;
    let mut second = hub.setup().launch().await?;
    second
        .refuses(&[
            &format!("leaf {} is held by instance {}", hub.leaf, shown.instance),
            &shown.host.hostname,
            "give this one another name",
        ])
        .await?;
    ensure!(
        first.show().await?.instance == shown.instance,
        "the first one goes on"
    );

    // The same directory after a SIGKILL: that one is surely dead.
    first.kill().await?;
    let began = Instant::now();
    first.start_again().await?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(10), "it waited for {took:?}");

    // Given back by a proper end: another directory takes the history over.
    first.stop().await?;
    second.start_again().await?;
    second
        .logged("importing the stream's events into the journal")
        .await?;
    second.published().await?;
    let events = second.complete_events(1).await?;
    load::check_shown(&mut second, &TestLeaf::replay(&events)?).await
}

/// Two leaves of one name, and neither can have the lease by which it would notice the other.
pub(super) async fn without_a_lease() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let context = async_nats::jetstream::new(hub.nats_of_streams().await?);
    let foreign = async_nats::jetstream::stream::Config {
        name: "LEASES".to_owned(),
        subjects: vec!["something.else".to_owned()],
        ..Default::default()
    };
    context.create_stream(foreign).await?;
    let mut first = hub.setup().launch().await?;
    let mut second = hub.setup().launch().await?;
    for leaf in [&first, &second] {
        leaf.logged("not ready: this is tried again until it succeeds")
            .await?;
        leaf.logged("the stream LEASES belongs to another application")
            .await?;
        leaf.logged("remove it, or give the leaves an account without it")
            .await?;
    }
    // Nobody answers in the name of both.
    second.kill().await?;
    ensure!(
        !first.log().contains("status=\"leaf "),
        "it is ready:\n{}",
        first.log_end()
    );
    context.delete_stream("LEASES").await?;
    first.ready().await?;
    let shown = first.show().await?;
    second.launch_again()?;
    second
        .refuses(&[&format!(
            "leaf {} is held by instance {}",
            hub.leaf, shown.instance
        )])
        .await
}

/// A leaf that started without a connection is told by the server that it can't have its lease.
pub(super) async fn a_lease_that_is_refused_later() -> anyhow::Result<()> {
    let mut hub = Hub::start().await?;
    let mut leaf = hub.setup().start().await?;
    leaf.published().await?;
    leaf.stop().await?;
    let context = async_nats::jetstream::new(hub.nats_of_streams().await?);
    context.delete_stream("LEASES").await?;
    let foreign = async_nats::jetstream::stream::Config {
        name: "LEASES".to_owned(),
        subjects: vec!["something.else".to_owned()],
        ..Default::default()
    };
    context.create_stream(foreign).await?;
    hub.stop().await;
    leaf.start_again().await?;
    hub.start_again().await?;
    leaf.refuses(&[
        &format!("the NATS server refuses the lease on the name {}", hub.leaf),
        "the stream LEASES belongs to another application",
    ])
    .await?;
    leaf.launch_again()?;
    leaf.logged("not ready: this is tried again until it succeeds")
        .await?;
    let context = async_nats::jetstream::new(hub.nats_of_streams().await?);
    context.delete_stream("LEASES").await?;
    leaf.ready().await
}

pub(super) async fn without_a_server() -> anyhow::Result<()> {
    let mut hub = Hub::start().await?;
    let mut leaf = hub.setup().start().await?;
    let before = leaf.published().await?;
    leaf.stop().await?;
    hub.stop().await;
    leaf.start_again().await?;
    hub.start_again().await?;
    let last = leaf.published().await?;
    ensure!(last >= before + 2, "{before} before, {last} now");
    let events = leaf.complete_events(1).await?;
    load::check_shown(&mut leaf, &TestLeaf::replay(&events)?).await
}

pub(super) async fn a_new_leaf_without_a_server() -> anyhow::Result<()> {
    let mut hub = Hub::start().await?;
    let setup = hub.setup();
    hub.stop().await;
    let mut leaf = setup.launch().await?;
    leaf.logged("the journal is new: waiting for NATS").await?;
    let status = leaf.stop().await?;
    ensure!(status.success(), "SIGTERM while it waits: {status}");

    leaf.launch_again()?;
    hub.start_again().await?;
    leaf.ready().await?;
    leaf.published().await?;
    let events = leaf.complete_events(1).await?;
    load::check_shown(&mut leaf, &TestLeaf::replay(&events)?).await
}

pub(super) async fn a_password_in_the_address() -> anyhow::Result<()> {
    let mut hub = Hub::start().await?;
    let address = hub.address();
    let mut leaf = hub
        .setup()
        .set("nats.url", format!("nats://me:hush-hush@{address}"))
        .start()
        .await?;
    // Errors name the server as well.
    hub.stop().await;
    leaf.logged("not connected").await?;
    ensure!(
        leaf.said_to_systemd()
            .contains(&format!("connects to nats://{address}")),
        "{}",
        leaf.said_to_systemd()
    );
    for text in [leaf.said_to_systemd(), &leaf.log()] {
        ensure!(text.contains(&address.to_string()), "{text}");
        ensure!(!text.contains("hush"), "{text}");
    }
    leaf.stop().await.map(drop)
}

/// A settings file that can't be used, read by the program, quotes no password of it.
pub(super) async fn a_password_in_an_unusable_file() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let mut leaf = hub.setup().start().await?;
    leaf.stop().await?;
    let file = leaf.settings_file();
    let good = std::fs::read_to_string(&file)?;
    let url = good
        .lines()
        .find(|line| line.starts_with("url = "))
        .context("the line of nats.url")?;
    for (bad, says) in [
        ("url = nats://me:hush-hush@hub:4222", "invalid settings file"),
        ("url = \"nats://me:hush-hush@hub:4222", "invalid settings file"),
        (
            "embedded = \"nats://me:hush-hush@hub:4222\"",
            "invalid type: string, expected",
        ),
        (
            "url = \"nats://me:hush-hush@hub:port\"",
            "is not the address of a NATS server",
        ),
        (
            "url = \"nats://me:hush-hush@\"",
            "is not the address of a NATS server",
        ),
    ] {
        std::fs::write(&file, good.replace(url, bad))?;
        let before = leaf.log().len();
        leaf.launch_again()?;
        leaf.refuses(&[says]).await?;
        let said = leaf.log().split_off(before);
        ensure!(!said.contains("hush"), "{bad}: {said}");
    }
    Ok(())
}

/// The server has less room than the stream of events needs. Nothing is listed that takes no commands.
pub(super) async fn no_room_for_the_stream() -> anyhow::Result<()> {
    let hub = Hub::start_with_storage(64 << 20).await?;
    let mut leaf = hub.setup().launch().await?;
    leaf.logged("the stream EVENTS_").await?;
    for says in [
        "needs 1073741824 bytes (1024.0 MiB)",
        "more than the NATS server has left of its `max_file`",
        "lower events.max_bytes",
        "not ready: this is tried again until it succeeds",
    ] {
        leaf.logged(says).await?;
    }
    let context = async_nats::jetstream::new(hub.nats_of_streams().await?);
    until("the lease is given back", async || {
        let leases = context.get_stream("LEASES").await?;
        Ok((leases.cached_info().state.messages == 0).then_some(()))
    })
    .await?;
    ensure!(!leaf.log().contains("status=\"leaf "), "{}", leaf.log_end());
    // The same reason is logged once, however often it is tried.
    let said = leaf.log().matches("needs 1073741824 bytes").count();
    ensure!(said == 1, "{said} times:\n{}", leaf.log_end());
    leaf.stop().await?;

    let mut leaf = hub.setup().set("events.max_bytes", 32 << 20).start().await?;
    leaf.published().await.map(drop)
}

pub(super) async fn a_wrong_domain() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let mut leaf = hub
        .setup()
        .set("nats.jetstream_domain", "nowhere")
        .launch()
        .await?;
    for says in [
        "$JS.nowhere.API.",
        "check nats.jetstream_domain in leafd's settings",
        "not ready: this is tried again until it succeeds",
    ] {
        leaf.logged(says).await?;
    }
    ensure!(!leaf.log().contains("JetStream is off"), "{}", leaf.log_end());
    leaf.stop().await.map(drop)
}

pub(super) async fn no_containers() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let mut leaf = hub.setup().containers_if_it_can().start().await?;
    let why = leaf.show().await?.no_containers.context("leaf.show says why")?;
    ensure!(
        why.contains("nats.url") && why.contains("nats.container_signing_key, which is not set"),
        "{why}"
    );
    leaf.logged("this leaf runs no containers").await?;
    leaf.stop().await?;

    let mut leaf = hub.setup().set("containers.enable", true).launch().await?;
    leaf.refuses(&[
        "containers.enable",
        "nats.url",
        "nats.container_signing_key, which is not set",
    ])
    .await
}

pub(super) async fn the_end() -> anyhow::Result<()> {
    let (mut leaf, _) = load::busy_leaf(load::setup()).await?;
    let mut busy = Load::start(&leaf);
    busy.answers_more(20).await?;
    let client = leaf.connect().await?;
    let mut calls = JoinSet::new();
    leaf.signal(Signal::TERM)?;
    for _ in 0..20 {
        let (client, name) = (client.clone(), leaf.name.clone());
        calls.spawn(async move {
            let request = Build::of([Installable::File {
                path: "/nothing.nix".to_owned(),
                attribute: None,
            }]);
            client.call(&name, &request, CallOptions::default()).await
        });
    }
    let status = leaf.ended().await?;
    ensure!(status.code() == Some(0), "{status}; the log:\n{}", leaf.log_end());
    while let Some(answer) = calls.join_next().await {
        match answer? {
            Ok(_) | Err(CallError::NoLeaf(_) | CallError::Disconnected) => {}
            Err(CallError::Problem(problem)) if problem.code == ProblemCode::Draining => {}
            Err(other) => return Err(anyhow::Error::new(other).context("a command during the stop")),
        }
    }
    ensure!(leaf.nats_pid().is_none(), "its server is still there");
    // Nothing was left for later: the stream ends with the end of the run.
    leaf.start_again().await?;
    let done = busy.finish().await?;
    leaf.published().await?;
    let events = leaf.complete_events(1).await?;
    load::check_done(&events, &done)?;
    ensure!(
        !leaf.log().contains("will be published after the next start"),
        "the last events were not published"
    );
    until("it goes on", async || Ok(Some(leaf.show().await?)))
        .await
        .map(drop)
}

/// The queue of a socket has room for a few notifications; this leaf sends a hundred in a second.
pub(super) async fn notifications_that_nobody_reads() -> anyhow::Result<()> {
    let setup = Setup::new().variable("WATCHDOG_USEC", Path::new("20000"));
    let mut leaf = setup.start().await?;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let shown = leaf.show().await;
        leaf.with_log(shown)?;
    }
    let status = leaf.stop().await?;
    ensure!(status.success(), "{status}");
    Ok(())
}
