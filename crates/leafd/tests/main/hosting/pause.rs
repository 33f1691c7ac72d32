//! Pausing a container: its processes are frozen, whatever else happens to it.

use std::time::Duration;

use anyhow::ensure;
use leaf_core::command::{PauseContainer, ReadContainerStats, ResumeContainer};
use leaf_core::container::ContainerPhase as Phase;
use leaf_core::id::ContainerName;
use leaf_core::problem::ProblemCode;
use libtest_mimic::Trial;

use super::{is_problem, leaf, minimal, name};
use crate::support::{Host, Need, TestLeaf, until};

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    vec![host.trial(
        "a paused container stays paused across restarts of leafd and of the container until it is resumed, and can be stopped",
        &[Need::Containers],
        paused_and_resumed,
    )]
}

async fn answers(leaf: &mut TestLeaf, name: &ContainerName) -> anyhow::Result<bool> {
    let own = leaf.name.clone();
    let client = leaf.client().await?;
    let answer = client.request_container_health(&own, name, Duration::from_secs(2));
    Ok(answer.await.is_ok())
}

pub(super) fn resume(name: &ContainerName) -> ResumeContainer {
    ResumeContainer {
        name: name.clone(),
        if_generation: None,
    }
}

pub(super) fn pause(name: &ContainerName) -> PauseContainer {
    PauseContainer {
        name: name.clone(),
        if_generation: None,
    }
}

async fn is_paused(leaf: &mut TestLeaf, name: &ContainerName) -> anyhow::Result<()> {
    ensure!(!answers(leaf, name).await?, "its processes run");
    let stats = leaf.call(&ReadContainerStats { name: name.clone() }).await?;
    ensure!(stats.paused, "{stats:?}");
    Ok(())
}

async fn paused_and_resumed() -> anyhow::Result<()> {
    let mut leaf = leaf().await?;
    let name = name();
    leaf.create(&name, minimal(), false).await?;
    leaf.in_phase(&name, Phase::Stopped).await?;
    is_problem(
        leaf.call(&pause(&name)).await,
        ProblemCode::Conflict,
        "start it first",
    )?;
    leaf.start_container(&name).await?;
    ensure!(answers(&mut leaf, &name).await?);

    let paused = leaf.call(&pause(&name)).await?;
    ensure!(
        paused.desired.paused && paused.phase == Phase::Running,
        "{paused:?}"
    );
    is_paused(&mut leaf, &name).await?;
    let again = leaf.call(&pause(&name)).await?;
    ensure!(
        again.desired.generation == paused.desired.generation,
        "idempotent: {again:?}"
    );

    // It stays so, whatever is started anew.
    leaf.stop().await?;
    leaf.back().await?;
    is_paused(&mut leaf, &name).await?;
    leaf.stop_container(&name).await?;
    let started = leaf.start_container(&name).await?;
    ensure!(
        started.desired.paused && started.phase == Phase::Running,
        "{started:?}"
    );
    is_paused(&mut leaf, &name).await?;

    let resume = resume(&name);
    let resumed = leaf.call(&resume).await?;
    ensure!(
        !resumed.desired.paused && resumed.phase == Phase::Running,
        "{resumed:?}"
    );
    until("it answers again", async || {
        Ok(answers(&mut leaf, &name).await?.then_some(()))
    })
    .await?;
    ensure!(
        !leaf
            .call(&ReadContainerStats { name: name.clone() })
            .await?
            .paused
    );

    // A frozen process could not take the request to end: it is thawed first.
    leaf.call(&pause(&name)).await?;
    let begun = std::time::Instant::now();
    leaf.destroy(&name).await?;
    ensure!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    Ok(())
}
