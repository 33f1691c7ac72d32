//! Changes that can cut the leaf off (docs/decisions/0026): armed here, confirmed here, and taken back by the guard.
//!
//! | module | contents |
//! |---|---|
//! | `arm` | asks the witness, arms the way back, writes the change |
//! | `confirm` | confirms an armed change |
//! | `guard` | `leaf-helper change guard`: waits for the deadline, and goes back |
//! | `system` | another NixOS system: its checks, and `leaf-helper change switch` |
//! | `store` | the files |
//!
//! The files are the state: nothing of it is in memory, and each step leaves them so that a power cut after it is harmless. A
//! lock orders the helper's steps and the guard's; the rename of `armed.json` decides.

mod arm;
mod confirm;
mod guard;
mod store;
mod system;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::id::ChangeId;
use leaf_host::contract::{CHANGE_DIRECTORY, GUARD_UNIT, SWITCH_UNIT};
use leaf_host::systemd::{
    OwnedVariant, Systemd, SystemdError, UnitJob, UnitJobOutcome, UnitState, transient_property,
};
use leaf_trust::ssh_signature::{SignerKey, SignerKeyError};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use crate::error::{Error, Result};

pub(crate) use arm::{Order, What};
pub(crate) use guard::guard;
pub use system::Systems;
pub(crate) use system::{Root, switch};

/// The time limit for the guard to start.
const GUARDS_WITHIN: Duration = Duration::from_secs(10);
/// How long the witness may take to answer before a change is armed.
const WITNESS_WITHIN: Duration = Duration::from_secs(20);

/// The settings of changes, and the question to the witness that is open.
#[derive(Debug, Clone)]
pub struct Changes {
    /// The state directory.
    directory: PathBuf,
    /// The group that may read it, if it is not root's.
    observers: Option<u32>,
    /// The user that alone may read a hub's credentials, if it is not root.
    client: Option<u32>,
    /// The public keys of the witnesses, as lines of `.pub` files.
    witnesses: Vec<String>,
    /// How long the witness may take to answer.
    patience: Duration,
    /// What they say of switches of the system.
    systems: Systems,
    /// The last change about which the witness answered.
    answered: watch::Sender<Option<ChangeId>>,
}

impl Changes {
    /// Returns the settings with a state directory, and the witnesses' public keys as lines of `.pub` files.
    ///
    /// # Errors
    /// [`SignerKeyError`] about the first key that can't be used.
    pub fn new(
        directory: impl Into<PathBuf>,
        observers: Option<u32>,
        witnesses: &[String],
    ) -> std::result::Result<Self, SignerKeyError> {
        let keys = witnesses.iter().map(|line| {
            line.parse::<SignerKey>()?;
            Ok(line.trim().to_owned())
        });
        Ok(Self {
            directory: directory.into(),
            observers,
            client: None,
            witnesses: keys.collect::<std::result::Result<_, _>>()?,
            patience: WITNESS_WITHIN,
            systems: Systems::default(),
            answered: watch::Sender::default(),
        })
    }

    /// Returns the settings with the id of the user that leafd runs as, who alone may read a hub's credentials.
    #[must_use]
    pub fn with_client(self, user: u32) -> Self {
        Self {
            client: Some(user),
            ..self
        }
    }

    /// Returns the settings with another time limit for the witness's answer.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}

impl Default for Changes {
    /// Returns the settings of a leaf without a witness.
    fn default() -> Self {
        Self::new(CHANGE_DIRECTORY, None, &[]).expect("there is no key that could be wrong")
    }
}

/// The boot of the kernel, and the time in it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Moment {
    /// The id of the boot.
    boot_id: String,
    /// The milliseconds since then, with those in which the host was suspended.
    boot_ms: u64,
}

impl Moment {
    /// Returns this moment. The wall clock has no part in it.
    fn now() -> Result<Self> {
        let file = "/proc/sys/kernel/random/boot_id";
        let boot_id = std::fs::read_to_string(file).map_err(Error::io(format!("read {file}")))?;
        let time = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
        Ok(Self {
            boot_id: boot_id.trim().to_owned(),
            boot_ms: seconds * 1000 + nanoseconds / 1_000_000,
        })
    }
}

/// The state of a unit, for the health of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UnitHealth {
    /// Its `ActiveState`.
    active: String,
    /// How often systemd started it again since somebody started it.
    restarts: u64,
}

/// What a change needs of systemd: units that are installed with the leaf.
pub(crate) trait Units {
    /// Starts the guard anew, and waits until it has taken over. One that runs may be about to end, since no change was open.
    async fn start_guard(&self) -> Result<()>;

    /// Begins the start of the guard, if it does not run.
    async fn begin_guard(&self) -> std::result::Result<(), SystemdError>;

    /// Restarts a unit, and waits until it is ready.
    async fn restart_and_wait(&self, unit: &str, limit: Duration) -> Result<()>;

    /// Removes the jobs of systemd that wait, which hold others back.
    async fn cancel_jobs(&self) -> std::result::Result<(), SystemdError>;

    /// Begins a reboot of the host; `now`: without systemd.
    async fn reboot(&self, now: bool) -> Result<()>;

    /// Begins the start of the process that switches the system, if it does not run.
    async fn begin_switch(&self, directory: &Path) -> std::result::Result<(), SystemdError>;

