//! Containers' credentials that end within seconds, and are renewed while the containers run.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leaf_bus::client::Client;
use leaf_core::container::ContainerPhase as Phase;
use leaf_core::id::{ContainerName, LeafName};
use libtest_mimic::Trial;

use super::given::with_key;
use super::pause::{pause, resume};
use super::{minimal, name};
use crate::support::{Host, Hub, Need, Setup, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let needs = &[Need::Containers];
    vec![
        host.trial(
            "a container's credentials are renewed while it runs, and it goes on, also where leafd was away for longer than their life",
            needs,
            beside_an_embedded_server,
        ),
        host.trial(
            "on a given NATS a container's credentials are renewed while it runs, and it goes on",
            needs,
            on_a_given_server,
        ),
    ]
}

const LIFE: Duration = Duration::from_secs(6);

/// Asks a container for its health, over and over for this long, and returns the longest time without an answer.
async fn longest_silence(
    client: &Client,
    leaf: &LeafName,
    name: &ContainerName,
    during: Duration,
) -> Duration {
    let (began, mut last, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
    while began.elapsed() < during {
        let asked = client.request_container_health(leaf, name, Duration::from_millis(200));
        if asked.await.is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    longest.max(last.elapsed())
}

async fn healthy(leaf: &mut TestLeaf, name: &ContainerName) -> anyhow::Result<()> {
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    until("the container is healthy", async || {
        let asked = client.request_container_health(&own, name, Duration::from_millis(500));
        Ok(asked.await.ok().map(drop))
    })
    .await
}

/// Runs a container over three ends of its credentials, and fails if it was without an answer for long or was started anew.
async fn goes_on(leaf: &mut TestLeaf, name: &ContainerName) -> anyhow::Result<()> {
    healthy(leaf, name).await?;
    let before = leaf.container(name).await?;
    let first = before.credentials_until.context("the end of its credentials")?;
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    let silence = longest_silence(&client, &own, name, LIFE * 3).await;
    eprintln!(
        "the longest time without an answer was {} ms",
        silence.as_millis()
    );
    ensure!(silence < Duration::from_secs(1), "{silence:?} without an answer");
    let after = leaf.container(name).await?;
    let until = after.credentials_until.context("the end of its credentials")?;
    ensure!(until.duration_since(first).as_secs() > 12, "{first} and {until}");
    ensure!(
        after.phase == Phase::Running && after.ready_at == before.ready_at,
        "{after:?}"
    );
    let console = leaf.console(name).await?;
    ensure!(
        console.matches("Authentication Expired").count() >= 2,
        "it was not cut: {console}"
    );
    Ok(())
}

async fn beside_an_embedded_server() -> anyhow::Result<()> {
    let mut leaf = Setup::new().containers().container_life(LIFE)?.start().await?;
    let name = name();
    leaf.create(&name, minimal(), true).await?;
    let runs = leaf.in_phase(&name, Phase::Running).await?;
    goes_on(&mut leaf, &name).await?;
    let told = leaf.told(&name.token()).await?.len();

    // leafd is killed, and away for longer than a life.
    leaf.kill().await?;
    tokio::time::sleep(LIFE * 3 / 2).await;
    leaf.start_again().await?;
    healthy(&mut leaf, &name).await?;
    let back = leaf.in_phase(&name, Phase::Running).await?;
    ensure!(back.ready_at == runs.ready_at, "it was started anew: {back:?}");

    // It is frozen for longer than a life.
    leaf.call(&pause(&name)).await?;
    tokio::time::sleep(LIFE * 3 / 2).await;
    leaf.call(&resume(&name)).await?;
    healthy(&mut leaf, &name).await?;
    ensure!(
        leaf.told(&name.token()).await?.len() <= told + 4,
        "a renewal is no event"
    );

    // It is stopped for longer than a life.
    leaf.stop_container(&name).await?;
    tokio::time::sleep(LIFE * 3 / 2).await;
    leaf.start_container(&name).await?;
    healthy(&mut leaf, &name).await?;
    leaf.stop_container(&name).await?;
    leaf.destroy_without_a_trace(&name).await
}

async fn on_a_given_server() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let mut leaf = with_key(&hub)?.container_life(LIFE)?.start().await?;
    let name = name();
    leaf.create(&name, minimal(), true).await?;
    leaf.in_phase(&name, Phase::Running).await?;
    goes_on(&mut leaf, &name).await?;
    leaf.stop_container(&name).await?;
    leaf.destroy_without_a_trace(&name).await
}
