//! Plans the host operations that move a container from its observed to its desired state, and derives facts from
//! observations.

use std::collections::BTreeMap;

use crate::container::{Container, ContainerPhase, DesiredRun, Exit, ObservedContainer, ObservedRun};
use crate::event::{
    ContainerCreated, ContainerDesired, ContainerDestroyed, ContainerFailed, ContainerOutOfMemory,
    ContainerStarted, ContainerStep, ContainerStopped, ContainerUpdated, Fact, StopCause,
};
use crate::host_op::{ContainerBinding, HostOp, RunSpec, Secret};
use crate::id::{Caller, ContainerName, LeafName, StorePath};
use crate::spec::Autostart;
use crate::state::State;

/// The name of the credential with a container's NATS credentials.
const NATS_CREDENTIALS: &str = "nats.creds";

/// The inputs of a plan apart from the container and its observation.
#[derive(Debug, Clone)]
pub struct PlanContext {
    /// The leaf.
    pub leaf: LeafName,
    /// The URL of the leaf's NATS server for containers.
    pub nats_url: String,
    /// New NATS credentials of the container, in the creds file format.
    pub nats_credentials: Secret,
    /// Whether the credentials that the container has must be renewed.
    pub renew: bool,
    /// The time limit for the container to become ready, in seconds.
    pub ready_timeout_seconds: u32,
    /// The time after which a container that is stopping is killed, in seconds.
    pub stop_timeout_seconds: u32,
}

/// Returns the host operations that move a container to its desired state, in order; none if it is in that state.
///
/// `observed` is `None` if the host has no such container.
#[must_use]
pub fn plan(
    container: &Container,
    observed: Option<&ObservedContainer>,
    context: &PlanContext,
) -> Vec<HostOp> {
    let name = &container.name;
    let desired = &container.desired;
    let up = observed.is_some_and(|o| {
        matches!(
            o.run,
            ObservedRun::Starting | ObservedRun::Restarting(_) | ObservedRun::Running { .. }
        )
    });
    let stop = || HostOp::StopContainer {
        name: name.clone(),
        grace_seconds: context.stop_timeout_seconds,
    };
    let set_frozen = |frozen| HostOp::FreezeContainer {
        name: name.clone(),
        frozen,
    };
    let frozen = observed.is_some_and(|o| o.frozen);
    let mut ops = Vec::new();
    if desired.run == DesiredRun::Absent {
        if up {
            // Frozen processes don't react to the request to end.
            ops.extend(frozen.then(|| set_frozen(false)));
            ops.push(stop());
        }
        // An interrupted create leaves files and credentials that an observation does not show.
        if observed.is_some() || desired.toplevel.is_some() {
            ops.push(HostOp::DestroyContainer { name: name.clone() });
        }
        return ops;
    }
    let Some(toplevel) = &desired.toplevel else {
        return ops;
    };
    let spec = run_spec(container, toplevel, &context.leaf);
    let is_made = observed.is_some_and(|o| o.digest.as_ref() == Some(&spec.digest()));
    if !is_made {
        ops.push(HostOp::CreateContainer {
            name: name.clone(),
            toplevel: spec.toplevel.clone(),
            network: spec.network,
            options: Box::new(spec.options.clone()),
            adopt: desired.adopted,
            secrets: spec.secrets.clone(),
            binding: ContainerBinding::new(&context.leaf, name, &context.nats_url),
            credentials: credentials(context),
        });
    }
    if is_made && context.renew && desired.run == DesiredRun::Running {
        ops.push(renew(name, context));
    }
    let met = matches!(observed.map(|o| &o.run), Some(ObservedRun::Running { start_digest, .. })
        if start_digest.as_ref() == Some(&spec.start_digest()));
    let runs_on = desired.run == DesiredRun::Running && met;
    if frozen && !(runs_on && desired.paused) {
        ops.push(set_frozen(false));
    }
    match (desired.run, observed.map(|o| &o.run)) {
        (DesiredRun::Running, _) if met => {}
        (DesiredRun::Running, Some(ObservedRun::Running { .. })) => ops.push(HostOp::UpdateContainer {
            name: name.clone(),
            ready_timeout_seconds: context.ready_timeout_seconds,
            grace_seconds: context.stop_timeout_seconds,
        }),
        (DesiredRun::Running, _) => ops.push(HostOp::StartContainer {
            name: name.clone(),
            ready_timeout_seconds: context.ready_timeout_seconds,
        }),
        (DesiredRun::Stopped, _) if up => ops.push(stop()),
        _ => {}
    }
    if desired.run == DesiredRun::Running && desired.paused && !(runs_on && frozen) {
        ops.push(set_frozen(true));
    }
    ops
}

