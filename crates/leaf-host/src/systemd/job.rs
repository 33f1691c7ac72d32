//! Jobs of units: requests and their outcomes.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use zbus::{Connection, Message, OwnedObjectPath, OwnedVariant};

use super::unit::manage;
use super::{Systemd, SystemdError, is_not_found};

/// The period in which a unit is queried while its job is awaited: the signal of the job's end may be lost with D-Bus.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long to wait for a signal that may be in transit.
const LATE_SIGNAL: Duration = Duration::from_millis(200);

/// A job of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitJob {
    /// Start the unit.
    Start,
    /// Stop the unit.
    Stop,
    /// Reload the unit.
    Reload,
    /// Stop the unit if it is active, and start it.
    Restart,
    /// Restart the unit if it is active.
    TryRestart,
    /// Reload the unit if it is active; restart it where it can't reload.
    TryReload,
}

/// The outcome of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnitJobOutcome {
    /// It succeeded.
    Done,
    /// It did not succeed, with systemd's result: `failed`, `canceled`, `timeout`, `dependency`, ….
    Failed(String),
    /// It had not ended at the time limit.
    TimedOut,
}

/// A signal about jobs.
#[derive(Debug, Clone)]
pub(super) enum JobSignal {
    /// A job has ended (org.freedesktop.systemd1(5), `JobRemoved`).
    Ended {
        /// The sender, since any client of the bus can send such a signal.
        by: Option<String>,
        job: OwnedObjectPath,
        outcome: UnitJobOutcome,
    },
    /// The connection was lost, with its signals.
    Lost,
}

impl JobSignal {
    pub(super) fn of(message: &Message) -> Option<Self> {
        let body = message.body();
        let (_, job, _, result) = body.deserialize::<(u32, OwnedObjectPath, &str, &str)>().ok()?;
        Some(Self::Ended {
            by: sender(message),
            job,
            outcome: match result {
                "done" => UnitJobOutcome::Done,
                other => UnitJobOutcome::Failed(other.to_owned()),
            },
        })
    }
}

fn sender(message: &Message) -> Option<String> {
    message.header().sender().map(ToString::to_string)
}

impl UnitJob {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Reload => "reload",
            Self::Restart | Self::TryRestart => "restart",
            Self::TryReload => "reload or restart",
        }
    }

    fn method(self) -> &'static str {
        match self {
            Self::Start => "StartUnit",
            Self::Stop => "StopUnit",
            Self::Reload => "ReloadUnit",
            Self::Restart => "RestartUnit",
            Self::TryRestart => "TryRestartUnit",
            Self::TryReload => "ReloadOrTryRestartUnit",
        }
    }
}

