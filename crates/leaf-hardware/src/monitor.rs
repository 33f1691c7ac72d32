//! Hints that another scan is due: kernel uevents, debounced.

use std::io;
use std::path::Path;
use std::time::Duration;

use leaf_core::error::chain;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{ports, units};

/// The time without events before a hint is given.
const QUIET: Duration = Duration::from_millis(300);
/// The maximum delay of a hint.
const MAX_DELAY: Duration = Duration::from_secs(2);
/// The pause before a failed socket is opened again.
const RETRY: Duration = Duration::from_secs(10);
/// The socket of a running udevd (systemd-udevd(8)).
const UDEVD: &str = "/run/udev/control";

/// Why uevents can't be received.
#[derive(Debug, thiserror::Error)]
#[error("can't listen for hardware events")]
pub struct MonitorError {
    /// The operating system's error.
    pub source: io::Error,
}

/// Listens for hardware events. Without events it never wakes up.
#[derive(Debug)]
pub struct Monitor {
    socket: Option<Listening>,
    /// The time of the first and of the last event that no hint was given for yet.
    pending: Option<(Instant, Instant)>,
    /// When the failed socket is opened again.
    retry_at: Option<Instant>,
}

struct Listening {
    fd: AsyncFd<udev::MonitorSocket>,
    /// Whether the events come from udevd, after its rules, or directly from the kernel.
    udevd: bool,
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listening")
            .field("udevd", &self.udevd)
            .finish_non_exhaustive()
    }
}

impl Monitor {
    /// Starts listening. Events before the first [`changed`](Self::changed) are not lost.
    ///
    /// # Errors
    /// [`MonitorError`] when the netlink socket can't be opened. Must be called within a tokio runtime.
    pub fn open() -> Result<Self, MonitorError> {
        Ok(Self {
            socket: Some(Listening::open()?),
            pending: None,
            retry_at: None,
        })
    }

    /// Waits until the hardware may have changed and no event has arrived for 0.3 s since, or 2 s have passed.
    ///
    /// It is a hint: scan and compare. A failed socket is opened again, with a hint, since events may have been lost;
    /// while that fails there is a hint every 10 s. The future may be dropped at any time without losing a hint.
    pub async fn changed(&mut self) {
        loop {
            let Some(listening) = &mut self.socket else {
                return self.reopen().await;
            };
            let received = match self.pending {
                None => listening.event().await,
                Some((first, last)) => {
                    let end = (last + QUIET).min(first + MAX_DELAY);
                    match timeout_at(end, listening.event()).await {
                        Ok(received) if Instant::now() < end => received,
                        Ok(_) | Err(_) => break,
                    }
                }
            };
            if let Err(error) = received {
                tracing::warn!(%error, "the socket for hardware events failed");
                self.socket = None;
                self.pending = None;
                return;
            }
            let now = Instant::now();
            self.pending = Some((self.pending.map_or(now, |(first, _)| first), now));
        }
        self.pending = None;
        // udevd was started or stopped since: events come from another sender now.
        if self
            .socket
            .as_ref()
            .is_some_and(|listening| listening.udevd != udevd_runs())
        {
            self.socket = Listening::open().ok();
        }
    }

    async fn reopen(&mut self) {
        if let Some(retry_at) = self.retry_at {
            sleep_until(retry_at).await;
        }
        self.retry_at = match Listening::open() {
            Ok(listening) => {
                self.socket = Some(listening);
                None
            }
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "can't receive hardware events; scanning every {} s until that works",
                    RETRY.as_secs()
                );
                Some(Instant::now() + RETRY)
            }
        };
    }
}

fn udevd_runs() -> bool {
    Path::new(UDEVD).exists()
}

impl Listening {
    fn open() -> Result<Self, MonitorError> {
        let failed = |source| MonitorError { source };
        let udevd = udevd_runs();
        let socket = if udevd {
            // The kernel filters the subsystems, so that other events don't wake the daemon.
            let mut builder = udev::MonitorBuilder::new().map_err(failed)?;
            for subsystem in units::BUSES.into_iter().chain(ports::CLASSES) {
                builder = builder.match_subsystem(subsystem).map_err(failed)?;
            }
            builder.listen()
        } else {
            udev::MonitorBuilder::new_kernel().map_err(failed)?.listen()
        };
        // The replacement is unsafe and needs the guarantee that the socket keeps its descriptor, which this one does.
        #[expect(
            deprecated,
            reason = "the safe one; a udev socket owns one descriptor and never replaces it"
        )]
        let fd = AsyncFd::new(socket.map_err(failed)?).map_err(failed)?;
        Ok(Self { fd, udevd })
    }

    /// Waits for an event of a device that is scanned. Data that is not an event counts too: it is what a buffer
    /// overrun looks like.
    async fn event(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable_mut().await?;
            let events = || {
                let events = ready.get_inner().iter();
                events.map(|event| ports::may_have_port(&event.devpath().to_string_lossy()))
            };
            let first: Vec<bool> = events().collect();
            // An overrun ends the first round early, and the events after it don't tell what was lost.
            let more = events().count() > 0;
            ready.clear_ready();
            if more || first.is_empty() || first.contains(&true) {
                return Ok(());
            }
        }
    }
}
