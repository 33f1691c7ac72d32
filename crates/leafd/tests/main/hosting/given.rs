//! Containers of a leaf that connects to a given NATS server.

use std::time::Duration;

use anyhow::ensure;
use leaf_core::container::ContainerPhase as Phase;
use leaf_core::id::ContainerName;
use libtest_mimic::Trial;

use super::{minimal, name, reach};
use crate::support::{Host, Hub, Need, Setup, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    let needs = &[Need::Containers];
    vec![
        host.trial(
            "on a given NATS a container is created, started, healthy, stopped and destroyed, and nothing is left",
            needs,
            whole_life,
        ),
        host.trial(
            "on a given NATS a container can only publish to its own subjects",
            needs,
            publishes_its_own,
        ),
        host.trial(
            "from inside a container on a given NATS only the relay to it is reachable",
            needs,
            only_the_relay_answers,
        ),
        host.trial(
            "a container reaches a server on the leaf's address without a relay",
            needs,
            server_at_the_leafs_address,
        ),
        host.trial(
            "on a given NATS a signing key that does not exist, or that others can read, is refused and named",
            needs,
            without_a_key,
        ),
    ]
}

pub(super) fn with_key(hub: &Hub) -> anyhow::Result<Setup> {
    let key = hub.signing_key()?;
    Ok(hub
        .setup()
        .containers()
        .set("nats.container_signing_key", key.display().to_string()))
}

/// Waits until a container answers for its health.
async fn healthy(leaf: &mut TestLeaf, name: &ContainerName) -> anyhow::Result<()> {
    let (client, own) = (leaf.client().await?, leaf.name.clone());
    until("the container is healthy", async || {
        let asked = client.request_container_health(&own, name, Duration::from_secs(2));
        let health = asked.await.ok();
        Ok(health
            .is_some_and(|health| health["container"] == name.as_str())
            .then_some(()))
    })
    .await
}

async fn whole_life() -> anyhow::Result<()> {
    let mut hub = Hub::start().await?;
    let mut leaf = with_key(&hub)?.start().await?;
    let name = name();
    leaf.create(&name, minimal(), false).await?;
    leaf.in_phase(&name, Phase::Stopped).await?;
    let runs = leaf.start_container(&name).await?;
    ensure!(runs.phase == Phase::Running, "{runs:?}");
    healthy(&mut leaf, &name).await?;
    let url = format!("connected to nats://{}:4222", leaf.address()?);
    until("the console says where it is connected", async || {
        Ok(leaf.console(&name).await?.contains(&url).then_some(()))
    })
    .await?;

    // The server goes and comes back, and so does leafd with its relay: the container finds both again.
    hub.stop().await;
    hub.start_again().await?;
    healthy(&mut leaf, &name).await?;
    leaf.stop().await?;
    leaf.back().await?;
    healthy(&mut leaf, &name).await?;

    let stopped = leaf.stop_container(&name).await?;
    ensure!(
        stopped.phase == Phase::Stopped && stopped.error.is_none(),
        "{stopped:?}"
    );
    leaf.destroy_without_a_trace(&name).await?;
    leaf.logged("the container's credentials are deleted with it")
        .await?;
    leaf.told_a_whole_life(&name, &["desired", "built"]).await
}

async fn publishes_its_own() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    reach::own_subjects_only(&mut with_key(&hub)?.start().await?).await
}

async fn only_the_relay_answers() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    reach::only_nats_is_reachable(&mut with_key(&hub)?.start().await?).await
}

async fn server_at_the_leafs_address() -> anyhow::Result<()> {
    // The leaf that has this address makes it, and lives as long as the other.
    let mut first = super::leaf().await?;
    let mut hub = Hub::start().await?;
    hub.move_to((first.address()?, 0).into()).await?;
    let block = first.address()?.octets()[1];
    let mut leaf = with_key(&hub)?
        .set("containers.address_pool", format!("10.{block}.0.0/16"))
        .start()
        .await?;
    let name = name();
    leaf.create(&name, minimal(), true).await?;
    leaf.in_phase(&name, Phase::Running).await?;
    healthy(&mut leaf, &name).await?;
    let url = format!("connected to nats://{}", hub.address());
    until("the console says where it is connected", async || {
        Ok(leaf.console(&name).await?.contains(&url).then_some(()))
    })
    .await?;
    leaf.destroy_without_a_trace(&name).await?;
    leaf.stop().await?;
    first.stop().await.map(drop)
}

async fn without_a_key() -> anyhow::Result<()> {
    let hub = Hub::start().await?;
    let missing = hub
        .setup()
        .containers()
        .set("nats.container_signing_key", "/nowhere/key");
    missing
        .launch()
        .await?
        .refuses(&["containers are enabled but can't be run", "/nowhere/key"])
        .await?;

    let key = hub.signing_key()?;
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let exposed = hub
        .setup()
        .containers()
        .set("nats.container_signing_key", key.display().to_string());
    exposed
        .launch()
        .await?
        .refuses(&["has mode 0644", "run `chmod 600` on it"])
        .await
}
