//! Sends the hub what its copy lacks: what was published while the link was cut, or before a hub lost its store.
//!
//! Live events need nothing of this: they cross as they are published, and the copy takes those that follow its last one. When
//! a claim's reply says that the copy lacks some, the leaf asks the agent from where on, and sends the events of its own stream
//! once more ([`leaf_bus::fill`]). The copy's numbers fence them, so what is sent twice, or late, changes nothing.

use std::sync::Arc;

use leaf_bus::fill::{FillCopy, NotFilled};
use leaf_core::error::chain;
use tokio::sync::{Notify, watch};

use crate::complaints::Complaints;
use crate::publisher::Published;

/// Fills the copy as long as the leaf runs.
pub(crate) struct Filling {
    /// What fills it.
    pub(crate) copy: FillCopy,
    /// The known content of the leaf's stream.
    pub(crate) published: watch::Receiver<Published>,
    /// Tells that the copy lacks events.
    pub(crate) lacks: Arc<Notify>,
}

impl Filling {
    /// Runs until the daemon ends. What could not be sent is sent when the next claim's reply says so.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        // Until the publisher has read its stream, nothing is known of what crossed.
        let _ = self.published.wait_for(|known| known.first > 0).await;
        let mut complaints = Complaints::default();
        loop {
            self.lacks.notified().await;
            match self.copy.fill(|| self.published.borrow().sequence).await {
                Ok(0) => {}
                Ok(events) => {
                    complaints = Complaints::default();
                    tracing::info!(events, "the hub's copy has the events that it lacked");
                }
                // It is said with the claim.
                Err(NotFilled::Hub(error)) if error.is_away() => {}
                Err(error) => {
                    let why = chain(&error);
                    if complaints.is_new(&why) {
                        tracing::warn!(error = why, "the hub's copy lacks events of this leaf");
                    }
                }
            }
        }
    }
}
