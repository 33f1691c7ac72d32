//! The hub's store and its copies: lost, restored, with a gap, with another history, with an event too large to give back.

use std::path::Path;

use anyhow::ensure;
use leaf_core::fleet::{CopyReply, CopyState, ReadCopy};
use leaf_core::subject;

use crate::site::{LIMIT, Site};

pub(crate) async fn too_large() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(3).await?;
    // Each quotation mark takes two bytes in a page.
    let body = serde_json::to_vec(&"\"".repeat(300_000))?;
    leaf.publish_body(body).await?;
    leaf.publish(2).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    let read = async |from| -> anyhow::Result<CopyReply> {
        let body = serde_json::to_vec(&ReadCopy { from })?;
        leaf.ask(&subject::hub_copy_read(&leaf.name), body).await
    };
    let CopyReply::Page(page) = read(1).await? else {
        anyhow::bail!("the events before it can't be read");
    };
    ensure!(
        page.events.len() == 3 && page.last == 6,
        "{} events",
        page.events.len()
    );
    let CopyReply::Unreadable(refused) = read(4).await? else {
        anyhow::bail!("it fits");
    };
    ensure!(
        refused.sequence == Some(4) && refused.unreadable.contains("event 4 takes"),
        "{refused:?}"
    );
    Ok(())
}

pub(crate) async fn lost_store() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1", "edge-2"]).await?;
    let (mut one, mut two) = (site.leaf("edge-1").await?, site.leaf("edge-2").await?);
    one.publish(3000).await?;
    two.publish(10).await?;
    one.claimed().await?;
    two.claimed().await?;
    site.has_all(&one, LIMIT).await?;
    site.server.kill().await?;
    std::fs::remove_dir_all(site.store())?;
    one.publish(10).await?;
    site.server.start_again().await?;
    one.claimed().await?;
    two.claimed().await?;
    site.has_all(&one, LIMIT).await?;
    site.has_all(&two, LIMIT).await?;
    site.shows(&one, CopyState::Current).await?;
    Ok(())
}

pub(crate) async fn older_store() -> anyhow::Result<()> {
    let mut site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(300).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    site.server.kill().await?;
    let backup = site.directory.path().join("backup");
    copy_directory(&site.store(), &backup)?;
    site.server.start_again().await?;
    leaf.publish(900).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    site.server.kill().await?;
    std::fs::remove_dir_all(site.store())?;
    copy_directory(&backup, &site.store())?;
    site.server.start_again().await?;
    leaf.publish(5).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await
}

pub(crate) async fn gap() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(10).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    leaf.starts_again().await?;
    leaf.rewrite(100, 20, "first").await?;
    leaf.succeeds().await?;
    let status = site.shows(&leaf, CopyState::Gap).await?;
    ensure!(status.copied == 10 && status.reason.is_some_and(|why| why.contains("begin with 100")));
    // Nothing is copied after the gap.
    leaf.publish(1).await?;
    leaf.claimed().await?;
    ensure!(site.shows(&leaf, CopyState::Gap).await?.copied == 10);
    let said = site.command(&["reset", "edge-1", "--yes"]).await?;
    ensure!(said.contains("1 to 10"), "{said}");
    site.has_all(&leaf, LIMIT).await?;
    site.shows(&leaf, CopyState::Current).await?;
    let facts = site.facts(&leaf).await?;
    ensure!(
        facts.ends_with(&["gap", "reset", "recovered"].map(str::to_owned)),
        "{facts:?}"
    );
    Ok(())
}

pub(crate) async fn different() -> anyhow::Result<()> {
    let site = Site::start(&["edge-1"]).await?;
    let mut leaf = site.leaf("edge-1").await?;
    leaf.publish(10).await?;
    leaf.claimed().await?;
    site.has_all(&leaf, LIMIT).await?;
    leaf.starts_again().await?;
    leaf.rewrite(1, 30, "second").await?;
    leaf.succeeds().await?;
    let status = site.shows(&leaf, CopyState::Differs).await?;
    ensure!(status.reason.is_some_and(|why| why.contains("number 10")));
    leaf.publish(1).await?;
    leaf.claimed().await?;
    ensure!(site.shows(&leaf, CopyState::Differs).await?.copied == 10);
    site.command(&["reset", "edge-1", "--yes"]).await?;
    site.has_all(&leaf, LIMIT).await?;
    site.shows(&leaf, CopyState::Current).await?;
    Ok(())
}

fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
