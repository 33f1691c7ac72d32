//! Takes the steps of one container's reconciliation: observe, plan, carry out, observe again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use leaf_container::Containers;
use leaf_core::container::{Container, ObservedContainer, ObservedRun};
use leaf_core::error::chain;
use leaf_core::event::ContainerStep;
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind};
use leaf_core::id::{ContainerName, LeafName};
use leaf_core::plan::{PlanContext, plan, plan_renewal};
use leaf_core::reconcile::Interruption;
use leaf_core::reconcile::container::{Observation, StepFailure, StepsOutcome};
use leaf_core::renewal::{Given, Life};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::container_users::ContainerUsers;
use crate::helper::HostHelper;

/// Everything that running containers needs.
pub struct ContainerHost {
    /// Carries out host operations.
    pub helper: HostHelper,
    /// The closed network: [`HostOp::PrepareNetwork`].
    pub network: HostOp,
    /// Observes containers.
    pub view: Containers,
    /// The containers' NATS users.
    pub users: ContainerUsers,
    /// The URL of NATS for containers.
    pub nats_url: String,
    /// The time limit for a container to become ready, in seconds.
    pub ready_timeout_seconds: u32,
    /// The time after which a container that is stopping is killed, in seconds.
    pub stop_timeout_seconds: u32,
}

/// The time limit for the helper to release the network, so that a helper that stops first holds nothing up.
const RELEASES_WITHIN: Duration = Duration::from_secs(5);

impl ContainerHost {
    /// Removes the rules of the closed network and the leaf's address, if the leaf has no containers.
    pub async fn release_network(&self) {
        let HostOp::PrepareNetwork { leaf_address, .. } = self.network else {
            return;
        };
        let op = HostOp::ReleaseNetwork { leaf_address };
        match tokio::time::timeout(RELEASES_WITHIN, self.helper.carry_out(&op)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::info!(error = chain(&error), "the rules of the closed network stay"),
            Err(_) => tracing::info!("the helper does not answer: the rules of the closed network stay"),
        }
    }
}

/// The time limit for a started supervisor to appear in an observation.
const SHOWS_WITHIN: Duration = Duration::from_secs(5);

/// The containers with steps in flight. Clones share the set.
#[derive(Debug, Clone, Default)]
pub struct InFlight(watch::Sender<BTreeSet<ContainerName>>);

impl InFlight {
    /// Returns their names.
    #[must_use]
    pub fn names(&self) -> BTreeSet<ContainerName> {
        self.0.borrow().clone()
    }

    /// Returns whether a container has steps in flight.
    #[must_use]
    pub fn contains(&self, name: &ContainerName) -> bool {
        self.0.borrow().contains(name)
    }

    /// Returns a receiver of changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<BTreeSet<ContainerName>> {
        self.0.subscribe()
    }
}

/// The interruptions of steps in flight.
#[derive(Debug, Default)]
pub struct Interruptions {
    in_flight: InFlight,
    senders: BTreeMap<ContainerName, watch::Sender<Interruption>>,
    /// The interruption that new steps begin with.
    from_now_on: Interruption,
}

impl Interruptions {
    /// Returns the interruptions for the steps in this set.
    #[must_use]
    pub fn new(in_flight: InFlight) -> Self {
        Self {
            in_flight,
            ..Self::default()
        }
    }

    /// Adds a container's steps, and returns the receiver of their interruption.
    pub fn begin(&mut self, name: &ContainerName) -> watch::Receiver<Interruption> {
        let (sender, receiver) = watch::channel(self.from_now_on);
        self.senders.insert(name.clone(), sender);
        self.in_flight.0.send_modify(|names| {
            names.insert(name.clone());
        });
        receiver
    }

    /// Removes a container's steps, which have ended.
    pub fn end(&mut self, name: &ContainerName) {
        self.senders.remove(name);
        self.in_flight.0.send_modify(|names| {
            names.remove(name);
        });
    }

    /// Interrupts a container's steps, if they are in flight.
    pub fn tell(&self, name: &ContainerName, interruption: Interruption) {
        if let Some(sender) = self.senders.get(name) {
            sender.send_replace(interruption);
        }
    }

