//! The privileged side of a leaf: carries out [`HostOp`]s, and nothing else.
//!
//! Start at [`Helper::carry_out`]. Callers are not trusted: names, paths, addresses and store paths are validated again
//! here, no symbolic link is followed below the helper's directories, and no shell is run. Each operation is
//! idempotent, after a crash as well.
//!
//! Under systemd a container is a unit, `container@NAME.service`, whose text is made by `systemd::unit` and whose
//! program is `leaf-helper run` ([`Helper::run`]). Elsewhere it has a supervisor, `leaf-helper supervise`
//! ([`Helper::supervise`]). Both outlive the process that started them. State is kept in files, see [`HostPaths`]; this
//! crate keeps none in memory.

mod accounts;
mod change;
mod container;
mod error;
mod files;
mod job;
mod lock;
mod network;
mod nspawn;
mod order;
mod secrets;
mod service;
mod settings;
mod systemd;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use leaf_core::container::Exit;
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind, HostReport, HostSubject, RunSpec};
use leaf_core::id::{ContainerName, LeafName};
use leaf_core::runtime::Runtime;
use leaf_host::contract::HostPaths;
use leaf_host::systemd::Systemd;
use tokio::sync::OnceCell;

pub use accounts::AccountError;
pub use change::{Changes, Systems};
pub use job::Jobs;
pub use secrets::SecretStore;
pub use secrets::units::{give_credential, refuse_credential};
pub use service::client::Client;
pub use service::{Serving, config, serve};
pub use settings::{MissingProgram, Settings};
pub use systemd::generate::LEAVES;

use container::create::check_credentials;
use error::{Error, Result};
use order::{Order, Place};

/// Carries out the host operations of one leaf.
#[derive(Debug, Clone)]
pub struct Helper {
    leaf: LeafName,
    paths: HostPaths,
    settings: Settings,
    systemd: Systemd,
    jobs: Option<Jobs>,
    changes: Changes,
    order: Order,
    /// Whether this helper has brought up to date what earlier ones left.
    is_up_to_date: Arc<AtomicBool>,
    /// Whether units have heard of the changes of secrets that an earlier helper made.
    has_taken_up_changes: Arc<OnceCell<()>>,
}

