//! Closes the network of a leaf's containers while another program removes the rules, and opens it again.
//!
//! To close is to cut the containers off, and to leave a mark: until it is gone, or old, containers that start are cut
//! off as well, and a rebuild of the rules connects none.

use std::time::Duration;

use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use rustix::time::{ClockId, clock_gettime};

use super::Specs;
use crate::error::Result;
use crate::files::Directory;
use crate::{Helper, network};

/// The mark of a container that is cut off until the rules are set, in its run directory.
pub(crate) const CUT_OFF: &str = "cut-off";
/// The mark of a closed network, in the leaf's run directory; not a valid container name. It has the time of closing, in
/// seconds since boot.
///
/// A helper of before the mark ignores it: it connects containers as soon as the rules are set. Where it opens the
/// network that a newer one closed, the mark stays, until it is too old to count.
const CLOSED: &str = "network.closed";
/// The time after which a network is no longer closed: whatever was to open it has failed.
const CLOSED_AT_MOST: Duration = Duration::from_secs(120);

impl Helper {
    /// Cuts all containers off, and keeps them so until the network is opened, because another program is about to
    /// remove the rules. Each is tried.
    pub(crate) async fn close_network(&self) -> Result<()> {
        let _lock = self.lock_network().await?;
        let marked = self
            .run_directories()
            .and_then(|run| run.write(CLOSED, boot_seconds().to_string().as_bytes(), 0o600));
        let Specs { read, unreadable } = self.specs()?;
        let cut = self.cut_off(read.keys().chain(&unreadable)).await;
        let paused = self.forwarding().await.and_then(|forwarding| forwarding.pause());
        marked.and(cut).and(paused)
    }

    /// Sets the rules again and connects the containers, if the network was prepared.
    pub(crate) async fn open_network(&self) -> Result<()> {
        let lock = self.lock_network().await?;
        // Whatever follows: the next rebuild connects the containers.
        if let Some(run) = Directory::open_root(&self.paths.run)? {
            run.remove_file(CLOSED)?;
        }
        match self.prepared(&lock.state)? {
            Some(prepared) => self.rebuild(&lock, prepared).await,
            None => Ok(()),
        }
    }

    /// Returns whether the network is closed.
    pub(super) fn is_closed(&self) -> Result<bool> {
        let Some(run) = Directory::open_root(&self.paths.run)? else {
            return Ok(false);
        };
        let since: Option<u64> = run.read(CLOSED)?.and_then(|text| text.parse().ok());
        Ok(since.is_some_and(|since| boot_seconds().saturating_sub(since) < CLOSED_AT_MOST.as_secs()))
    }

    /// Creates a container's veth again, with its elements in the rules. If the network is closed, the veth is down.
    pub(crate) async fn attach(&self, spec: &RunSpec) -> Result<()> {
        let (linked, admitted) = tokio::join!(
            network::make_link(&spec.name, spec.network),
            self.admit(&spec.name)
        );
        linked?;
        admitted?;
        // One that is closed after this look finds the veth.
        if !self.is_closed()? {
            return Ok(());
        }
        let _lock = self.lock_network().await?;
        match self.is_closed()? {
            true => self.cut_one_off(&spec.name).await,
            // It was opened in the meantime.
            false => Ok(()),
        }
    }

    /// Cuts off those of these containers that participate. Each is tried; the first error is returned.
    pub(super) async fn cut_off<'a>(&self, names: impl Iterator<Item = &'a ContainerName>) -> Result<()> {
        let mut first = Ok(());
        for name in names {
            let cut = match self.takes_part(name) {
                Ok(false) => Ok(()),
                Ok(true) => self.cut_one_off(name).await,
                Err(e) => Err(e),
            };
            if let Err(e) = &cut {
                let error = leaf_core::error::chain(e);
                tracing::error!(container = %name, error, "can't cut a container off completely");
            }
            first = first.and(cut);
        }
        first
    }

    async fn cut_one_off(&self, name: &ContainerName) -> Result<()> {
        // Noted first, so that it is connected again whatever happens.
        let noted = self.run_directory(name).and_then(|run| run.touch(CUT_OFF, 0o600));
        network::take_down(name).await?;
        noted
    }

    /// Connects a container again, if it is cut off.
    pub(super) async fn reconnect(&self, spec: &RunSpec) -> Result<()> {
        let run = self.run_directory(&spec.name)?;
        if run.has(CUT_OFF)? {
            network::bring_back(&spec.name, spec.network).await?;
            run.remove_file(CUT_OFF)?;
        }
        Ok(())
    }
}

/// Returns the seconds since boot, with those in which the host was suspended.
fn boot_seconds() -> u64 {
    u64::try_from(clock_gettime(ClockId::Boottime).tv_sec).unwrap_or_default()
}
