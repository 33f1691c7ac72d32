//! The agent: killed, beside another one, and told to forget a leaf.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leaf_core::fleet::CopyState;

use crate::servers::until;
use crate::site::{LIMIT, Site};

/// The first one is suspended, as a machine that hangs, and wakes up after the second took over.
pub(crate) async fn two_agents() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(5).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    let first = site.active_agent().await?;
    let mut first_agent = site.take_agent()?;
    site.start_agent()?;
    until("the second one waits", LIMIT, async || {
        Ok(site.log().contains("another hub agent is active").then_some(()))
    })
    .await?;
    ensure!(site.active_agent().await? == first, "the first one is active");
    let status = site.command(&["status"]).await?;
    ensure!(
        status.contains(&format!("active agent: instance {first}")),
        "{status}"
    );
    let pid = first_agent.id().context("it runs")?;
    signal(pid, rustix::process::Signal::STOP)?;
    let second = until("the second one is active", 2 * LIMIT, async || {
        Ok(site.active_agent().await.ok().filter(|active| *active != first))
    })
    .await?;
    leaf.claimed().await?;
    signal(pid, rustix::process::Signal::CONT)?;
    let ended = tokio::time::timeout(LIMIT, first_agent.wait()).await??;
    ensure!(!ended.success(), "{ended}");
    ensure!(
        site.log().contains("another hub agent has become active"),
        "{}",
        site.log()
    );
    ensure!(site.active_agent().await? == second);
    leaf.publish(5).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    site.shows(&leaf, CopyState::Current).await?;
    // One that is stopped is replaced at once.
    let pid = site.agent_id()?;
    signal(pid, rustix::process::Signal::TERM)?;
    site.take_agent()?.wait().await?;
    ensure!(
        site.command(&["status"])
            .await?
            .contains("no agent is active: the last one was stopped")
    );
    site.start_agent()?;
    let stopped = Instant::now();
    leaf.claimed().await?;
    ensure!(
        stopped.elapsed() < Duration::from_secs(6),
        "{:?}",
        stopped.elapsed()
    );
    Ok(())
}

fn signal(pid: u32, signal: rustix::process::Signal) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a process")?;
    Ok(rustix::process::kill_process(pid, signal)?)
}

pub(crate) async fn forgotten() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1", "edge-2"]).await?;
    let (mut lost, mut kept) = (site.leaf("edge-1").await?, site.leaf("edge-2").await?);
    lost.publish(10).await?;
    kept.publish(10).await?;
    lost.claimed().await?;
    kept.claimed().await?;
    site.has_all(&lost, LIMIT).await?;
    site.has_all(&kept, LIMIT).await?;
    // As long as it is there, it would come back.
    let refused = site
        .command(&["forget", "edge-1", "--yes"])
        .await
        .err()
        .context("refused")?;
    ensure!(refused.to_string().contains("stop its leafd"), "{refused}");
    ensure!(lost.released(lost.instance).await?);
    site.shows(&lost, CopyState::Away).await?;
    // Without a terminal nobody can confirm it.
    for command in ["forget", "reset"] {
        let refused = site
            .command(&[command, "edge-1"])
            .await
            .err()
            .context("refused")?;
        let text = refused.to_string();
        ensure!(text.contains("--yes") && text.contains("1 to 10"), "{text}");
    }
    ensure!(site.status(&lost).await?.is_some(), "nothing was changed");
    let said = site.command(&["forget", "edge-1", "--yes"]).await?;
    ensure!(said.contains("keeps the copy of the events 1 to 10"), "{said}");
    ensure!(site.status(&lost).await?.is_none());
    let leaves = site.hub.registry_as_it_is().leaves().await?;
    let names: Vec<&str> = leaves.iter().map(|known| known.beat.leaf.as_str()).collect();
    ensure!(names == ["edge-2"], "{names:?}");
    ensure!(site.hub.state_copy().await?.entries(&lost.name).await?.is_empty());
    let extent = site.hub.copy(&lost.name, 64 << 20).extent().await?;
    ensure!(extent.is_some_and(|extent| extent.last == 10), "{extent:?}");
    // The agent doesn't write it again, also after its restart; the other leaf is as before.
    site.kill_agent().await?;
    site.start_agent()?;
    kept.publish(1).await?;
    kept.claimed().await?;
    site.has_all(&kept, LIMIT).await?;
    ensure!(site.status(&lost).await?.is_none());
    ensure!(
        site.facts(&lost)
            .await?
            .last()
            .is_some_and(|fact| fact == "forgotten")
    );
    let said = site.command(&["forget", "edge-1", "--events", "--yes"]).await?;
    ensure!(said.contains("deletes the copy of the events 1 to 10"), "{said}");
    ensure!(site.hub.copy(&lost.name, 64 << 20).extent().await?.is_none());
    let refused = site
        .command(&["forget", "edge-1", "--yes"])
        .await
        .err()
        .context("refused")?;
    ensure!(refused.to_string().contains("was ever here"), "{refused}");
    // It may come back.
    lost.claimed().await?;
    site.has_all(&lost, LIMIT).await
}

pub(crate) async fn killed_agent() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    for round in 0..20u64 {
        let claims = leaf.claims();
        let (published, killed) = tokio::join!(
            async {
                for _ in 0..10 {
                    leaf.publish(50).await?;
                }
                anyhow::Ok(())
            },
            async {
                claims.claimed().await?;
                // Another moment of the copying each time.
                tokio::time::sleep(Duration::from_millis(round * 7 % 60)).await;
                site.kill_agent().await?;
                site.start_agent()
            }
        );
        published?;
        killed?;
    }
    leaf.claimed().await?;
    ensure!(leaf.last() == 10_000);
    site.has_all(&leaf, LIMIT).await?;
    ensure!(
        site.facts(&leaf)
            .await?
            .iter()
            .filter(|fact| *fact == "joined")
            .count()
            == 1,
        "joined once"
    );
    Ok(())
}
