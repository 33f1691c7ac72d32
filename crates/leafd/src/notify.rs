//! Notifies systemd (`sd_notify(3)`) that the daemon is ready, alive or stopping. Without systemd it does nothing.

use std::time::Duration;

use leaf_core::error::chain;
use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(error = chain(&error), "can't notify systemd");
    }
}

/// Notifies that the daemon takes commands.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Notifies that the main loop is alive.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Notifies that the daemon is stopping.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Returns the period in which to call [`alive`]: half of systemd's watchdog timeout; `None` without a watchdog.
#[must_use]
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| period / 2)
}
