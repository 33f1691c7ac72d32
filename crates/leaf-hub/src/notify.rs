//! Notifies systemd (`sd_notify(3)`) of the agent's state. Without systemd it does nothing.

use std::time::Duration;

use leaf_core::error::chain;
use leaf_core::printable::printable_line;
use sd_notify::NotifyState;

/// How much longer a start may take after [`not_ready`].
const LONGER: Duration = Duration::from_secs(60);

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(error = chain(&error), "can't notify systemd");
    }
}

/// Notifies that the agent answers leaves.
pub(crate) fn ready(status: &str) {
    // An end of a line would begin another assignment of the protocol.
    tell(&[NotifyState::Ready, NotifyState::Status(&printable_line(status))]);
}

/// Notifies that the start goes on and takes longer. To be repeated within a minute: then the unit's `TimeoutStartSec` doesn't
/// end the agent.
pub(crate) fn not_ready(why: &str) {
    let longer = u32::try_from(LONGER.as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Status(&printable_line(why)),
        NotifyState::ExtendTimeoutUsec(longer),
    ]);
}

/// Notifies of the agent's status.
pub(crate) fn status(status: &str) {
    tell(&[NotifyState::Status(&printable_line(status))]);
}

/// Notifies that the agent's loop is alive.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Notifies that the agent is stopping.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Returns the period in which to call [`alive`]: half of systemd's watchdog timeout; `None` without a watchdog.
pub(crate) fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| period / 2)
}
