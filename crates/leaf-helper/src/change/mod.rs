//! Changes that can cut the leaf off (docs/decisions/0026): armed here, confirmed here, and taken back by the guard.
//!
//! | module | contents |
//! |---|---|
//! | `arm` | asks the witness, arms the way back, writes the change |
//! | `confirm` | confirms an armed change |
//! | `guard` | `leaf-helper change guard`: waits for the deadline, and goes back |
//! | `store` | the files |
//!
//! The files are the state: nothing of it is in memory, and each step leaves them so that a power cut after it is harmless. A
//! lock orders the helper's steps and the guard's; the rename of `armed.json` decides.

mod arm;
mod confirm;
mod guard;
mod store;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use leaf_core::id::ChangeId;
use leaf_host::contract::{CHANGE_DIRECTORY, GUARD_UNIT};
use leaf_host::systemd::{Systemd, SystemdError, UnitJob, UnitJobOutcome, UnitState};
use leaf_trust::ssh_signature::{SignerKey, SignerKeyError};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use crate::error::{Error, Result};

pub(crate) use arm::Order;
pub(crate) use guard::guard;

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

/// What a change needs of systemd: units that are installed with the leaf.
pub(crate) trait Units {
    /// Starts the guard anew, and waits until it has taken over. One that runs may be about to end, since no change was open.
    async fn start_guard(&self) -> Result<()>;

    /// Begins the start of the guard, if it does not run.
    async fn begin_guard(&self) -> std::result::Result<(), SystemdError>;

    /// Restarts a unit, and waits until it is ready.
    async fn restart_and_wait(&self, unit: &str, limit: Duration) -> Result<()>;

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

    async fn restart(&self, unit: &str, always: bool) -> std::result::Result<(), SystemdError> {
        // A TryRestart does nothing about a unit that is starting, which may have read the files before.
        let is_up = |unit: UnitState| ["active", "activating", "reloading"].contains(&unit.active.as_str());
        if always || self.loaded_unit(unit).await?.is_some_and(is_up) {
            self.begin_job(UnitJob::Restart, unit).await?;
        }
        Ok(())
    }
}
