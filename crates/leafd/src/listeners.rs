//! Tasks that wait for commands, hints and publishes, and pass them to the main loop as [`Wake`]s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::connect::{Bus, Status};
use leaf_bus::serve::{FreshConnection, Incoming, Server};
use leaf_container::{Changed, Containers, Seen};
use leaf_core::engine::{Input, Scope};
use leaf_core::error::chain;
use leaf_core::id::ContainerName;
use leaf_core::signed::Provenance;
use leaf_host::wall_clock::WallClockWatch;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::publisher::Published;
use crate::sessions;
use crate::steps::{ContainerHost, InFlight};
use crate::transfers;
use crate::trust::Trust;
use crate::wake::Wake;

/// Judges the signatures of commands, and forwards them until the daemon drains, and then those that had already arrived. They
/// move to each fresh connection.
///
/// # Errors
/// When the channel to the main loop is closed unexpectedly.
pub async fn take_commands(
    mut server: Server,
    trust: Trust,
    inputs: mpsc::Sender<Wake>,
    sessions: mpsc::Sender<Incoming>,
    transfers: mpsc::Sender<Incoming>,
    mut fresh: mpsc::Receiver<FreshConnection>,
    mut drained: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            incoming = server.next() => match incoming {
                Some(incoming) if sessions::is_request(&incoming) => {
                    // Dropped, it is asked again.
                    if let Err(error) = sessions.try_send(incoming) {
                        error.into_inner().responder.forget();
                    }
                }
                Some(incoming) if transfers::is_request(&incoming) => {
                    if let Err(error) = transfers.try_send(incoming) {
                        error.into_inner().responder.forget();
                    }
                }
                Some(incoming) => {
                    let (incoming, provenance) = judge(&trust, incoming).await?;
                    if inputs.send(Wake::Command(Box::new(incoming), provenance)).await.is_err() {
                        break;
                    }
                }
                None => break,
            },
            Some(fresh) = fresh.recv(), if !drained.is_terminated() => {
                if let Err(error) = server.take_over(fresh).await {
                    tracing::warn!(error = chain(&error), "commands stay on the connection with the former credentials");
                }
            }
            _ = &mut drained, if !drained.is_terminated() => server.drain().await,
        }
    }
    let _ = inputs.send(Input::Drained.into()).await;
    std::future::pending().await
}

/// Judges the signature of a command. Where there is one, that is done by a thread beside the main loop's.
async fn judge(trust: &Trust, incoming: Incoming) -> anyhow::Result<(Incoming, Provenance)> {
    if incoming.signed.is_none() {
        return Ok((incoming, Provenance::Unsigned));
    }
    let trust = trust.clone();
    let judged = tokio::task::spawn_blocking(move || {
        let provenance = trust.judge(&incoming);
        (incoming, provenance)
    });
    judged.await.context("the check of a signature ended early")
}