impl Systemd {
    /// Runs a job on a unit, and returns its outcome at its end or after `limit`. Stopping a unit that is not loaded
    /// succeeds.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn run_job(
        &self,
        job: UnitJob,
        unit: &str,
        limit: Duration,
    ) -> Result<UnitJobOutcome, SystemdError> {
        let method = job.method();
        let ask = |connection: Connection| async move {
            match manage(&connection, method, &(unit, "replace")).await {
                Err(e) if job == UnitJob::Stop && is_not_found(&e) => Ok(None),
                reply => reply.map(Some),
            }
        };
        self.follow_job(job, unit, limit, ask).await
    }

    /// Begins a job on a unit, and does not wait for its end. A unit that does not exist is an error.
    ///
    /// # Errors
    /// [`SystemdError`].
    pub async fn begin_job(&self, job: UnitJob, unit: &str) -> Result<(), SystemdError> {
        self.call(&format!("{} {unit}", job.verb()), |connection| async move {
            manage(&connection, job.method(), &(unit, "replace"))
                .await
                .map(drop)
        })
        .await
    }

    /// Starts a transient unit with these properties, and returns the outcome.
    ///
    /// # Errors
    /// [`SystemdError`], also if a unit of this name exists.
    pub async fn start_transient(
        &self,
        unit: &str,
        properties: &[(String, OwnedVariant)],
        limit: Duration,
    ) -> Result<UnitJobOutcome, SystemdError> {
        let auxiliary: [(String, Vec<(String, OwnedVariant)>); 0] = [];
        let auxiliary = &auxiliary;
        let ask = |connection: Connection| async move {
            let arguments = (unit, "fail", properties, &auxiliary[..]);
            manage(&connection, "StartTransientUnit", &arguments)
                .await
                .map(Some)
        };
        self.follow_job(UnitJob::Start, unit, limit, ask).await
    }

    /// Begins the start of a transient unit with these properties, and does not wait for its end.
    ///
    /// # Errors
    /// [`SystemdError`], also if a unit of this name exists.
    pub async fn begin_transient(
        &self,
        unit: &str,
        properties: &[(String, OwnedVariant)],
    ) -> Result<(), SystemdError> {
        let auxiliary: [(String, Vec<(String, OwnedVariant)>); 0] = [];
        let auxiliary = &auxiliary;
        self.call(&format!("start {unit}"), |connection| async move {
            let arguments = (unit, "fail", properties, &auxiliary[..]);
            manage(&connection, "StartTransientUnit", &arguments)
                .await
                .map(drop)
        })
        .await
    }

    /// Makes the call that begins a job, and follows the job to its end. systemd sends the signal of its end to the
    /// caller even without `Subscribe`, which would cause signals for each change of each unit of the host.
    async fn follow_job<F>(
        &self,
        asked: UnitJob,
        unit: &str,
        limit: Duration,
        ask: impl Fn(Connection) -> F,
    ) -> Result<UnitJobOutcome, SystemdError>
    where
        F: Future<Output = zbus::Result<Option<Message>>>,
    {
        let deadline = Instant::now() + limit;
        let ask = &ask;
        let begun = self
            .call(&format!("{} {unit}", asked.verb()), |connection| async move {
                self.listen_to_jobs().await?;
                // Subscribed before the call, or the end of a short job would be missed.
                let signals = self.shared.jobs.subscribe();
                let Some(reply) = ask(connection).await? else {
                    return Ok(None);
                };
                let job: OwnedObjectPath = reply.body().deserialize()?;
                Ok(Some((job, sender(&reply), signals)))
            })
            .await?;
        let Some((job, systemd, mut signals)) = begun else {
            return Ok(UnitJobOutcome::Done);
        };
        let mut ended = async || loop {
            match signals.recv().await {
                Ok(JobSignal::Ended {
                    by,
                    job: ended,
                    outcome,
                }) if ended == job && by == systemd => {
                    return Some(outcome);
                }
                Ok(JobSignal::Ended { .. }) | Err(RecvError::Lagged(_)) => {}
                Ok(JobSignal::Lost) | Err(RecvError::Closed) => return None,
            }
        };
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.reset();
        loop {
            tokio::select! {
                outcome = ended() => match outcome {
                    Some(outcome) => return Ok(outcome),
                    None => return self.outcome_by_unit(asked, unit, deadline).await,
                },
                // The signal may be lost with D-Bus, so the unit itself is queried.
                _ = looks.tick() => {
                    if self.loaded_unit(unit).await?.is_none_or(|unit| unit.job == 0) {
                        return match tokio::time::timeout(LATE_SIGNAL, ended()).await {
                            Ok(Some(outcome)) => Ok(outcome),
                            _ => self.outcome_by_unit(asked, unit, deadline).await,
                        };
                    }
                }
                () = tokio::time::sleep_until(deadline) => return Ok(UnitJobOutcome::TimedOut),
            }
        }
    }

    /// Waits until a unit has no job any more, and returns the outcome as far as the unit's state shows it.
    async fn outcome_by_unit(
        &self,
        asked: UnitJob,
        unit: &str,
        deadline: Instant,
    ) -> Result<UnitJobOutcome, SystemdError> {
        loop {
            let state = self.loaded_unit(unit).await?;
            if state.as_ref().is_none_or(|unit| unit.job == 0) {
                let active = state.as_ref().is_some_and(|unit| unit.active == "active");
                let down = state.as_ref().is_none_or(|unit| !unit.is_up());
                return Ok(match asked {
                    UnitJob::Start | UnitJob::Reload | UnitJob::TryReload | UnitJob::Restart if active => {
                        UnitJobOutcome::Done
                    }
                    UnitJob::Stop if down => UnitJobOutcome::Done,
                    _ => UnitJobOutcome::Failed("failed".to_owned()),
                });
            }
            if Instant::now() >= deadline {
                return Ok(UnitJobOutcome::TimedOut);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