    /// Interrupts all steps in flight, and those that begin later.
    pub fn tell_all(&mut self, interruption: Interruption) {
        self.from_now_on = interruption;
        for sender in self.senders.values() {
            sender.send_replace(interruption);
        }
    }
}

/// The steps of one container's reconciliation.
pub struct Steps {
    /// The leaf.
    pub leaf: LeafName,
    /// The host of containers.
    pub host: Arc<ContainerHost>,
    /// The clock of this run.
    pub clock: Clock,
    /// The container, with its desired state.
    pub container: Container,
    /// Receives an interruption.
    pub interruption: watch::Receiver<Interruption>,
    /// What they are for.
    pub of: Of,
    /// The credentials that the container was given.
    pub given: Option<Given>,
}

/// What steps are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The container's desired state.
    Desired {
        /// Whether the credentials that it has must be renewed.
        renew: bool,
    },
    /// The renewal of its credentials, and nothing else.
    Renewal,
}

impl Steps {
    /// Takes the steps after a pause, and observes the container afterwards.
    pub async fn take(mut self, after: Duration) -> StepsOutcome {
        let mut outcome = StepsOutcome {
            observed: None,
            failure: None,
            interrupted: false,
            given: None,
        };
        let begin = tokio::select! {
            biased;
            // The desired state has changed during the pause.
            () = interrupted(&mut self.interruption, |told| told != Interruption::None), if !after.is_zero() => false,
            () = tokio::time::sleep(after) => *self.interruption.borrow() != Interruption::DaemonStops,
        };
        if !begin {
            outcome.interrupted = true;
            return outcome;
        }
        match self.take_all().await {
            Ok(Done::All) => {}
            Ok(Done::Interrupted) => outcome.interrupted = true,
            Err(failure) => outcome.failure = Some(failure),
        }
        outcome.given = self.given;
        match self.observe().await {
            Ok(observation) => outcome.observed = Some(observation),
            Err(error) => outcome.failure = outcome.failure.or(Some(failed(ContainerStep::Look, error))),
        }
        outcome
    }

    async fn take_all(&mut self) -> Result<Done, StepFailure> {
        let before = self.observe().await;
        let before = before
            .map_err(|error| failed(ContainerStep::Look, error))?
            .container;
        let (nats_credentials, life) = self.host.users.credentials(&self.container.name);
        let context = PlanContext {
            leaf: self.leaf.clone(),
            nats_url: self.host.nats_url.clone(),
            nats_credentials,
            renew: self.of != Of::Desired { renew: false },
            ready_timeout_seconds: self.host.ready_timeout_seconds,
            stop_timeout_seconds: self.host.stop_timeout_seconds,
        };
        let ops = match self.of {
            Of::Desired { .. } => plan(&self.container, before.as_ref(), &context),
            Of::Renewal => plan_renewal(&self.container.name, before.as_ref(), &context),
        };
        for op in ops {
            if self.interruption.borrow().cuts(&op) {
                return Ok(Done::Interrupted);
            }
            match self.carry_out(&op, life).await {
                Ok(Done::All) => {}
                // Those that it has may be valid still. The leaf tries it again by itself.
                Err(error) if matches!(op, HostOp::RenewCredentials { .. }) => {
                    tracing::warn!(error = chain(&error), "credentials are not renewed yet");
                }
                Ok(Done::Interrupted) => return Ok(Done::Interrupted),
                // A foreign container has this name, so the leaf's own was never created.
                Err(error)
                    if before.is_none()
                        && error.kind == HostOpErrorKind::Refused
                        && matches!(op, HostOp::DestroyContainer { .. }) =>
                {
                    tracing::info!(name = %self.container.name, error = chain(&error), "nothing to destroy");
                }
                Err(error) => return Err(failed(step_of(&op), error)),
            }
        }
        Ok(Done::All)
    }

