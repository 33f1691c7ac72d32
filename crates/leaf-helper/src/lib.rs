//! The root side of a leaf: carries out [`HostOp`]s, and nothing else.
//!
//! Start at [`Helper::carry_out`]. Whoever sends an operation is not believed: names, paths, addresses and store paths
//! are checked again here, no symbolic link is followed below the helper's directories, and no shell is run. Each
//! operation may be carried out again, after a crash as well.
//!
//! Below systemd a container is a unit, `container@NAME.service`, whose text `systemd::unit` makes and whose program is
//! `leaf-helper run` ([`Helper::run`]). Elsewhere it has a supervisor of its own, `leaf-helper supervise`
//! ([`Helper::supervise`]). Both outlive whoever started them. What is so is told by files, as [`HostPaths`] has them;
//! this crate has no memory.

mod accounts;
mod container;
mod error;
mod files;
mod job;
mod lock;
mod network;
mod nspawn;
mod order;
mod service;
mod settings;
mod systemd;

use std::path::Path;
use std::time::Duration;

use leaf_core::container::Exit;
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind, HostSubject, RunSpec};
use leaf_core::id::{ContainerName, LeafName};
use leaf_core::runtime::Runtime;
use leaf_host::contract::HostPaths;
use leaf_host::systemd::Systemd;

pub use accounts::AccountError;
pub use job::Jobs;
pub use service::client::Client;
pub use service::{Serving, config, serve};
pub use settings::{MissingProgram, Settings};

use error::{Error, Result};
use order::{Order, Place};

/// Carries out the operations of one leaf on this host.
#[derive(Debug, Clone)]
pub struct Helper {
    leaf: LeafName,
    paths: HostPaths,
    settings: Settings,
    systemd: Systemd,
    jobs: Option<Jobs>,
    order: Order,
}

/// A program that runs a container, or makes the units of containers, could not do so.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct ProgramError {
    what: String,
    reason: String,
}

impl ProgramError {
    fn about(what: impl Into<String>) -> impl FnOnce(Error) -> Self {
        let what = what.into();
        move |error| Self {
            what,
            reason: leaf_core::error::chain(&error),
        }
    }
}

impl Helper {
    /// Returns the helper of a leaf; it does nothing yet.
    #[must_use]
    pub fn new(leaf: LeafName, paths: HostPaths, settings: Settings) -> Self {
        Self {
            leaf,
            paths,
            settings,
            systemd: Systemd::new(systemd::PATIENCE),
            jobs: None,
            order: Order::default(),
        }
    }

    /// Returns the helper with jobs, which are run like this.
    #[must_use]
    pub fn with_jobs(self, jobs: Option<Jobs>) -> Self {
        Self { jobs, ..self }
    }

    /// Carries out one operation, after those on the same subject that came before. Idempotent.
    ///
    /// # Errors
    /// [`HostOpError`], whose kind says whether it was refused, can't be done on this host, or did not work.
    pub async fn carry_out(&self, op: &HostOp) -> std::result::Result<(), HostOpError> {
        let mut place = self.order.line_up(op)?;
        let outcome = self.carry_out_in_turn(&mut place, op).await;
        self.tidy_after(op, outcome.is_ok()).await;
        outcome
    }

    /// Carries out one operation when it is its turn, without [`Self::tidy_after`], for which nobody needs to wait.
    async fn carry_out_in_turn(
        &self,
        place: &mut Place,
        op: &HostOp,
    ) -> std::result::Result<(), HostOpError> {
        place.turn().await;
        let summary = op.summary();
        tracing::info!(op = summary, "begins");
        let outcome = tokio::select! {
            biased;
            outcome = Box::pin(self.try_carry_out(op)) => outcome.map_err(|e| e.about(op)),
            () = place.cut_short() => Err(HostOpError {
                op: summary.clone(),
                kind: HostOpErrorKind::NotReady,
                reason: "it is to be stopped, and was not waited for".to_owned(),
            }),
        };
        match &outcome {
            Ok(()) => tracing::info!(op = summary, "done"),
            Err(error) => {
                tracing::warn!(op = summary, kind = ?error.kind, reason = error.reason, "not done");
            }
        }
        outcome
    }