/// An error of a program that runs a container or generates the units of containers.
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
    /// Returns the helper of a leaf.
    #[must_use]
    pub fn new(leaf: LeafName, paths: HostPaths, settings: Settings) -> Self {
        Self {
            leaf,
            paths,
            settings,
            systemd: Systemd::new(systemd::PATIENCE),
            jobs: None,
            changes: Changes::default(),
            order: Order::default(),
            is_up_to_date: Arc::default(),
            has_taken_up_changes: Arc::default(),
        }
    }

    /// Returns the helper with these settings of jobs; `None` if it runs no jobs.
    #[must_use]
    pub fn with_jobs(self, jobs: Option<Jobs>) -> Self {
        Self { jobs, ..self }
    }

    /// Returns the helper with these settings of changes that can cut the leaf off.
    #[must_use]
    pub fn with_changes(self, changes: Changes) -> Self {
        Self { changes, ..self }
    }

    /// Carries out an operation, after earlier ones on the same subject. Idempotent.
    ///
    /// # Errors
    /// [`HostOpError`], whose kind says whether it was refused, is not supported on this host, or failed.
    pub async fn carry_out(&self, op: &HostOp) -> std::result::Result<HostReport, HostOpError> {
        let mut place = self.order.line_up(op)?;
        let outcome = self.carry_out_in_turn(&mut place, op).await;
        self.tidy_after(op, outcome.is_ok()).await;
        outcome
    }

    /// Carries out an operation in its turn, without [`Self::tidy_after`], which the caller need not wait for.
    async fn carry_out_in_turn(
        &self,
        place: &mut Place,
        op: &HostOp,
    ) -> std::result::Result<HostReport, HostOpError> {
        place.turn().await;
        let summary = op.summary();
        tracing::info!(op = summary, "begins");
        let outcome = tokio::select! {
            biased;
            outcome = Box::pin(self.try_carry_out(op)) => outcome.map_err(|e| e.about(op)),
            () = place.cut_short() => Err(HostOpError {
                op: summary.clone(),
                kind: HostOpErrorKind::NotReady,
                reason: "interrupted, because it is to be stopped".to_owned(),
            }),
        };
        match &outcome {
            Ok(_) => tracing::info!(op = summary, "done"),
            Err(error) => {
                tracing::warn!(op = summary, kind = ?error.kind, reason = error.reason, "a host operation failed");
            }
        }
        outcome
    }

    /// Cleans up after an operation that stopped a container.
    async fn tidy_after(&self, op: &HostOp, worked: bool) {
        let name = match op {
            HostOp::StopContainer { name, .. } => name,
            HostOp::StartContainer { name, .. } | HostOp::UpdateContainer { name, .. } if !worked => name,
            _ => return,
        };
        if self.settings.runtime == Runtime::Systemd
            && let Err(e) = Box::pin(self.tidy(name)).await
        {
            // The next start or destroy cleans up again.
            let error = leaf_core::error::chain(&e);
            tracing::warn!(container = %name, error, "can't clean up completely after a container stopped");
        }
    }

    async fn try_carry_out(&self, op: &HostOp) -> Result<HostReport> {
        if let (HostSubject::Job(_), Some(jobs)) = (op.subject(), &self.jobs) {
            jobs.carry_out(&self.systemd, op).await?;
            return Ok(HostReport::default());
        }
        match op {
            HostOp::ArmChange {
                id,
                caller,
                seconds,
                unwitnessed,
                hub,
            } => {
                self.check_changes()?;
                let order = change::Order {
                    id: *id,
                    caller,
                    seconds: *seconds,
                    unwitnessed: *unwitnessed,
                    what: change::What::Hub(hub),
                };
                self.changes.arm(&self.leaf, &self.systemd, &order).await?;
                return Ok(HostReport::default());
            }
            HostOp::ArmSystem {
                id,
                caller,
                seconds,
                unwitnessed,
                system,
            } => {
                self.check_changes()?;
                let order = change::Order {
                    id: *id,
                    caller,
                    seconds: *seconds,
                    unwitnessed: *unwitnessed,
                    what: change::What::System(system),
                };
                self.changes.arm(&self.leaf, &self.systemd, &order).await?;
                return Ok(HostReport::default());
            }
            // What was armed can be decided without a unit.
            HostOp::ConfirmChange { id, by } => {
                self.changes.confirm(&self.leaf, *id, by).await?;
                return Ok(HostReport::default());
            }
            _ => {}
        }
        self.check_host()?;
        match op {
            HostOp::StoreSecret { name, age } => self.store_secret(name, age).await,
            HostOp::RemoveSecret { name } => self.remove_secret(name),
            HostOp::ListSecrets {} => self.list_secrets().await,
            HostOp::ShowHostKey {} => self.show_host_key(),
            other => {
                let at_next_start = self.change_host(other).await?;
                Ok(HostReport {
                    at_next_start,
                    ..HostReport::default()
                })
            }
        }
    }

    /// Carries out an operation on the network or a container. Returns whether a running container sees credentials that it was given
    /// at its next start only.
    async fn change_host(&self, op: &HostOp) -> Result<bool> {
        match op {
            HostOp::CreateContainer {
                name,
                toplevel,
                network,
                options,
                adopt,
                secrets,
                binding,
                credentials,
            } => {
                let spec = RunSpec {
                    leaf: self.leaf.clone(),
                    name: name.clone(),
                    toplevel: toplevel.clone(),
                    network: *network,
                    options: (**options).clone(),
                    secrets: secrets.clone(),
                };
                self.create(&spec, *adopt, binding, credentials).await
            }
            HostOp::RenewCredentials { name, credentials } => {
                check_credentials(credentials)?;
                self.renew_credentials(name, credentials).await
            }
            other => self.change_more(other).await.map(|()| false),
        }
    }

    /// Carries out an operation that gives no credentials.
    async fn change_more(&self, op: &HostOp) -> Result<()> {
        match op {
            HostOp::PrepareNetwork {
                leaf_address,
                nats_port,
            } => {
                self.check_address(*leaf_address)?;
                if *nats_port == 0 {
                    return Err(Error::Refused("0 is not a valid port".into()));
                }
                // Programs that systemd starts use these settings from the next start on.
                self.keep_record()?;
                self.prepare_network(*leaf_address, *nats_port).await?;
                Box::pin(self.bring_up_to_date()).await;
                Ok(())
            }
            HostOp::ReleaseNetwork { leaf_address } => {
                self.check_address(*leaf_address)?;
                self.release_network(*leaf_address).await
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
            HostOp::StartJob { .. }
            | HostOp::StartProgram { .. }
            | HostOp::StopJob { .. }
            | HostOp::RemoveJob { .. } => Err(Error::Unsupported(
                "this helper runs no jobs: it has no user for them, or systemd is not PID 1".into(),
            )),
            HostOp::CreateContainer { .. }
            | HostOp::RenewCredentials { .. }
            | HostOp::StoreSecret { .. }
            | HostOp::RemoveSecret { .. }
            | HostOp::ListSecrets {}
            | HostOp::ArmChange { .. }
            | HostOp::ArmSystem { .. }
            | HostOp::ConfirmChange { .. }
            | HostOp::ShowHostKey {} => unreachable!("it is carried out elsewhere"),
        }
    }

    /// Returns the helper that created a container, from its record: for the programs below.
    ///
    /// # Errors
    /// [`ProgramError`] if the record is unreadable, or is not root's.
    pub fn of_record(file: &Path) -> std::result::Result<Self, ProgramError> {
        Self::recorded(file).map_err(ProgramError::about("can't read the helper's settings"))
    }

    /// Supervises a container until it ends: for the program `leaf-helper supervise`. Returns how the container ended,
    /// which is also written to its `status.json`.
    ///
    /// # Errors
    /// [`ProgramError`] when the container could not be started, which is also written to `status.json` unless another
    /// supervisor holds it.
    pub async fn supervise(&self, name: &ContainerName) -> std::result::Result<Exit, ProgramError> {
        nspawn::supervise::supervise(self, name)
            .await
            .map_err(ProgramError::about(format!("can't supervise container {name}")))
    }

    /// Runs a container in systemd-nspawn until it ends: for the program `leaf-helper run`, which a container's unit
    /// starts. Returns how the container ended, which is also written to its `status.json`.
    ///
    /// # Errors
    /// [`ProgramError`] when the container could not be started, which is also written to `status.json`.
    pub async fn run(&self, name: &ContainerName) -> std::result::Result<Exit, ProgramError> {
        self.launch(name)
            .await
            .map_err(ProgramError::about(format!("can't run container {name}")))
    }

    /// Switches a running container to another system in place: for the program `leaf-helper switch`, which reloads a
    /// container's unit.
    ///
    /// # Errors
    /// [`ProgramError`] when it must be restarted instead.
    pub async fn switch(&self, name: &ContainerName) -> std::result::Result<(), ProgramError> {
        self.switch_inside(name)
            .await
            .map_err(ProgramError::about(format!("can't switch container {name}")))
    }

    /// Starts the guard of the change that an earlier helper left open, if it does not run.
    pub(crate) async fn resume_change(&self) {
        if self.settings.runtime == Runtime::Systemd
            && let Err(error) = self.changes.resume(&self.systemd).await
        {
            let error = leaf_core::error::chain(&error);
            tracing::error!(error, "can't start the guard of the open change");
        }
    }

    /// Removes the question to the witness that an earlier helper was asking: nobody waits for its answer any more.
    pub(crate) fn forget_question(&self) {
        if let Err(error) = self.changes.forget_question() {
            let error = leaf_core::error::chain(&error);
            tracing::warn!(
                error,
                "can't remove the question to the witness that an earlier helper left"
            );
        }
    }

    /// Checks that this host can take a change back.
    fn check_changes(&self) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Unsupported("this process must run as root".into()));
        }
        if self.settings.runtime != Runtime::Systemd {
            return Err(Error::Unsupported(
                "a change that can cut the leaf off needs systemd as PID 1, which starts what takes it back"
                    .into(),
            ));
        }
        Ok(())
    }

    fn check_host(&self) -> Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::Unsupported("this process must run as root".into()));
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
                "{address} is not in this leaf's address pool {}",
                self.settings.pool
            )))
        }
    }
}

