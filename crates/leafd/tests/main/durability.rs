//! What must hold whatever dies: the leaf, its server, the disk, its journal, its stream.

use crate::support::{Host, TestLeaf};
use libtest_mimic::Trial;

pub(crate) fn trials(host: &Host) -> Vec<Trial> {
    vec![host.trial(
        "a leaf that is stopped says so in its last event and leaves no process",
        &[],
        stops,
    )]
}

async fn stops() -> anyhow::Result<()> {
    let mut leaf = TestLeaf::start().await?;
    let shown = leaf.show().await?;
    anyhow::ensure!(shown.name == leaf.name, "{shown:?}");
    let status = leaf.stop().await?;
    anyhow::ensure!(status.success(), "{status}: {}", leaf.log());
    anyhow::ensure!(leaf.processes().is_empty(), "{:?}", leaf.processes());
    leaf.start_again().await?;
    let events = leaf.events().await?;
    anyhow::ensure!(
        events
            .iter()
            .any(|e| e.kind() == Some("cim.leaf.leaf.stopped.v1"))
    );
    Ok(())
}
