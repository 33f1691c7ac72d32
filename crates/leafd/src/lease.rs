//! Holds the lease on the leaf's name, which names the instance that holds it and since when.

use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::connect::Bus;
use leaf_bus::lease::{Lease, LeaseError};
use leaf_core::beat::{BEAT_SECONDS, Beat};
use leaf_core::error::chain;
use leaf_core::id::InstanceId;
use leaf_journal::Journal;
use tokio::sync::oneshot;

/// The pause after an error.
const PAUSE: Duration = Duration::from_secs(2);

/// How long the start waits for a connection before it continues without one.
const PATIENCE: Duration = Duration::from_secs(5);

/// Another leaf of this name is alive.
#[derive(Debug, thiserror::Error)]
#[error(
    "leaf {} is held by instance {} on {} since {} (last beat {}); stop that one, or give this one another name",
    .0.leaf, .0.instance, .0.hostname, .0.started_at, .0.time
)]
pub struct HeldError(Box<Beat>);

/// The instances whose lease may be taken over before it expires, because they are known to be dead.
#[derive(Debug, Clone, Copy)]
pub struct Predecessors {
    /// The last instance in this journal, whose state directory this one has locked.
    pub last_run: Option<InstanceId>,
    /// Whether every other instance is dead: the server is embedded, and this instance has locked its state directory.
    pub any: bool,
}

/// Takes the lease. Returns `None` if no connection is made within a few seconds: the lease is then taken later.
///
/// # Errors
/// [`HeldError`] when another instance holds it.
pub async fn take(bus: &Bus, beat: &Beat, dead: Predecessors) -> anyhow::Result<Option<Lease>> {
    if tokio::time::timeout(PATIENCE, bus.connected()).await.is_err() {
        return Ok(None);
    }
    match acquire(bus, beat, dead).await {
        Ok(lease) => Ok(Some(lease)),
        Err(LeaseError::HeldBy(other)) => Err(HeldError(other).into()),
        Err(LeaseError::Stream(error)) => {
            tracing::warn!(error = chain(&error), "can't take the lease yet");
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

/// Renews the lease until `stop`, then releases it and confirms that.
///
/// # Errors
/// [`HeldError`] when another instance holds it.
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
                tracing::warn!(error = chain(&error), "can't renew the lease");
                PAUSE
            }
        };
    }
    if let Some(lease) = lease
        && let Err(error) = lease.release().await
    {
        tracing::warn!(error = chain(&error), "can't release the lease, it will expire");
    }
    let _ = given_back.send(());
    // The daemon is ending; a task started with `keep` must not end before it.
    std::future::pending().await
}