    /// Returns the units that have failed, sorted.
    async fn failed_units(&self) -> std::result::Result<Vec<String>, SystemdError>;

    /// Returns the state of a unit.
    async fn health(&self, unit: &str) -> std::result::Result<UnitHealth, SystemdError>;

    /// Begins the restart of a unit that is active or starting; `always`: also of another one.
    async fn restart(&self, unit: &str, always: bool) -> std::result::Result<(), SystemdError>;
}

impl Units for Systemd {
    async fn start_guard(&self) -> Result<()> {
        let failed = |what: String| {
            Error::Failed(format!(
                "{GUARD_UNIT}, which takes the way back, {what}; see: journalctl --unit {GUARD_UNIT}"
            ))
        };
        match self.run_job(UnitJob::Restart, GUARD_UNIT, GUARDS_WITHIN).await? {
            UnitJobOutcome::Done => Ok(()),
            UnitJobOutcome::Failed(result) => Err(failed(format!("did not start ({result})"))),
            UnitJobOutcome::TimedOut => Err(failed(format!(
                "did not start within {} s",
                GUARDS_WITHIN.as_secs()
            ))),
        }
    }

    async fn begin_guard(&self) -> std::result::Result<(), SystemdError> {
        self.begin_job(UnitJob::Start, GUARD_UNIT).await
    }

    async fn restart_and_wait(&self, unit: &str, limit: Duration) -> Result<()> {
        match self.run_job(UnitJob::Restart, unit, limit).await? {
            UnitJobOutcome::Done => Ok(()),
            UnitJobOutcome::Failed(result) => Err(Error::Failed(format!("{unit} did not start ({result})"))),
            UnitJobOutcome::TimedOut => Err(Error::Failed(format!("{unit} was not ready in time"))),
        }
    }

    async fn begin_switch(&self, directory: &Path) -> std::result::Result<(), SystemdError> {
        let is_up = async || {
            let unit = self.loaded_unit(SWITCH_UNIT).await?;
            Ok::<_, SystemdError>(unit.is_some_and(|unit| unit.is_up()))
        };
        if is_up().await? {
            return Ok(());
        }
        self.reset_failed(SWITCH_UNIT).await?;
        match self
            .begin_transient(SWITCH_UNIT, &switch_properties(directory))
            .await
        {
            // Another process has begun it meanwhile.
            Err(SystemdError::Refused { .. }) if is_up().await? => Ok(()),
            begun => begun,
        }
    }

    async fn cancel_jobs(&self) -> std::result::Result<(), SystemdError> {
        Self::cancel_jobs(self).await
    }

    async fn reboot(&self, now: bool) -> Result<()> {
        if now {
            rustix::fs::sync();
            return rustix::system::reboot(rustix::system::RebootCommand::Restart)
                .map_err(Error::io("reboot"));
        }
        Ok(self.begin_job(UnitJob::Start, "reboot.target").await?)
    }

    async fn failed_units(&self) -> std::result::Result<Vec<String>, SystemdError> {
        Self::failed_units(self).await
    }

    async fn health(&self, unit: &str) -> std::result::Result<UnitHealth, SystemdError> {
        let properties = self.unit_properties(unit).await?;
        Ok(UnitHealth {
            active: properties.text("ActiveState").to_owned(),
            restarts: properties.unsigned("NRestarts"),
        })
    }

    async fn restart(&self, unit: &str, always: bool) -> std::result::Result<(), SystemdError> {
        // A TryRestart does nothing about a unit that is starting, which may have read the files before.
        let is_up = |unit: UnitState| ["active", "activating", "reloading"].contains(&unit.active.as_str());
        if always || self.loaded_unit(unit).await?.is_some_and(is_up) {
            self.begin_job(UnitJob::Restart, unit).await?;
        }
        Ok(())
    }
}

/// Returns the properties of the unit that switches the system (systemd.service(5); types in org.freedesktop.systemd1(5)). It is root
/// without a sandbox, since it activates a system; it is transient, since a switch neither stops nor replaces units without a file in
/// `/etc/systemd/system`; and it runs this very program, which the new system need not have.
fn switch_properties(directory: &Path) -> Vec<(String, OwnedVariant)> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    // Of a program that was replaced on the disk, `current_exe` has a name that does not exist.
    let program = std::env::current_exe().unwrap_or_else(|_| "/run/current-system/sw/bin/leaf-helper".into());
    let program = text(&program);
    let command = vec![
        program.clone(),
        "change".to_owned(),
        "switch".to_owned(),
        "--directory".to_owned(),
        text(directory),
    ];
    vec![
        transient_property("Description", "The switch of the leaf's system".to_owned()),
        transient_property("Type", "exec".to_owned()),
        transient_property("ExecStart", vec![(program, command, false)]),
        // What a switch started is killed with this process before the next one begins.
        transient_property("KillMode", "control-group".to_owned()),
        transient_property("TimeoutStopUSec", 10_000_000_u64),
        transient_property("OOMPolicy", "continue".to_owned()),
        transient_property("Restart", "on-failure".to_owned()),
        transient_property("RestartUSec", 1_000_000_u64),
        transient_property("StartLimitIntervalUSec", 0_u64),
        transient_property("CollectMode", "inactive-or-failed".to_owned()),
        transient_property("OOMScoreAdjust", -900_i32),
        transient_property("LimitCORE", 0_u64),
    ]
}