/// The longest wait of the helper, in seconds.
const MAX_WAIT_SECONDS: u32 = 3600;

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(seconds.min(MAX_WAIT_SECONDS).into())
}

/// A change of the network of all containers on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkChange {
    /// All containers are cut off, because another program is about to remove the rules.
    Close,
    /// The rules are set again, and the containers are connected.
    Open,
}

/// Closes or opens the network of the containers of all leaves whose state directories are in this one
/// ([`LEAVES`]): for the program `leaf-helper network`, around a change of nftables by another program.
///
/// # Errors
/// [`ProgramError`] about the first leaf whose network could not be changed; those of the others were.
pub async fn change_network(leaves: &Path, change: NetworkChange) -> std::result::Result<(), ProgramError> {
    let failed = ProgramError::about("can't change the network of containers");
    let all = async {
        let mut first = Ok(());
        for helper in Helper::all_recorded(leaves)? {
            let changed = match change {
                NetworkChange::Close => Box::pin(helper.close_network()).await,
                NetworkChange::Open => Box::pin(helper.open_network()).await,
            };
            if let Err(e) = &changed {
                let error = leaf_core::error::chain(e);
                tracing::error!(leaf = %helper.leaf, error, "can't change the network of a leaf's containers");
            }
            first = first.and(changed);
        }
        first
    };
    all.await.map_err(failed)
}

/// Activates the system of the open change of a state directory, and installs it once it is confirmed or activates the one before: for
/// the program `leaf-helper change switch`. Without an open change of the system it returns at once.
///
/// # Errors
/// [`ProgramError`] when the directory can't be used.
pub async fn switch_system(directory: &Path) -> std::result::Result<(), ProgramError> {
    change::switch(directory, change::Root::default())
        .await
        .map_err(ProgramError::about("can't switch the system"))
}

/// Watches over the open change of a state directory until it is decided, and takes it back when its time is over, or in another
/// boot: for the program `leaf-helper change guard`. Without an open change it returns at once.
///
/// # Errors
/// [`ProgramError`] when the way back can't be taken completely; the next call goes on with it.
pub async fn guard_change(directory: &Path) -> std::result::Result<(), ProgramError> {
    change::guard(directory)
        .await
        .map_err(ProgramError::about("can't take a change back"))
}

/// Writes the units of all leaves' containers into a directory: for the program `cim-leaf-generator`, a systemd
/// generator (systemd.generator(7)).
///
/// # Errors
/// [`ProgramError`] when a file could not be written.
pub fn generate_units(directory: &Path) -> std::result::Result<(), ProgramError> {
    systemd::generate::generate(directory).map_err(ProgramError::about("can't write the units of containers"))
}