/// Returns the host operations that renew the credentials of a container, and change nothing else; none if the host has no such
/// container.
#[must_use]
pub fn plan_renewal(
    name: &ContainerName,
    observed: Option<&ObservedContainer>,
    context: &PlanContext,
) -> Vec<HostOp> {
    observed.map(|_| renew(name, context)).into_iter().collect()
}

fn renew(name: &ContainerName, context: &PlanContext) -> HostOp {
    HostOp::RenewCredentials {
        name: name.clone(),
        credentials: credentials(context),
    }
}

fn credentials(context: &PlanContext) -> BTreeMap<String, Secret> {
    BTreeMap::from([(NATS_CREDENTIALS.to_owned(), context.nats_credentials.clone())])
}

/// Returns the run spec of a container with this system.
fn run_spec(container: &Container, toplevel: &StorePath, leaf: &LeafName) -> RunSpec {
    RunSpec {
        leaf: leaf.clone(),
        name: container.name.clone(),
        toplevel: toplevel.clone(),
        network: container.desired.network,
        options: container.desired.options.clone(),
        secrets: container.desired.secrets.clone(),
    }
}

/// Returns the facts that follow from an observation of a container: effects of the leaf's own steps, and changes from
/// other causes. None if the observation agrees with the state.
#[must_use]
pub fn observe(container: &Container, observed: Option<&ObservedContainer>, leaf: &LeafName) -> Vec<Fact> {
    use ContainerPhase as Phase;
    let name = &container.name;
    let Some(observed) = observed else {
        return match container.phase {
            Phase::Destroying => vec![Fact::from(ContainerDestroyed { name: name.clone() })],
            // A starting container that does not exist is yet to be created: nothing has happened to it.
            Phase::Running | Phase::Restarting | Phase::Stopping => {
                vec![stopped(container, StopCause::HostRestarted, None)]
            }
            _ => Vec::new(),
        };
    };
    let mut facts = Vec::new();
    if observed.oom_kills > container.oom_kills
        && matches!(
            container.phase,
            Phase::Running | Phase::Updating | Phase::Stopping
        )
    {
        facts.push(Fact::from(ContainerOutOfMemory {
            name: name.clone(),
            oom_kills: observed.oom_kills,
        }));
    }
    let by_itself = |exit: Option<Exit>| {
        let failed = exit != Some(Exit::Code { code: 0 });
        if failed && observed.oom_kills.max(container.oom_kills) > 0 {
            StopCause::OutOfMemory
        } else {
            StopCause::Exited
        }
    };
    let started = |ready_after_ms| {
        Fact::from(ContainerStarted {
            name: name.clone(),
            ready_after_ms,
        })
    };
    match (container.phase, &observed.run) {
        (Phase::Creating, ObservedRun::Stopped | ObservedRun::Exited(_))
            if is_made(container, observed, leaf) =>
        {
            facts.push(Fact::from(ContainerCreated { name: name.clone() }));
        }
        (Phase::Creating, ObservedRun::Running { ready_after_ms, .. })
            if is_met(container, observed, leaf) =>
        {
            facts.push(Fact::from(ContainerCreated { name: name.clone() }));
            facts.push(started(*ready_after_ms));
        }
        (
            Phase::Starting | Phase::Restarting | Phase::Stopped | Phase::Failed,
            ObservedRun::Running { ready_after_ms, .. },
        ) if container.desired.run == DesiredRun::Running => facts.push(started(*ready_after_ms)),
        (Phase::Updating, _) if is_met(container, observed, leaf) => {
            let (running, ready_after_ms, last_update) = match &observed.run {
                // It was started in its present desired state.
                ObservedRun::Running {
                    started_at,
                    ready_after_ms,
                    last_update,
                    ..
                } => (
                    true,
                    (*started_at > container.changed_at).then_some(*ready_after_ms),
                    last_update
                        .as_deref()
                        .cloned()
                        .filter(|update| update.at > container.changed_at),
                ),
                _ => (false, None, None),
            };
            facts.push(Fact::from(ContainerUpdated {
                name: name.clone(),
                generation: container.desired.generation,
                running,
                ready_after_ms,
                last_update,
            }));
        }
        (Phase::Stopping, ObservedRun::Stopped) => facts.push(stopped(container, StopCause::Requested, None)),
        (Phase::Stopping, ObservedRun::Exited(exit)) => {
            facts.push(stopped(container, StopCause::Requested, Some(*exit)));
        }
        (Phase::Running | Phase::Restarting, ObservedRun::Stopped) => {
            facts.push(stopped(container, StopCause::HostRestarted, None));
        }
        (Phase::Running, ObservedRun::Exited(exit) | ObservedRun::Restarting(exit)) => {
            facts.push(stopped(container, by_itself(Some(*exit)), Some(*exit)));
        }
        // It ended and was started again between two observations.
        (
            Phase::Running,
            ObservedRun::Running {
                started_at,
                ready_after_ms,
                ..
            },
        ) if container.ready_at.is_some_and(|ready| *started_at > ready) => {
            facts.push(stopped(container, by_itself(None), None));
            facts.push(started(*ready_after_ms));
        }
        // Its supervisor has given up restarting it.
        (Phase::Restarting, ObservedRun::Exited(exit)) => {
            facts.push(Fact::from(ContainerFailed {
                name: name.clone(),
                step: ContainerStep::Start,
                reason: format!("it did not become ready after a restart: {exit}"),
            }));
        }
        _ => {}
    }
    facts
}

