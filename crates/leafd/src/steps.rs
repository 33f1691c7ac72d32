//! The steps for one container: look, plan, carry out, look again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use leaf_bus::embedded::Reloader;
use leaf_bus::identity::Identity;
use leaf_container::Containers;
use leaf_core::container::{Container, DesiredRun, ObservedContainer, ObservedRun};
use leaf_core::error::chain;
use leaf_core::event::ContainerStep;
use leaf_core::host_op::{HostOp, HostOpError, HostOpErrorKind};
use leaf_core::id::{ContainerName, LeafName};
use leaf_core::plan::{PlanContext, plan};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::helper::HostHelper;

/// What is needed to run containers.
pub struct ContainerHost {
    /// Takes the steps.
    pub helper: HostHelper,
    /// What the closed network is made of: [`HostOp::PrepareNetwork`].
    pub network: HostOp,
    /// Looks at the host.
    pub view: Containers,
    /// Makes the containers' NATS users.
    pub identity: Arc<Identity>,
    /// Tells the server whose credentials are revoked.
    pub users: Reloader,
    /// Where containers reach NATS.
    pub nats_url: String,
    /// How long a start may take, in seconds.
    pub ready_timeout_seconds: u32,
    /// How long a stop may take, in seconds.
    pub stop_timeout_seconds: u32,
}

/// Why a step that only waits need not be waited for any more. The container goes on by itself, and the next plan
/// begins with where it is then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Hurry {
    /// There is no hurry.
    #[default]
    None,
    /// Something else than to run is wanted of it: its start need not be waited for.
    NotToRun,
    /// The daemon ends: neither its start nor its stop need be waited for.
    DaemonEnds,
}

/// The containers for which steps are being taken. Copies are the same.
#[derive(Debug, Clone, Default)]
pub struct InSteps(watch::Sender<BTreeSet<ContainerName>>);

impl InSteps {
    /// Adds one, and returns whether it was not there.
    pub fn insert(&self, name: &ContainerName) -> bool {
        self.0.send_if_modified(|names| names.insert(name.clone()))
    }

    /// Takes one away.
    pub fn remove(&self, name: &ContainerName) {
        self.0.send_if_modified(|names| names.remove(name));
    }

    /// Which they are.
    #[must_use]
    pub fn names(&self) -> BTreeSet<ContainerName> {
        self.0.borrow().clone()
    }

    /// Whether steps are being taken for this one.
    #[must_use]
    pub fn has(&self, name: &ContainerName) -> bool {
        self.0.borrow().contains(name)
    }

    /// Whether none are being taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Tells of each change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<BTreeSet<ContainerName>> {
        self.0.subscribe()
    }
}

/// What came of the steps.
#[derive(Debug)]
pub struct Taken {
    /// When the last look began.
    pub looked_at: Instant,
    /// What it showed.
    pub observed: Option<ObservedContainer>,
    /// The step that did not work, and why.
    pub failure: Option<(ContainerStep, HostOpError)>,
    /// Whether a step was not waited for.
    pub cut_short: bool,
}

/// How often steps are planned anew when the helper went away in the middle, and the pause before.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);

/// How long a supervisor may take until it shows that it is there.
const SHOWS_WITHIN: Duration = Duration::from_secs(5);

impl Hurry {
    /// What a new wish means for steps that are being taken.
    #[must_use]
    pub fn of(wish: DesiredRun) -> Self {
        match wish {
            DesiredRun::Running => Self::None,
            DesiredRun::Stopped | DesiredRun::Absent => Self::NotToRun,
        }
    }

    fn cuts(self, op: &HostOp) -> bool {
        match op {
            HostOp::StartContainer { .. } | HostOp::UpdateContainer { .. } => self != Self::None,
            HostOp::StopContainer { .. } => self == Self::DaemonEnds,
            _ => false,
        }
    }
}

/// Takes the steps for a container, and looks at it afterwards. Where the helper went away in the middle of one, what is
/// left to do is planned anew from what the host shows then.
pub async fn take(
    leaf: &LeafName,
    host: &Arc<ContainerHost>,
    container: &Container,
    mut hurry: watch::Receiver<Hurry>,
) -> Taken {
    for left in (0..TRIES).rev() {
        let taken = take_once(leaf, host, container, &mut hurry).await;
        match &taken.failure {
            Some((step, error)) if error.kind == HostOpErrorKind::Interrupted && left > 0 => {
                tracing::warn!(name = %container.name, %step, reason = error.reason, "planned anew");
                tokio::time::sleep(PAUSE).await;
            }
            _ => return taken,
        }
    }
    unreachable!("the last try is returned, whatever came of it")
}

