//! Holds the lease on the leaf's name, which names the instance that holds it and since when.

use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::connect::Bus;
use leaf_bus::lease::{Lease, LeaseError};
use leaf_bus::stream::StreamError;
use leaf_core::beat::{BEAT_SECONDS, Beat};
use leaf_core::error::chain;
use leaf_core::id::{InstanceId, LeafName};
use leaf_core::labels::Labels;
use leaf_journal::Journal;
use tokio::sync::{oneshot, watch};

use crate::complaints::Complaints;
use leaf_host::notify;

/// The pause after an error.
pub(crate) const PAUSE: Duration = Duration::from_secs(2);

/// How long the start waits for a connection before it continues without one.
const PATIENCE: Duration = Duration::from_secs(5);

/// Another leaf of this name is alive.
#[derive(Debug, thiserror::Error)]
#[error(
    "leaf {} is held by instance {} on {} since {} (last beat {}); stop that one, or give this one another name",
    .0.leaf, .0.instance, .0.hostname, .0.started_at, .0.time
)]
pub struct HeldError(pub(crate) Box<Beat>);

/// The NATS server refuses the lease for a reason that lasts, so another leaf of this name would not be noticed.
#[derive(Debug, thiserror::Error)]
#[error("the NATS server refuses the lease on the name {leaf}, so another leaf of this name would not be noticed{}", way_out(.source))]
pub struct RefusedError {
    leaf: LeafName,
    source: StreamError,
}

/// Returns what an operator can do about a refusal, if the error itself does not say it.
fn way_out(error: &StreamError) -> &'static str {
    match error {
        StreamError::StorageFull { .. } | StreamError::Limited { .. } => {
            ": raise the JetStream limits of the leaf's account, as docs/nats.md lists them"
        }
        StreamError::NoPermission { what } if what.contains("$JS.") && !what.contains("$JS.API.") => {
            ": check nats.jetstream_domain in leafd's settings, since this user may not use JetStream in that domain; leave it \
             out where the connected server itself has the streams"
        }
        StreamError::NoPermission { .. } => ": give the leaf's user the permissions that docs/nats.md lists",
        StreamError::JetStreamOff => ": enable JetStream for the leaf's account",
        _ => "",
    }
}

/// The instances whose lease may be taken over before it expires, because they are known to be dead.
#[derive(Debug, Clone, Copy)]
pub struct Predecessors {
    /// The last instance in this journal, whose state directory this one has locked.
    pub last_run: Option<InstanceId>,
    /// Whether every other instance is dead: the server is embedded, and this instance has locked its state directory.
    pub any: bool,
}

/// Takes the lease. Returns `None` if no connection is made within a few seconds, or no answer comes: the lease is then
/// taken later. While the server refuses it, this waits and tries again.
///
/// # Errors
/// [`HeldError`] when another instance holds it.
pub(crate) async fn take(
    bus: &Bus,
    beat: &Beat,
    dead: Predecessors,
    complaints: &mut Complaints,
) -> anyhow::Result<Option<Lease>> {
    loop {
        if tokio::time::timeout(PATIENCE, bus.connected()).await.is_err() {
            return Ok(None);
        }
        let now = Beat {
            time: Timestamp::now(),
            ..beat.clone()
        };
        let error = match acquire(bus, &now, dead).await {
            Ok(lease) => return Ok(Some(lease)),
            Err(LeaseError::HeldBy(other)) => return Err(HeldError(other).into()),
            Err(LeaseError::Stream(error)) => error,
        };
        let Some(refused) = dead.refused(&beat.leaf, &error) else {
            if complaints.is_new(&chain(&error)) {
                tracing::warn!(error = chain(&error), "can't take the lease yet");
            }
            return Ok(None);
        };
        let why = chain(&refused);
        notify::not_ready(&format!("not ready: {why}"));
        if complaints.is_new(&why) {
            tracing::error!(error = why, "not ready: this is tried again until it succeeds");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Predecessors {
    /// Returns the error of a refusal that makes the leaf wait. With an embedded server, no other leafd can have the name.
    fn refused(self, leaf: &LeafName, error: &StreamError) -> Option<RefusedError> {
        (error.is_refusal() && !self.any).then(|| RefusedError {
            leaf: leaf.clone(),
            source: error.clone(),
        })
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

/// Makes the beats of this instance.
#[derive(Clone)]
pub struct Beats {
    /// The first beat: what does not change is that of all.
    pub first: Beat,
    /// The leaf's labels.
    pub labels: watch::Receiver<Labels>,
    /// Has the last sequence number.
    pub journal: Journal,
}

impl Beats {
    /// Returns the beat of this moment.
    pub(crate) fn now(&mut self) -> Beat {
        Beat {
            sequence: self.journal.last_sequence(),
            time: Timestamp::now(),
            labels: self.labels.borrow_and_update().clone(),
            ..self.first.clone()
        }
    }
}

/// Renews the lease until `stop`, then releases it and confirms that.
///
/// # Errors
/// [`HeldError`] when another instance holds it. [`RefusedError`] when the daemon started without a connection, and the
/// server then refuses the lease: after its next start it waits until it has one.
pub async fn keep(
    bus: Bus,
    mut beats: Beats,
    dead: Predecessors,
    mut lease: Option<Lease>,
    mut stop: oneshot::Receiver<()>,
    given_back: oneshot::Sender<()>,
) -> anyhow::Result<()> {
    let mut was_held = lease.is_some();
    let mut complaints = Complaints::default();
    let mut pause = if was_held {
        Duration::from_secs(BEAT_SECONDS)
    } else {
        Duration::ZERO
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // Changed labels are shown at once.
            Ok(()) = beats.labels.changed() => {}
            _ = &mut stop => break,
        }
        let now = beats.now();
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
                was_held = true;
                complaints = Complaints::default();
                Duration::from_secs(BEAT_SECONDS)
            }
            Err(LeaseError::HeldBy(other)) => return Err(HeldError(other).into()),
            Err(LeaseError::Stream(error)) => {
                if let Some(refused) = dead.refused(&now.leaf, &error)
                    && !was_held
                {
                    return Err(refused.into());
                }
                if complaints.is_new(&chain(&error)) {
                    tracing::warn!(error = chain(&error), "can't renew the lease");
                }
                PAUSE
            }
        };
    }
    if let Some(lease) = lease {
        release(lease).await;
    }
    let _ = given_back.send(());
    // The daemon is ending; a task started with `keep` must not end before it.
    std::future::pending().await
}

/// Releases the lease, so that no leaf is listed that takes no commands.
pub(crate) async fn release(lease: Lease) {
    if let Err(error) = lease.release().await {
        tracing::warn!(
            error = chain(&error),
            "can't release the lease, which expires by itself"
        );
    }
}
