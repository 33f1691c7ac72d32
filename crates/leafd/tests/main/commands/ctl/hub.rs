//! `leafctl` at a hub.

use anyhow::{Context as _, ensure};
use leaf_core::fleet::CopyState;

use super::{command, run, text};
use crate::support::{HubSite, until};

/// Since when the leaf is away, and how far its events are known at the hub, where they are listed.
pub(super) async fn away() -> anyhow::Result<()> {
    let mut hub = HubSite::start().await?;
    hub.start_agent()?;
    let wire = hub.wire().await?;
    let mut leaf = hub.setup(&wire).start().await?;
    leaf.published().await?;
    let context = hub.context()?;
    let ctl = async |arguments: &[&str]| {
        let mut command = command(arguments);
        command.env("LEAFCTL_CONTEXT", &context);
        run(command).await
    };
    until("the leaf shows its claim", async || {
        let shown = ctl(&["leaf", "show", hub.leaf.as_str()]).await?;
        Ok(text(&shown.stdout).contains("claim renewed").then_some(()))
    })
    .await?;
    leaf.stop().await?;
    let ann = hub.ann().await?;
    let copy = until("the leaf is away", async || {
        let copy = ann.copy_status(&hub.leaf).await?;
        Ok(copy.filter(|copy| copy.state == CopyState::Away))
    })
    .await?;
    let (code, said) = until("its absence is explained", async || {
        let output = ctl(&["--timeout", "2s", "leaf", "show", hub.leaf.as_str()]).await?;
        let said = text(&output.stderr);
        Ok(said
            .contains("is away since")
            .then_some((output.status.code(), said)))
    })
    .await?;
    ensure!(code == Some(4), "{code:?}: {said}");
    let ends = format!("the hub's copy of its events ends with {} of", copy.copied);
    ensure!(said.contains(&ends), "it does not say {ends:?}: {said}");
    let events = text(&ctl(&["events", "--leaf", hub.leaf.as_str()]).await?.stdout);
    let last = events.lines().last().context("events are listed")?;
    ensure!(
        last.trim_start().starts_with(&copy.copied.to_string()),
        "the last event listed is {last:?}"
    );
    Ok(())
}