    /// Removes what an operation that had a container stopped has left of it.
    async fn tidy_after(&self, op: &HostOp, worked: bool) {
        let name = match op {
            HostOp::StopContainer { name, .. } => name,
            HostOp::StartContainer { name, .. } | HostOp::UpdateContainer { name, .. } if !worked => name,
            _ => return,
        };
        if self.settings.runtime == Runtime::Systemd
            && let Err(e) = Box::pin(self.tidy(name)).await
        {
            // The next start tries again, and so does the destroy.
            let error = leaf_core::error::chain(&e);
            tracing::warn!(container = %name, error, "something of a container that was stopped is left");
        }
    }

    async fn try_carry_out(&self, op: &HostOp) -> Result<()> {
        if let (HostSubject::Job(_), Some(jobs)) = (op.subject(), &self.jobs) {
            return jobs.carry_out(&self.systemd, op).await;
        }
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
                // What systemd starts goes by these settings, from the next start on.
                self.keep_record()?;
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
                self.create(&spec, *adopt, binding, credentials).await
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
                self.update(name, seconds(*ready_timeout_seconds), seconds(*grace_seconds))
                    .await
            }
            HostOp::FreezeContainer { name, frozen } => self.set_frozen(name, *frozen).await,
            HostOp::DestroyContainer { name } => self.destroy(name).await,
            HostOp::StartJob { .. } | HostOp::StopJob { .. } | HostOp::RemoveJob { .. } => {
                Err(Error::Unsupported("jobs need systemd as PID 1 here".into()))
            }
        }
    }

    /// Returns the helper that made a container, by the record that it keeps: for the programs below.
    ///
    /// # Errors
    /// [`ProgramError`] where the record can't be used, or is not root's.
    pub fn of_record(file: &Path) -> std::result::Result<Self, ProgramError> {
        Self::recorded(file).map_err(ProgramError::about("can't find the helper's settings"))
    }

    /// Supervises a container until it ends: for the program `leaf-helper supervise`, which is a process of its own.
    /// Returns how the container ended; the same stands in its `status.json`.
    ///
    /// # Errors
    /// [`ProgramError`] when the container could not be started; `status.json` says so too, unless another
    /// supervisor holds it.
    pub async fn supervise(&self, name: &ContainerName) -> std::result::Result<Exit, ProgramError> {
        nspawn::supervise::supervise(self, name)
            .await
            .map_err(ProgramError::about(format!("can't supervise container {name}")))
    }

    /// Runs a container in systemd-nspawn until it ends: for the program `leaf-helper run`, which is what a container's unit
    /// starts. Returns how the container ended; the same stands in its `status.json`.
    ///
    /// # Errors
    /// [`ProgramError`] when the container could not be started; `status.json` says so too.
    pub async fn run(&self, name: &ContainerName) -> std::result::Result<Exit, ProgramError> {
        self.launch(name)
            .await
            .map_err(ProgramError::about(format!("can't run container {name}")))
    }

    /// Brings a running container to another system by a switch inside: for the program `leaf-helper switch`, by which a
    /// container's unit reloads.
    ///
    /// # Errors
    /// [`ProgramError`] when it has to be started anew instead.
    pub async fn switch(&self, name: &ContainerName) -> std::result::Result<(), ProgramError> {
        self.switch_inside(name)
            .await
            .map_err(ProgramError::about(format!("can't switch container {name}")))
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

/// Writes the units of all containers of this host into a directory: for the program `cim-leaf-generator`, a systemd
/// generator (systemd.generator(7)).
///
/// # Errors
/// [`ProgramError`] when something could not be written.
pub fn generate_units(directory: &Path) -> std::result::Result<(), ProgramError> {
    systemd::generate::generate(directory).map_err(ProgramError::about("can't make the units of containers"))
}
