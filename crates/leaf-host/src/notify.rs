//! Notifies systemd (`sd_notify(3)`) that a daemon is ready, alive or stopping. Without systemd it does nothing.

use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use leaf_core::error::chain;
use leaf_core::printable::printable_line;
use sd_notify::NotifyState;

/// How much longer a start may take after [`not_ready`].
const LONGER: Duration = Duration::from_secs(60);

/// The variable with the address of the socket.
const SOCKET: &str = "NOTIFY_SOCKET";

/// Sends these without waiting for a systemd that reads nothing at the moment, which then misses them. A daemon's main loop
/// must not depend on it.
fn tell_without_waiting(states: &[NotifyState<'_>]) {
    match send_without_waiting(states) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
            tracing::warn!(error = chain(&error), "can't notify systemd");
        }
        Ok(()) | Err(_) => {}
    }
}

fn send_without_waiting(states: &[NotifyState<'_>]) -> io::Result<()> {
    let Some(address) = std::env::var_os(SOCKET) else {
        return Ok(());
    };
    let address = match address.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&address)?,
    };
    let mut message = String::new();
    for state in states {
        let _ = writeln!(message, "{state}");
    }
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message.as_bytes(), &address).map(drop)
}

/// Notifies that the daemon is ready, with the status that systemd shows of its unit.
pub fn ready(status: &str) {
    // An end of a line would begin another assignment of the protocol.
    let states = [NotifyState::Ready, NotifyState::Status(&printable_line(status))];
    // This one is waited for: a start that systemd never hears of is no start.
    if let Err(error) = sd_notify::notify(&states) {
        tracing::warn!(error = chain(&error), "can't notify systemd");
    }
}

/// Notifies that the start goes on and takes longer, for the reason that systemd shows as the unit's status. To be repeated
/// within a minute: then the unit's `TimeoutStartSec` doesn't end the daemon.
pub fn not_ready(why: &str) {
    let longer = u32::try_from(LONGER.as_micros()).unwrap_or(u32::MAX);
    tell_without_waiting(&[
        NotifyState::Status(&printable_line(why)),
        NotifyState::ExtendTimeoutUsec(longer),
    ]);
}

/// Notifies of the status alone.
pub fn status(status: &str) {
    tell_without_waiting(&[NotifyState::Status(&printable_line(status))]);
}

/// Notifies that the daemon's main loop is alive.
pub fn alive() {
    tell_without_waiting(&[NotifyState::Watchdog]);
}

/// Notifies that the daemon is stopping.
pub fn stopping() {
    tell_without_waiting(&[NotifyState::Stopping]);
}

/// Returns the period in which to call [`alive`]: half of systemd's watchdog timeout; `None` without a watchdog.
#[must_use]
pub fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|period| period / 2)
}
