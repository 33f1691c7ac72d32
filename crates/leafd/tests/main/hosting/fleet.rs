//! Containers of several leaves, which a person at their hub lists and stops with one command.

use anyhow::{Context as _, ensure};
use leaf_core::container::ContainerPhase as Phase;
use libtest_mimic::Trial;

use super::{minimal, name};
use crate::commands::ctl::{command, ended, lack, run, text};
use crate::support::{Host, HubSite, Need, until};

pub(super) fn trial(host: &Host) -> Trial {
    let trial = host.trial(
        "containers of two leaves are listed and stopped at their hub by one command each",
        &[Need::Containers, Need::HubAgent],
        listed_and_stopped,
    );
    let ignored = lack().is_some() || trial.has_ignored_flag();
    trial.with_ignored_flag(ignored)
}

async fn listed_and_stopped() -> anyhow::Result<()> {
    let mut hub = HubSite::start_for(2).await?;
    hub.start_agent()?;
    let wire = hub.wire().await?;
    let context = hub.context()?;
    let ctl = async |arguments: &[&str]| {
        let mut command = command(arguments);
        command.env("LEAFCTL_CONTEXT", &context);
        run(command).await
    };
    let mut running = Vec::new();
    for (leaf, site) in hub.leaves.iter().zip(["north", "south"]) {
        let setup = hub.setup_of(leaf, &wire).containers();
        let mut leaf = setup.set("labels.site", site).start().await?;
        let name = name();
        leaf.create(&name, minimal(), true).await?;
        leaf.in_phase(&name, Phase::Running).await?;
        running.push((leaf, name));
    }
    let [(north, in_north), (south, in_south)] = &mut running[..] else {
        anyhow::bail!("two leaves run");
    };

    let listed = until("both are listed at the hub", async || {
        let output = ctl(&["container", "list", "-A"]).await?;
        let table = text(&output.stdout);
        let has = |leaf: &str, container: &str| {
            table
                .lines()
                .any(|line| line.starts_with(leaf) && line.contains(container) && line.contains("running"))
        };
        let both = has(north.name.as_str(), in_north.as_str()) && has(south.name.as_str(), in_south.as_str());
        Ok(both.then_some(table))
    })
    .await?;
    ensure!(listed.starts_with("LEAF "), "{listed}");

    // By label: the one leaf stops its container, and the other is not asked.
    let stopped = ctl(&["container", "stop", in_south.as_str(), "-l", "site=south"]).await?;
    ended(&stopped, 0, "")?;
    south.in_phase(in_south, Phase::Stopped).await?;
    north.in_phase(in_north, Phase::Running).await?;

    // Of all: the one that has it stops it, and the other says that it has none.
    let stopped = ctl(&["container", "stop", in_north.as_str(), "-A"]).await?;
    let said = text(&stopped.stderr);
    ensure!(!stopped.status.success(), "{said}");
    ensure!(said.contains(&format!("error: {}: ", south.name)), "{said}");
    ensure!(!said.contains(&format!("error: {}: ", north.name)), "{said}");
    north.in_phase(in_north, Phase::Stopped).await?;

    // The hub has recorded both, under each leaf's name.
    let ann = hub.ann().await?;
    for (leaf, container) in [(&*north, &*in_north), (&*south, &*in_south)] {
        let key = format!("container.{}", container.token());
        until("the copied state has it", async || {
            let entries = ann.state_entries(&leaf.name).await?;
            let entry = entries.get(&key).context("an entry")?;
            Ok((entry["phase"] == "stopped").then_some(()))
        })
        .await?;
    }
    for (leaf, container) in &mut running {
        leaf.destroy_without_a_trace(container).await?;
    }
    Ok(())
}
