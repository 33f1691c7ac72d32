//! What the tasks of all leaves share.

use std::sync::Arc;
use std::time::Duration;

use leaf_bus::hub::{Hub, Registry, StateCopy};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::heard::Works;

/// What all tasks share. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) hub: Hub,
    pub(crate) registry: Registry,
    pub(crate) states: StateCopy,
    pub(crate) works: Works,
    /// The leaves that may fill their copies at a time.
    pub(crate) fills: Arc<Semaphore>,
    pub(crate) max_bytes: u64,
    /// The agent's start, where its own time begins.
    pub(crate) started: Instant,
}

impl Shared {
    /// The agent's own time.
    pub(crate) fn now(&self) -> Duration {
        self.started.elapsed()
    }
}