/// Forwards what the publisher knows about the stream's content.
///
/// # Errors
/// Never.
pub async fn watch_published(
    mut published: watch::Receiver<Published>,
    inputs: mpsc::Sender<Wake>,
) -> anyhow::Result<()> {
    while published.changed().await.is_ok() {
        let now = *published.borrow_and_update();
        let now = Input::Published {
            first: now.first,
            last: now.sequence,
        };
        if inputs.send(now.into()).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// The pause after an observation, as a multiple of the observation's duration: it limits the cost of containers that
/// change constantly.
const PAUSE_AFTER_OBSERVATION: u32 = 2;
/// The pause between the end of a container's steps and its observation: more steps may follow at once.
const PAUSE_AFTER_STEPS: Duration = Duration::from_millis(100);
/// The pause before a container in transition is observed again.
const OBSERVE_AGAIN: Duration = Duration::from_millis(300);
/// The pause before all containers are observed after a failed observation.
const OBSERVE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// The period in which all containers are observed, hints or not: one may have been missed.
const OBSERVE_ALL_EVERY: Duration = Duration::from_secs(60);

/// Observes the containers that changed, and sends the observations. A container with steps in flight is observed by
/// these steps, and here after they have ended.
///
/// # Errors
/// When the channel to the main loop is closed unexpectedly.
pub async fn watch_containers(
    view: Containers,
    in_flight: InFlight,
    clock: Clock,
    inputs: mpsc::Sender<Wake>,
) -> anyhow::Result<()> {
    let mut hints = view.watch()?;
    let mut steps = in_flight.changes();
    let mut moved = Changed::Any;
    let mut all_at = Instant::now();
    let mut problems = BTreeMap::new();
    loop {
        let (at, later) = match moved {
            // The engine leaves out those with steps in flight.
            Changed::Any => (Changed::Any, in_flight.names()),
            Changed::These(names) => {
                let (later, now) = names.into_iter().partition(|name| in_flight.contains(name));
                (Changed::These(now), later)
            }
        };
        moved = Changed::These(later);
        if at == Changed::Any {
            all_at = Instant::now() + OBSERVE_ALL_EVERY;
        }
        let mut moving = Changed::nothing();
        if !at.is_nothing() {
            match observe(&view, at, clock, &inputs, &mut problems).await? {
                Some(names) => moving = Changed::These(names),
                None => all_at = all_at.min(Instant::now() + OBSERVE_AFTER_FAILURE),
            }
        }
        tokio::select! {
            changed = hints.changed() => moved.add(changed?),
            () = tokio::time::sleep(OBSERVE_AGAIN), if !moving.is_nothing() => {}
            Ok(()) = steps.changed(), if !moved.is_nothing() => tokio::time::sleep(PAUSE_AFTER_STEPS).await,
            () = tokio::time::sleep_until(all_at) => moved = Changed::Any,
        }
        moved.add(moving);
    }
}

/// Observes containers, sends the observation, and pauses. Returns the containers in transition; `None` if the
/// observation failed. `problems` are those that were logged; one is logged again when it has changed.
async fn observe(
    view: &Containers,
    at: Changed,
    clock: Clock,
    inputs: &mpsc::Sender<Wake>,
    problems: &mut BTreeMap<ContainerName, String>,
) -> anyhow::Result<Option<BTreeSet<ContainerName>>> {
    tracing::debug!(?at, "observing containers");
    let (view, which) = (view.clone(), at.clone());
    let mut moving = None;
    let (started, began) = (Instant::now(), clock.now());
    let seen = tokio::task::spawn_blocking(move || match &which {
        Changed::Any => view.observe(),
        Changed::These(names) => view.observe_some(names),
    })
    .await
    .context("the observation of the containers ended early")?;
    match seen {
        Ok(Seen {
            containers: seen,
            unobserved,
            moving: now,
        }) => {
            moving = Some(now);
            problems.retain(|name, _| unobserved.contains_key(name));
            for (name, error) in &unobserved {
                let error = chain(error);
                if problems.get(name) != Some(&error) {
                    tracing::warn!(%name, error, "can't observe a container");
                    problems.insert(name.clone(), error);
                }
            }
            let unobserved: BTreeSet<_> = unobserved.into_keys().collect();
            let scope = match at {
                Changed::Any => Scope::AllBut(unobserved),
                Changed::These(names) => Scope::Only(&names - &unobserved),
            };
            let observed = Input::ContainersObserved {
                began,
                scope,
                observed: seen,
            };
            if inputs.send(observed.into()).await.is_err() {
                return std::future::pending().await;
            }
        }
        Err(error) => tracing::warn!(error = chain(&error), "can't observe the containers"),
    }
    tokio::time::sleep(started.elapsed() * PAUSE_AFTER_OBSERVATION).await;
    Ok(moving)
}

/// Restores the rules of the closed network periodically: after a flush of nftables by another program, running
/// containers would be open.
///
/// # Errors
/// Never.
pub async fn keep_network(host: Arc<ContainerHost>, every: Duration) -> anyhow::Result<()> {
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = host.helper.carry_out(&host.network).await {
            tracing::warn!(
                error = chain(&error),
                "can't restore the rules of the closed network"
            );
        }
    }
}

/// Has the engine look at the clock when that was set, since credentials of containers may have ended by that.
///
/// # Errors
/// Those of [`WallClockWatch`].
pub async fn watch_wall_clock(inputs: mpsc::Sender<Wake>) -> anyhow::Result<()> {
    let clock = WallClockWatch::start().context("can't watch the clock")?;
    loop {
        clock.was_set().await.context("can't watch the clock")?;
        if inputs.send(Input::TimePassed.into()).await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Logs the status of the connection to the streams, and that of the callers' connection where there is one.
///
/// # Errors
/// When the channel to the main loop is closed unexpectedly.
pub async fn log_connection(bus: Bus) -> anyhow::Result<()> {
    let streams = log_status(bus.status(), "streams");
    match bus.callers_status() {
        Some(callers) => futures::join!(streams, log_status(callers, "callers")).0,
        None => streams.await,
    }
}

async fn log_status(mut status: watch::Receiver<Status>, to: &'static str) -> anyhow::Result<()> {
    loop {
        let now = status.borrow_and_update().clone();
        if now.is_connected() {
            tracing::info!(to, "{now}");
        } else {
            tracing::warn!(to, "{now}");
        }
        if status.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
