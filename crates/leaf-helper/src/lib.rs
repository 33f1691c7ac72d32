//! The root side of a leaf: carries out [`HostOp`]s, and nothing else.
//!
//! Start at [`Helper::carry_out`]. Whoever sends an operation is not believed: names, paths, addresses and store paths
//! are checked again here, no symbolic link is followed below the helper's folders, and no shell is run. Each
//! operation may be carried out again, after a crash as well.
//!
//! A container runs below a supervisor of its own ([`Helper::supervise`], the program `leaf-helper supervise`), which
//! outlives whoever started it. What is so is told by files, as [`HostPaths`] has them; this crate has no memory.

mod accounts;
mod bounded;
mod cgroup;
mod client;
pub mod config;
mod console;
mod create;
mod error;
mod files;
mod firewall;
mod jobs;
mod network;
mod run;
mod serve;
mod settings;
mod start;
mod supervise;
mod wire;

use std::time::Duration;

use leaf_core::container::Exit;
use leaf_core::host_op::{HostOp, HostOpError, HostPaths, RunSpec};
use leaf_core::id::{ContainerName, LeafName};

pub use accounts::AccountError;
pub use client::Client;
pub use jobs::Jobs;
pub use serve::{Serving, serve};
pub use settings::{MissingProgram, Settings};

use error::{Error, Result};

/// Carries out the operations of one leaf on this host.
#[derive(Debug, Clone)]
pub struct Helper {
    leaf: LeafName,
    paths: HostPaths,
    settings: Settings,
}

/// A container could not be supervised, or not to its end.
#[derive(Debug, thiserror::Error)]
#[error("can't supervise container {name}: {reason}")]
pub struct SuperviseError {
    name: ContainerName,
    reason: String,
}

impl Helper {
    /// Returns the helper of a leaf; it does nothing yet.
    #[must_use]
    pub fn new(leaf: LeafName, paths: HostPaths, settings: Settings) -> Self {
        Self {
            leaf,
            paths,
            settings,
        }
    }

    /// Carries out one operation. Again is the same as once.
    ///
    /// The caller sees to it that no two operations on one container run at the same time.
    ///
    /// # Errors
    /// [`HostOpError`], whose kind says whether it was refused, can't be done on this host, or did not work.
    pub async fn carry_out(&self, op: &HostOp) -> std::result::Result<(), HostOpError> {
        tracing::debug!(op = op.summary(), "carrying out");
        self.try_carry_out(op).await.map_err(|e| e.about(op))
    }

    async fn try_carry_out(&self, op: &HostOp) -> Result<()> {
        self.check_host()?;
        match op {
            HostOp::PrepareNetwork {
                leaf_address,
                nats_port,
            } => {
                self.check_address(*leaf_address)?;
                if *nats_port == 0 {
                    return Err(Error::Refused("0 is not a port that can be opened".into()));
                }
                self.prepare_network(*leaf_address, *nats_port).await
            }
            HostOp::CreateContainer {
                name,
                toplevel,
                network,
                options,
                adopt,
                binding,
                credentials,
            } => {
                let spec = RunSpec {
                    leaf: self.leaf.clone(),
                    name: name.clone(),
                    toplevel: toplevel.clone(),
                    network: *network,
                    options: (**options).clone(),
                };
                options.check(name).map_err(Error::Refused)?;
                self.check_openings(&spec).await?;
                self.create(&spec, *adopt, binding, credentials)?;
                self.renew(name).await
            }
            HostOp::StartContainer {
                name,
                ready_timeout_seconds,
            } => self.start(name, seconds(*ready_timeout_seconds)).await,
            HostOp::StopContainer { name, grace_seconds } => self.stop(name, seconds(*grace_seconds)).await,
            HostOp::UpdateContainer {
                name,
                ready_timeout_seconds,
                grace_seconds,
            } => {
                self.stop(name, seconds(*grace_seconds)).await?;
                self.start(name, seconds(*ready_timeout_seconds)).await
            }
            HostOp::DestroyContainer { name } => self.destroy(name).await,
            HostOp::StartJob { .. } | HostOp::StopJob { .. } | HostOp::RemoveJob { .. } => {
                Err(Error::Unsupported("jobs need systemd as PID 1 here".into()))
            }
        }
    }

    /// Supervises a container until it ends: for the program `leaf-helper supervise`, which is a process of its own.
    /// Returns how the container ended; the same stands in its `status.json`.
    ///
    /// # Errors
    /// [`SuperviseError`] when the container could not be started; `status.json` says so too, unless another
    /// supervisor holds it.
    pub async fn supervise(&self, name: &ContainerName) -> std::result::Result<Exit, SuperviseError> {
        supervise::supervise(self, name)
            .await
            .map_err(|e| SuperviseError {
                name: name.clone(),
                reason: leaf_core::error::chain(&e),
            })
    }

    fn check_host(&self) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Unsupported(
                "this needs root, and this process is not root's".into(),
            ));
        }
        for path in [
            &self.paths.roots,
            &self.paths.state,
            &self.paths.run,
            &self.settings.leaf_init,
        ] {
            settings::check_path(path)?;
        }
        Ok(())
    }

    fn check_address(&self, address: std::net::Ipv4Addr) -> Result<()> {
        if self.settings.pool.contains(address) {
            Ok(())
        } else {
            Err(Error::Refused(format!(
                "{address} is not in this leaf's range {}",
                self.settings.pool
            )))
        }
    }
}

/// The longest that the helper waits for anything.
const MAX_WAIT_SECONDS: u32 = 3600;

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.min(MAX_WAIT_SECONDS).into())
}
