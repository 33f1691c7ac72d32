//! What the daemon tells systemd (`sd_notify(3)`): ready, alive, stopping. Without systemd it tells nobody.

use std::time::Duration;

use leaf_core::error::chain;
use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(error = chain(&error), "systemd can't be told how the daemon does");
    }
}

/// Tells that the daemon takes commands.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells that the main loop turns.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Tells that the daemon is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Returns how often [`alive`] is to be called: half of what systemd waits, or nothing if it doesn't watch.
#[must_use]
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| period / 2)
}
