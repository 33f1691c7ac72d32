//! Containers as systemd units.

pub(crate) mod generate;
mod launch;
pub(crate) mod payload;
pub(crate) mod prepare;
pub(crate) mod start;
pub(crate) mod switch;
pub(crate) mod unit;

use std::time::Duration;

use leaf_host::systemd::Patience;

/// The time limits for calls to systemd: it may be busy, and D-Bus may be restarted.
pub(crate) const PATIENCE: Patience = Patience {
    answer: Duration::from_secs(60),
    away: Duration::from_secs(15),
};
