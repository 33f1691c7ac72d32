//! Containers in the state: the entries `container.<token>`.

use jiff::Timestamp;

use super::{Entry, Kind, State, cause_of, same_key};
use crate::aggregate::Aggregate;
use crate::container::{Container, ContainerPhase, Desired, DesiredRun, REMEMBERED_REVISIONS, Revision};
use crate::event::Event;
use crate::event::container::{ContainerDesired, ContainerFact, ContainerStep, StopCause};
use crate::id::{Caller, ContainerName, decode_token};
use crate::spec::ContainerSource;

pub(super) const KIND: Kind = Kind {
    name: "container",
    keys: |state| {
        state
            .containers
            .keys()
            .map(|name| Aggregate::Container(name).key())
            .collect()
    },
    find: |state, token| {
        let name = ContainerName::new(decode_token(token)?).ok()?;
        state.containers.get(&name).map(Entry::Container)
    },
    put: |state, key, value| {
        let container: Container = serde_json::from_value(value)?;
        same_key(key, &Aggregate::Container(&container.name).key())?;
        state.containers.insert(container.name.clone(), container);
        Ok(())
    },
    remove: |state, token| {
        let name = decode_token(token).and_then(|name| ContainerName::new(name).ok());
        name.and_then(|name| state.containers.remove(&name));
    },
    renewed: false,
};

pub(super) fn apply(state: &mut State, fact: &ContainerFact, event: &Event) -> Vec<String> {
    let now = event.time;
    match fact {
        ContainerFact::Desired(f) => {
            let container = with_desired_state(state.containers.remove(&f.name), f, event);
            state.containers.insert(f.name.clone(), container);
            vec![Aggregate::Container(&f.name).key()]
        }
        ContainerFact::Built(f) => change(state, &f.name, now, |c| {
            c.desired.build_job = None;
            if c.desired.toplevel.as_ref() == Some(&f.toplevel) {
                return;
            }
            let before = c.desired.toplevel.replace(f.toplevel.clone());
            if let Some(revision) = c.revisions.last_mut() {
                revision.toplevel = Some(f.toplevel.clone());
            }
            if c.phase == ContainerPhase::Building {
                c.phase = ContainerPhase::Creating;
            } else if c.desired.run != DesiredRun::Absent {
                c.phase = ContainerPhase::Updating;
                c.desired.fallback = before.filter(|_| c.ready_at.is_some());
            }
        }),
        ContainerFact::Created(f) => change(state, &f.name, now, |c| {
            if c.phase == ContainerPhase::Creating {
                c.phase = match c.desired.run {
                    DesiredRun::Running => ContainerPhase::Starting,
                    DesiredRun::Stopped | DesiredRun::Absent => ContainerPhase::Stopped,
                };
            }
        }),
        ContainerFact::Started(f) => change(state, &f.name, now, |c| {
            c.phase = phase_of_start(c);
            c.ready_at = Some(now);
            c.oom_kills = 0;
            c.error = None;
            c.desired.fallback = None;
        }),
        ContainerFact::Stopped(f) => change(state, &f.name, now, |c| {
            c.ready_at = None;
            c.error = match (f.cause, f.exit) {
                (StopCause::Exited, Some(exit)) => Some(format!("it ended by itself: {exit}")),
                (StopCause::Exited, None) => Some("it ended by itself".to_owned()),
                (StopCause::OutOfMemory, _) => {
                    Some("it ended after processes were killed for lack of memory".to_owned())
                }
                (StopCause::Requested | StopCause::HostRestarted, _) => None,
            };
            let by_itself = matches!(f.cause, StopCause::Exited | StopCause::OutOfMemory);
            c.phase = match (c.desired.run, f.cause) {
                (DesiredRun::Absent, _) => ContainerPhase::Destroying,
                (DesiredRun::Running, StopCause::HostRestarted) => ContainerPhase::Starting,
                (DesiredRun::Running, _) if by_itself && c.desired.options.restart.when.covers(f.exit) => {
                    ContainerPhase::Restarting
                }
                _ => ContainerPhase::Stopped,
            };
        }),
        ContainerFact::Updated(f) => change(state, &f.name, now, |c| {
            if c.desired.generation != f.generation {
                return;
            }
            if f.running {
                c.phase = ContainerPhase::Running;
                if f.ready_after_ms.is_some() || c.ready_at.is_none() {
                    c.ready_at = Some(now);
                    c.oom_kills = 0;
                }
            } else {
                c.phase = ContainerPhase::Stopped;
                c.ready_at = None;
            }
            c.last_update.clone_from(&f.last_update);
            c.error = None;
            c.desired.fallback = None;
        }),
        ContainerFact::Reverted(f) => change(state, &f.name, now, |c| {
            c.desired.generation += 1;
            c.desired.toplevel = Some(f.toplevel.clone());
            c.desired.source = ContainerSource::Toplevel {
                path: f.toplevel.clone(),
            };
            c.desired.fallback = None;
            c.reverted = Some(f.reason.clone());
            c.error = None;
            c.phase = ContainerPhase::Updating;
            remember(c, now, &Caller::daemon());
        }),
        ContainerFact::OutOfMemory(f) => change(state, &f.name, now, |c| c.oom_kills = f.oom_kills),
        ContainerFact::Destroyed(f) => {
            state.containers.remove(&f.name);
            vec![Aggregate::Container(&f.name).key()]
        }
        ContainerFact::Failed(f) => change(state, &f.name, now, |c| {
            c.error = Some(format!("{}: {}", f.step, f.reason));
            if f.step == ContainerStep::Build {
                c.desired.build_job = None;
                // A container that has a system keeps it.
                if c.desired.toplevel.is_some() {
                    return;
                }
            }
            c.phase = ContainerPhase::Failed;
            c.ready_at = None;
        }),
    }
}