    /// Carries out one operation. Stops waiting for it when it is interrupted; the operation then continues.
    async fn carry_out(&mut self, op: &HostOp, life: Life) -> Result<Done, HostOpError> {
        let name = &self.container.name;
        tracing::info!(%name, op = op.summary(), "step");
        let users = &self.host.users;
        let prepared = match op {
            HostOp::CreateContainer { .. } | HostOp::RenewCredentials { .. } => {
                users.check().await.map_err(|why| ("give credentials to", why))
            }
            // Revoked first, so that it is repeated if the daemon ends in between.
            HostOp::DestroyContainer { .. } => {
                let revoked = users.revoke(name).await;
                revoked.map_err(|why| ("revoke the credentials of", why))
            }
            _ => Ok(()),
        };
        prepared.map_err(|(what, reason)| HostOpError {
            op: format!("{what} container {name}"),
            kind: HostOpErrorKind::Failed,
            reason,
        })?;
        tokio::select! {
            biased;
            done = self.host.helper.carry_out(op) => {
                let report = done?;
                if matches!(op, HostOp::CreateContainer { .. } | HostOp::RenewCredentials { .. }) {
                    self.given = Some(Given { life, at_next_start: report.at_next_start });
                }
                Ok(Done::All)
            }
            () = interrupted(&mut self.interruption, |told| told.cuts(op)) => {
                tracing::info!(%name, op = op.summary(), "interrupted: not waiting for the host operation");
                self.wait_until_shown().await;
                Ok(Done::Interrupted)
            }
        }
    }

    /// Waits until the supervisor of a container that was just started appears in an observation: a stop must find it.
    async fn wait_until_shown(&self) {
        let deadline = Instant::now() + SHOWS_WITHIN;
        let is_stopped = |observed: &ObservedContainer| matches!(observed.run, ObservedRun::Stopped);
        while Instant::now() < deadline {
            let observed = self.observe().await.ok().and_then(|o| o.container);
            if !observed.as_ref().is_some_and(is_stopped) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn observe(&self) -> Result<Observation, HostOpError> {
        let name = &self.container.name;
        let began = self.clock.now();
        let (view, wanted) = (self.host.view.clone(), name.clone());
        let seen = tokio::task::spawn_blocking(move || view.observe_one(&wanted)).await;
        let reason = match seen {
            Ok(Ok(container)) => return Ok(Observation { began, container }),
            Ok(Err(error)) => chain(&error),
            Err(error) => error.to_string(),
        };
        Err(HostOpError {
            op: format!("observe container {name}"),
            kind: HostOpErrorKind::Failed,
            reason,
        })
    }
}

/// Whether steps have ended or were interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    All,
    Interrupted,
}

/// Waits for an interruption that `counts`; forever if the sender is gone.
async fn interrupted(told: &mut watch::Receiver<Interruption>, counts: impl Fn(Interruption) -> bool) {
    if told.wait_for(|told| counts(*told)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn failed(step: ContainerStep, error: HostOpError) -> StepFailure {
    tracing::warn!(%step, error = chain(&error), "a step failed");
    StepFailure {
        step,
        reason: error.reason,
        helper_gone: error.kind == HostOpErrorKind::Interrupted,
    }
}

fn step_of(op: &HostOp) -> ContainerStep {
    match op {
        HostOp::PrepareNetwork { .. } | HostOp::ReleaseNetwork { .. } | HostOp::CreateContainer { .. } => {
            ContainerStep::Create
        }
        HostOp::StartContainer { .. } => ContainerStep::Start,
        HostOp::UpdateContainer { .. } | HostOp::RenewCredentials { .. } | HostOp::FreezeContainer { .. } => {
            ContainerStep::Update
        }
        HostOp::StopContainer { .. } => ContainerStep::Stop,
        HostOp::DestroyContainer { .. } => ContainerStep::Destroy,
        HostOp::StartJob { .. }
        | HostOp::StartProgram { .. }
        | HostOp::StopJob { .. }
        | HostOp::RemoveJob { .. }
        | HostOp::StoreSecret { .. }
        | HostOp::RemoveSecret { .. }
        | HostOp::ListSecrets {}
        | HostOp::ShowHostKey {}
        | HostOp::ArmChange { .. }
        | HostOp::ArmSystem { .. }
        | HostOp::ConfirmChange { .. } => {
            unreachable!("a container's plan contains neither jobs nor secrets nor changes of the leaf")
        }
    }
}