/// Returns the facts by which the leaf, after a boot of its host, tries the containers again that should run and had
/// ended before, by themselves or as the host was shut down, or failed. Containers that ran before the boot are handled by
/// observations.
#[must_use]
pub fn after_boot(state: &State) -> Vec<Fact> {
    use ContainerPhase as Phase;
    let ended = |c: &&Container| {
        c.desired.run == DesiredRun::Running
            && c.desired.toplevel.is_some()
            && matches!(c.phase, Phase::Stopped | Phase::Failed)
    };
    state.containers.values().filter(ended).map(try_again).collect()
}

/// Returns whether systemd may have begun to start a container as the host booted, before the leaf ran.
#[must_use]
pub fn may_have_started_early(container: &Container) -> bool {
    use ContainerPhase as Phase;
    let desired = &container.desired;
    desired.run == DesiredRun::Running
        && desired.toplevel.is_some()
        && desired.options.autostart == Autostart::WithHost
        && !matches!(container.phase, Phase::Building | Phase::Creating)
}

/// Returns the fact by which the leaf tries a container again that ran before a boot of its host, given the first
/// observation since: one that systemd started at boot, before the leaf ran, and that failed is tried once more. It may
/// have failed because something that it needs was not available so early.
#[must_use]
pub fn after_early_start(container: &Container, observed: &ObservedContainer) -> Option<Fact> {
    let failed = matches!(observed.run, ObservedRun::Exited(exit) if exit != Exit::Code { code: 0 });
    let ran = matches!(
        container.phase,
        ContainerPhase::Running | ContainerPhase::Restarting
    );
    (failed && ran && container.desired.run == DesiredRun::Running).then(|| try_again(container))
}

/// Returns the fact by which the leaf itself tries to bring a container to its desired state once more.
#[must_use]
pub fn try_again(container: &Container) -> Fact {
    Fact::from(ContainerDesired {
        name: container.name.clone(),
        desired: container.desired.clone(),
        caller: Caller::daemon(),
    })
}

fn stopped(container: &Container, cause: StopCause, exit: Option<Exit>) -> Fact {
    Fact::from(ContainerStopped {
        name: container.name.clone(),
        cause,
        exit,
    })
}

/// Returns whether a container is set up on the host's disk as desired.
fn is_made(container: &Container, observed: &ObservedContainer, leaf: &LeafName) -> bool {
    let Some(toplevel) = &container.desired.toplevel else {
        return false;
    };
    observed.digest.as_ref() == Some(&run_spec(container, toplevel, leaf).digest())
}

/// Returns whether a running container is in its desired state, on the disk and at run time.
fn is_met(container: &Container, observed: &ObservedContainer, leaf: &LeafName) -> bool {
    let Some(toplevel) = &container.desired.toplevel else {
        return false;
    };
    let spec = run_spec(container, toplevel, leaf);
    let made = observed.digest.as_ref() == Some(&spec.digest());
    made && match (&observed.run, container.desired.run) {
        (ObservedRun::Running { start_digest, .. }, DesiredRun::Running) => {
            start_digest.as_ref() == Some(&spec.start_digest()) && observed.frozen == container.desired.paused
        }
        (ObservedRun::Stopped | ObservedRun::Exited(_), DesiredRun::Stopped) => true,
        _ => false,
    }
}
