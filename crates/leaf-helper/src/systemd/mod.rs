//! Containers as units of systemd.

pub(crate) mod generate;
mod launch;
pub(crate) mod payload;
mod prepare;
pub(crate) mod start;
pub(crate) mod unit;

use std::time::Duration;

use leaf_host::systemd::Patience;

/// How long systemd is waited for: it may be busy, and D-Bus may be restarted.
pub(crate) const PATIENCE: Patience = Patience {
    answer: Duration::from_secs(60),
    away: Duration::from_secs(15),
};