async fn take_once(
    leaf: &LeafName,
    host: &Arc<ContainerHost>,
    container: &Container,
    hurry: &mut watch::Receiver<Hurry>,
) -> Taken {
    let name = &container.name;
    let mut taken = Taken {
        looked_at: Instant::now(),
        observed: None,
        failure: None,
        cut_short: false,
    };
    let before = match look(host, name).await {
        Ok(observed) => observed,
        Err(error) => {
            taken.failure = Some((ContainerStep::Look, error));
            return taken;
        }
    };
    let context = PlanContext {
        leaf: leaf.clone(),
        nats_url: host.nats_url.clone(),
        nats_credentials: host.identity.container_credentials(name),
        ready_timeout_seconds: host.ready_timeout_seconds,
        stop_timeout_seconds: host.stop_timeout_seconds,
    };
    for op in plan(container, before.as_ref(), &context) {
        if hurry.borrow().cuts(&op) {
            taken.cut_short = true;
            break;
        }
        tracing::info!(%name, op = op.summary(), "step");
        // Before, so that it is done again where the daemon ends in between.
        if matches!(op, HostOp::DestroyContainer { .. })
            && let Err(error) = revoke(host, name).await
        {
            taken.failure = Some((ContainerStep::Destroy, error));
            break;
        }
        let cut = async {
            if hurry.wait_for(|hurry| hurry.cuts(&op)).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let outcome = tokio::select! {
            biased;
            outcome = host.helper.carry_out(&op) => outcome,
            () = cut => {
                tracing::info!(%name, op = op.summary(), "not waited for");
                taken.cut_short = true;
                wait_until_shown(host, name).await;
                break;
            }
        };
        match outcome {
            Ok(()) => {}
            // Somebody else has a container of this name here: then the leaf's own never came to be.
            Err(error)
                if before.is_none()
                    && error.kind == HostOpErrorKind::Refused
                    && matches!(op, HostOp::DestroyContainer { .. }) =>
            {
                tracing::info!(%name, error = &error as &dyn std::error::Error, "nothing to destroy");
            }
            Err(error) => {
                taken.failure = Some((step_of(&op), error));
                break;
            }
        }
    }
    taken.looked_at = Instant::now();
    match look(host, name).await {
        Ok(observed) => taken.observed = observed,
        Err(error) => taken.failure = taken.failure.or(Some((ContainerStep::Look, error))),
    }
    taken
}

/// Makes the credentials of a container worthless, whoever may have a copy.
async fn revoke(host: &Arc<ContainerHost>, name: &ContainerName) -> Result<(), HostOpError> {
    let failed = |error: &dyn std::error::Error| HostOpError {
        op: format!("revoke the credentials of container {name}"),
        kind: HostOpErrorKind::Failed,
        reason: chain(error),
    };
    host.identity.revoke_container(name).map_err(|e| failed(&e))?;
    host.users.reload().await.map_err(|e| failed(&e))
}

/// Waits until the supervisor of a container that was just started is there: a stop must find it.
async fn wait_until_shown(host: &Arc<ContainerHost>, name: &ContainerName) {
    let deadline = Instant::now() + SHOWS_WITHIN;
    while Instant::now() < deadline {
        match look(host, name).await {
            Ok(Some(ObservedContainer {
                run: ObservedRun::Stopped,
                ..
            })) => tokio::time::sleep(Duration::from_millis(10)).await,
            _ => return,
        }
    }
}

async fn look(
    host: &Arc<ContainerHost>,
    name: &ContainerName,
) -> Result<Option<ObservedContainer>, HostOpError> {
    let (view, look_for) = (host.view.clone(), name.clone());
    let seen = tokio::task::spawn_blocking(move || view.observe_one(&look_for)).await;
    let reason = match seen {
        Ok(Ok(observed)) => return Ok(observed),
        Ok(Err(error)) => chain(&error),
        Err(error) => error.to_string(),
    };
    Err(HostOpError {
        op: format!("look at container {name}"),
        kind: HostOpErrorKind::Failed,
        reason,
    })
}

fn step_of(op: &HostOp) -> ContainerStep {
    match op {
        HostOp::PrepareNetwork { .. } | HostOp::CreateContainer { .. } => ContainerStep::Create,
        HostOp::StartContainer { .. } => ContainerStep::Start,
        HostOp::UpdateContainer { .. } => ContainerStep::Update,
        HostOp::StopContainer { .. } => ContainerStep::Stop,
        HostOp::DestroyContainer { .. } => ContainerStep::Destroy,
        HostOp::StartJob { .. } | HostOp::StopJob { .. } | HostOp::RemoveJob { .. } => {
            unreachable!("a plan for a container has no jobs")
        }
    }
}
