//! From what is wanted to what is so: the operations for a container, and what a look at it afterwards adds to the
//! history.

use std::collections::BTreeMap;

use crate::container::{Container, ContainerPhase, DesiredRun, ObservedContainer, ObservedRun};
use crate::event::{
    ContainerCreated, ContainerDestroyed, ContainerStarted, ContainerStopped, Fact, StopCause,
};
use crate::host_op::{ContainerBinding, HostOp, Secret};
use crate::id::LeafName;

/// What a plan needs to know beside the container and the look at it.
#[derive(Debug, Clone)]
pub struct PlanContext {
    /// The leaf.
    pub leaf: LeafName,
    /// Where the leaf's NATS server is, as the container reaches it.
    pub nats_url: String,
    /// The container's own NATS credentials, in the creds file format.
    pub nats_credentials: Secret,
    /// How long a start may take until the container says that it is ready, in seconds.
    pub ready_timeout_seconds: u32,
    /// How long a stop may take before it is ended by force, in seconds.
    pub stop_timeout_seconds: u32,
}

/// Returns the operations that make a container what it is wanted to be, in order; none if it is so.
///
/// `observed` is nothing where the host has no such container.
#[must_use]
pub fn plan(
    container: &Container,
    observed: Option<&ObservedContainer>,
    context: &PlanContext,
) -> Vec<HostOp> {
    let name = &container.name;
    let desired = &container.desired;
    let up = observed.is_some_and(|o| matches!(o.run, ObservedRun::Starting | ObservedRun::Running { .. }));
    let ready = observed.is_some_and(|o| matches!(o.run, ObservedRun::Running { .. }));
    let stop = || HostOp::StopContainer {
        name: name.clone(),
        grace_seconds: context.stop_timeout_seconds,
    };
    let mut ops = Vec::new();
    if desired.run == DesiredRun::Absent {
        if up {
            ops.push(stop());
        }
        // A create that did not come to its end shows nothing to a look, and leaves files and credentials all the same.
        if observed.is_some() || desired.toplevel.is_some() {
            ops.push(HostOp::DestroyContainer { name: name.clone() });
        }
        return ops;
    }
    let Some(toplevel) = &desired.toplevel else {
        return ops;
    };
    if observed.is_none_or(|o| o.toplevel.as_ref() != Some(toplevel)) {
        ops.push(HostOp::CreateContainer {
            name: name.clone(),
            toplevel: toplevel.clone(),
            network: desired.network,
            binding: ContainerBinding::new(&context.leaf, name, &context.nats_url),
            credentials: BTreeMap::from([("nats.creds".to_owned(), context.nats_credentials.clone())]),
        });
    }
    match desired.run {
        DesiredRun::Running if !ready => ops.push(HostOp::StartContainer {
            name: name.clone(),
            ready_timeout_seconds: context.ready_timeout_seconds,
        }),
        DesiredRun::Stopped if up => ops.push(stop()),
        _ => {}
    }
    ops
}

/// Returns the facts that a look at the host adds to what is known of a container: what the leaf's own steps
/// brought about, and what happened by itself. None if the look says what the state says.
#[must_use]
pub fn observe(container: &Container, observed: Option<&ObservedContainer>) -> Vec<Fact> {
    use ContainerPhase as Phase;
    let name = container.name.clone();
    let Some(observed) = observed else {
        return match container.phase {
            Phase::Destroying => vec![Fact::ContainerDestroyed(ContainerDestroyed { name })],
            // One that starts and is not there is still to be made: nothing has happened to it.
            Phase::Running | Phase::Stopping => {
                vec![Fact::ContainerStopped(ContainerStopped {
                    name,
                    cause: StopCause::HostRestarted,
                    exit: None,
                })]
            }
            _ => Vec::new(),
        };
    };
    let stopped = |cause, exit| {
        vec![Fact::ContainerStopped(ContainerStopped {
            name: name.clone(),
            cause,
            exit,
        })]
    };
    match (container.phase, &observed.run) {
        (Phase::Creating, ObservedRun::Stopped | ObservedRun::Exited(_))
            if observed.toplevel == container.desired.toplevel =>
        {
            vec![Fact::ContainerCreated(ContainerCreated { name })]
        }
        (Phase::Creating, ObservedRun::Running { ready_after_ms, .. }) => vec![
            Fact::ContainerCreated(ContainerCreated { name: name.clone() }),
            Fact::ContainerStarted(ContainerStarted {
                name,
                ready_after_ms: *ready_after_ms,
            }),
        ],
        (Phase::Starting | Phase::Stopped | Phase::Failed, ObservedRun::Running { ready_after_ms, .. })
            if container.desired.run == DesiredRun::Running =>
        {
            vec![Fact::ContainerStarted(ContainerStarted {
                name,
                ready_after_ms: *ready_after_ms,
            })]
        }
        (Phase::Stopping, ObservedRun::Stopped) => stopped(StopCause::Requested, None),
        (Phase::Stopping, ObservedRun::Exited(exit)) => stopped(StopCause::Requested, Some(*exit)),
        (Phase::Running, ObservedRun::Stopped) => stopped(StopCause::HostRestarted, None),
        (Phase::Running, ObservedRun::Exited(exit)) => stopped(StopCause::Exited, Some(*exit)),
        _ => Vec::new(),
    }
}