/// Returns a container after a change of its desired state.
fn with_desired_state(known: Option<Container>, f: &ContainerDesired, event: &Event) -> Container {
    let now = event.time;
    let phase = phase_for_desired_state(known.as_ref(), &f.desired);
    let mut container = Container {
        name: f.name.clone(),
        desired: f.desired.clone(),
        phase,
        cause: cause_of(event),
        created_at: known.as_ref().map_or(now, |c| c.created_at),
        changed_at: now,
        ready_at: known.as_ref().and_then(|c| c.ready_at),
        error: None,
        reverted: None,
        last_update: None,
        oom_kills: known.as_ref().map_or(0, |c| c.oom_kills),
        credentials_until: None,
        revisions: known.map(|c| c.revisions).unwrap_or_default(),
    };
    if f.desired.run != DesiredRun::Absent {
        remember(&mut container, now, &f.caller);
    }
    container
}

/// Adds the desired state to the revisions if it differs from the last one in more than whether to run.
fn remember(container: &mut Container, now: Timestamp, by: &Caller) {
    let desired = &container.desired;
    let same = container.revisions.last().is_some_and(|last| {
        last.source == desired.source && last.toplevel == desired.toplevel && last.options == desired.options
    });
    if same {
        return;
    }
    container.revisions.push(Revision {
        generation: desired.generation,
        at: now,
        by: by.clone(),
        source: desired.source.clone(),
        toplevel: desired.toplevel.clone().filter(|_| desired.build_job.is_none()),
        options: desired.options.clone(),
    });
    let over = container.revisions.len().saturating_sub(REMEMBERED_REVISIONS);
    container.revisions.drain(..over);
}

/// Returns the phase of a container that has become ready: one that should be paused is not in its desired state yet.
fn phase_of_start(container: &Container) -> ContainerPhase {
    if container.desired.paused {
        ContainerPhase::Updating
    } else {
        ContainerPhase::Running
    }
}

/// Returns the phase of a container after a change of its desired state.
fn phase_for_desired_state(known: Option<&Container>, desired: &Desired) -> ContainerPhase {
    use ContainerPhase as Phase;
    let Some(known) = known else {
        return if desired.toplevel.is_none() {
            Phase::Building
        } else {
            Phase::Creating
        };
    };
    let before = &known.desired;
    let other = before.toplevel != desired.toplevel
        || before.options != desired.options
        || before.secrets != desired.secrets
        || before.paused != desired.paused;
    match (desired.run, known.phase) {
        (DesiredRun::Absent, _) => Phase::Destroying,
        _ if desired.toplevel.is_none() => Phase::Building,
        (_, Phase::Creating | Phase::Building) => Phase::Creating,
        (_, Phase::Updating) => Phase::Updating,
        _ if other => Phase::Updating,
        (DesiredRun::Running, Phase::Running) => Phase::Running,
        (DesiredRun::Running, _) => Phase::Starting,
        (DesiredRun::Stopped, Phase::Stopped) => Phase::Stopped,
        (DesiredRun::Stopped, _) => Phase::Stopping,
    }
}

fn change(
    state: &mut State,
    name: &ContainerName,
    now: Timestamp,
    with: impl FnOnce(&mut Container),
) -> Vec<String> {
    let Some(container) = state.containers.get_mut(name) else {
        return Vec::new();
    };
    with(container);
    container.changed_at = now;
    vec![Aggregate::Container(name).key()]
}
