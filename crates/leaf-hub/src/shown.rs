//! The document about a copy and the events about it: what others see of it.

use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::fleet::CopyStatus;
use leaf_core::fleet::copy::View;
use leaf_core::fleet::fact::{FleetEvent, FleetFact};
use leaf_core::id::LeafName;

use crate::shared::Shared;

/// How often numbers are written that change while the state stays.
const NUMBERS_EVERY: Duration = Duration::from_secs(10);
/// The pause after an error.
const PAUSE: Duration = Duration::from_secs(2);

/// What was written about a copy.
#[derive(Debug)]
pub(crate) struct Shown {
    written: Option<CopyStatus>,
    /// When to write next at the earliest, unless the state changes.
    next: Duration,
    /// When to try again after an error.
    retry: Duration,
    failing: bool,
    /// Whether the hub's store may be another one, without what was written.
    may_be_lost: bool,
}

impl Shown {
    pub(crate) fn new(written: Option<CopyStatus>) -> Self {
        Self {
            written,
            next: Duration::ZERO,
            retry: Duration::ZERO,
            failing: false,
            may_be_lost: false,
        }
    }

    /// The document that was written last.
    pub(crate) fn written(&self) -> Option<&CopyStatus> {
        self.written.as_ref()
    }

    /// Makes the next call of [`Shown::show`] write, though nothing changed: the hub's store may be another one.
    pub(crate) fn write_again(&mut self) {
        self.may_be_lost = true;
    }

    /// Returns when to call [`Shown::show`] again at the latest, if what it was told is not written yet.
    pub(crate) fn retry(&self) -> Option<Duration> {
        self.failing.then_some(self.retry)
    }

    /// Writes what changed.
    pub(crate) async fn show(&mut self, shared: &Shared, leaf: &LeafName, view: View, now: Duration) {
        let before = self.written.as_ref();
        let state_stays = before.is_some_and(|before| before.state == view.state);
        let is_same = state_stays
            && before.is_some_and(|before| {
                before.copied == view.copied
                    && before.leaf_last == view.leaf_last
                    && before.reason == view.reason
            });
        let is_due = if self.failing {
            now >= self.retry
        } else {
            self.may_be_lost || !state_stays || !is_same && now >= self.next
        };
        if !is_due {
            return;
        }
        let time = Timestamp::now();
        let status = CopyStatus {
            leaf: leaf.clone(),
            state: view.state,
            since: match before {
                Some(before) if state_stays => before.since,
                _ => time,
            },
            copied: view.copied,
            leaf_last: view.leaf_last,
            reason: view.reason,
        };
        let facts = FleetFact::of_change(before.map(|before| before.state), status.state);
        match write(shared, &status, &facts, before.map(|before| before.since), time).await {
            Ok(()) => {
                if !state_stays {
                    tracing::info!(
                        %leaf, state = %status.state, copied = status.copied, leaf_last = status.leaf_last,
                        reason = status.reason.as_deref().unwrap_or_default(), "the state of a copy"
                    );
                }
                self.written = Some(status);
                self.next = now + NUMBERS_EVERY;
                self.failing = false;
                self.may_be_lost = false;
            }
            Err(error) => {
                if !self.failing {
                    tracing::warn!(%leaf, error = chain(&error), "can't store the state of a copy: this is tried again");
                }
                self.failing = true;
                // The attempt may have taken its whole time.
                self.retry = shared.now() + PAUSE;
            }
        }
    }
}

async fn write(
    shared: &Shared,
    status: &CopyStatus,
    facts: &[FleetFact],
    before: Option<Timestamp>,
    time: Timestamp,
) -> Result<(), StreamError> {
    for fact in facts {
        let event = FleetEvent {
            before,
            time,
            fact: *fact,
            status: status.clone(),
        };
        shared.registry.put_event(&event).await?;
    }
    shared.registry.put_status(status).await
}
