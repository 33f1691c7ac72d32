//! The disk full: refused in time, nothing lost, and on by itself once there is room.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use leaf_bus::client::CallError;
use leaf_core::command::{Build, ListHardware};
use leaf_core::job::Installable;
use leaf_core::problem::ProblemCode;

use super::load::{self, Load};
use crate::support::{TestLeaf, until};

/// A disk of its own, in memory.
struct SmallDisk {
    directory: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("leafd-disk-").tempdir()?;
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64m,mode=0700", "cim-leaf-test"])
            .arg(directory.path())
            .status()?;
        ensure!(status.success(), "a tmpfs can't be mounted: {status}");
        Ok(Self { directory })
    }

    fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn free(&self) -> anyhow::Result<u64> {
        let stat = rustix::fs::statvfs(self.directory.path())?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    fn ballast(&self) -> PathBuf {
        self.directory.path().join("ballast")
    }

    /// Fills it until only this much is left.
    fn fill(&self, leave: u64) -> anyhow::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.ballast())?;
        loop {
            let free = self.free()?;
            if free <= leave {
                return Ok(());
            }
            let piece = usize::try_from((free - leave).min(1 << 20))?;
            match file.write_all(&vec![7; piece]) {
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                other => other?,
            }
        }
    }

    fn empty(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.ballast())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.directory.path())
            .status();
    }
}

/// A leaf on this disk, with this reserve, that answers clients.
async fn under_load(disk: &SmallDisk, reserve_bytes: i64) -> anyhow::Result<(TestLeaf, Load)> {
    let setup = load::setup()
        .state_dir(&disk.state_dir())
        .set("events.max_bytes", 8 << 20)
        .set("events.reserve_bytes", reserve_bytes);
    let (leaf, _) = load::busy_leaf(setup).await?;
    let mut load = Load::start(&leaf);
    load.answers_more(20).await?;
    Ok((leaf, load))
}

/// Ends the load: all that was answered is in the stream, and a replay gives what the leaf shows.
async fn all_is_kept(leaf: &mut TestLeaf, load: Load) -> anyhow::Result<()> {
    let done = load.finish().await?;
    leaf.published().await?;
    let events = leaf.complete_events(1).await?;
    load::check_done(&events, &done)?;
    load::check_shown(leaf, &TestLeaf::replay(&events)?).await
}

fn a_build(directory: &Path) -> Build {
    Build::of([Installable::File {
        path: directory.join("nothing.nix").display().to_string(),
        attribute: None,
    }])
}

/// Fails unless a command was refused since the disk is full, and the problem says this.
fn refused_for_the_disk<T: std::fmt::Debug>(answer: Result<T, CallError>, says: &str) -> anyhow::Result<()> {
    match answer {
        Err(CallError::Problem(problem)) => {
            ensure!(problem.code == ProblemCode::DiskFull, "{problem:?}");
            ensure!(problem.detail.contains(says), "{problem:?}");
            Ok(())
        }
        other => anyhow::bail!("{other:?}"),
    }
}

pub(super) async fn below_the_reserve() -> anyhow::Result<()> {
    let disk = SmallDisk::new()?;
    let (mut leaf, mut load) = under_load(&disk, 8 << 20).await?;
    disk.fill(4 << 20)?;
    let request = a_build(leaf.scratch());
    refused_for_the_disk(leaf.call(&request).await, "kept in reserve")?;
    let refusing = leaf.show().await?.refusing.context("leaf.show says why")?;
    ensure!(refusing.contains("kept in reserve"), "{refusing}");
    leaf.call(&ListHardware {})
        .await
        .context("questions are answered")?;
    disk.empty()?;
    load.answers_more(20).await?;
    ensure!(leaf.show().await?.refusing.is_none());
    all_is_kept(&mut leaf, load).await
}

pub(super) async fn to_the_last_byte() -> anyhow::Result<()> {
    let disk = SmallDisk::new()?;
    // Without a reserve the journal itself meets the end of the disk.
    let (mut leaf, mut load) = under_load(&disk, 0).await?;
    until_the_server_refuses(&leaf, &disk).await?;
    until_the_journal_waits(&leaf, &disk).await?;
    let refusing = until("leaf.show says why", async || Ok(leaf.show().await?.refusing)).await?;
    ensure!(
        refusing.contains("the disk of the journal has been full"),
        "{refusing}"
    );
    let request = a_build(leaf.scratch());
    refused_for_the_disk(leaf.call(&request).await, "")?;
    disk.empty()?;
    load.answers_more(40).await?;
    all_is_kept(&mut leaf, load).await
}

pub(super) async fn stopped_on_a_full_disk() -> anyhow::Result<()> {
    let disk = SmallDisk::new()?;
    let (mut leaf, mut load) = under_load(&disk, 0).await?;
    until_the_journal_waits(&leaf, &disk).await?;
    leaf.signal(rustix::process::Signal::TERM)?;
    let began = std::time::Instant::now();
    let ended = leaf.ended().await.context("SIGTERM on a full disk");
    leaf.with_log(ended)?;
    ensure!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    disk.empty()?;
    leaf.start_again().await?;
    load.answers_more(20).await?;
    all_is_kept(&mut leaf, load).await
}

/// Fills the disk, again and again, until nats-server was the one who met its end.
async fn until_the_server_refuses(leaf: &TestLeaf, disk: &SmallDisk) -> anyhow::Result<()> {
    let met = until("nats-server meets the end of the disk", async || {
        disk.fill(0)?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let met = leaf.log().contains("can't publish events at the moment");
        if !met {
            // The journal was first: some room for the next try.
            disk.empty()?;
        }
        Ok(met.then_some(()))
    });
    leaf.with_log(met.await)
}

/// Fills the disk, and again what others give back, until the journal has met its end.
async fn until_the_journal_waits(leaf: &TestLeaf, disk: &SmallDisk) -> anyhow::Result<()> {
    let met = until("the journal meets the end of the disk", async || {
        disk.fill(0)?;
        Ok(leaf.log().contains("the journal waits for room").then_some(()))
    });
    leaf.with_log(met.await)
}
