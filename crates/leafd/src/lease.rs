//! Holds the lease on the leaf's name, which tells the instance that holds it and since when.

use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::connect::Bus;
use leaf_bus::lease::{Lease, LeaseError};
use leaf_core::beat::{BEAT_SECONDS, Beat};
use leaf_core::error::chain;
use leaf_core::id::InstanceId;
use leaf_journal::Journal;
use tokio::sync::oneshot;

/// How long to wait after an error.
const PAUSE: Duration = Duration::from_secs(2);

/// How long a start waits for a connection before it goes on without.
const PATIENCE: Duration = Duration::from_secs(5);

/// Another leaf of this name is alive.
#[derive(Debug, thiserror::Error)]
#[error(
    "leaf {} is held by instance {} on {} since {} (last beat {}); stop that one, or give this one another name",
    .0.leaf, .0.instance, .0.hostname, .0.started_at, .0.time
)]
pub struct HeldError(Box<Beat>);

/// The instances whose lease may be taken over before it expires, because they are surely dead.
#[derive(Debug, Clone, Copy)]
pub struct Predecessors {
    /// The last run in this journal: its state directory is locked by this one now.
    pub last_run: Option<InstanceId>,
    /// Whether the server is the leaf's own: no other instance can lock its state directory.
    pub any: bool,
}

/// Takes the lease, or waits for a connection at most so long; without one the lease is taken later.
///
/// # Errors
/// [`HeldError`] when another run holds it.
pub async fn take(bus: &Bus, beat: &Beat, dead: Predecessors) -> anyhow::Result<Option<Lease>> {
    if tokio::time::timeout(PATIENCE, bus.connected()).await.is_err() {
        return Ok(None);
    }
    match acquire(bus, beat, dead).await {
        Ok(lease) => Ok(Some(lease)),
        Err(LeaseError::HeldBy(other)) => Err(HeldError(other).into()),
        Err(LeaseError::Stream(error)) => {
            tracing::warn!(error = chain(&error), "the lease is taken later");
            Ok(None)
        }
    }
}

async fn acquire(bus: &Bus, beat: &Beat, dead: Predecessors) -> Result<Lease, LeaseError> {
    match Lease::acquire(bus, beat, false).await {
        Err(LeaseError::HeldBy(other)) if dead.any || Some(other.instance) == dead.last_run => {
            Lease::acquire(bus, beat, true).await
        }
        result => result,
    }
}

/// Renews the lease until `stop`, then gives it back and says so.
///
/// # Errors
/// [`HeldError`] when another run holds it.
pub async fn keep(
    bus: Bus,
    journal: Journal,
    beat: Beat,
    dead: Predecessors,
    mut lease: Option<Lease>,
    mut stop: oneshot::Receiver<()>,
    given_back: oneshot::Sender<()>,
) -> anyhow::Result<()> {
    let mut pause = if lease.is_some() {
        Duration::from_secs(BEAT_SECONDS)
    } else {
        Duration::ZERO
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut stop => break,
        }
        let now = Beat {
            sequence: journal.last_sequence(),
            time: Timestamp::now(),
            ..beat.clone()
        };
        let held = match lease.take() {
            None => {
                tokio::select! {
                    () = bus.connected() => acquire(&bus, &now, dead).await,
                    _ = &mut stop => break,
                }
            }
            Some(mut lease) => lease.renew(&now).await.map(|()| lease),
        };
        pause = match held {
            Ok(held) => {
                lease = Some(held);
                Duration::from_secs(BEAT_SECONDS)
            }
            Err(LeaseError::HeldBy(other)) => return Err(HeldError(other).into()),
            Err(LeaseError::Stream(error)) => {
                tracing::warn!(error = chain(&error), "the lease was not renewed");
                PAUSE
            }
        };
    }
    if let Some(lease) = lease
        && let Err(error) = lease.release().await
    {
        tracing::warn!(error = chain(&error), "the lease ends by itself");
    }
    let _ = given_back.send(());
    // The daemon ends; a task that is kept does not end before it.
    std::future::pending().await
}
