//! Says when another look is worth while: kernel uevents, gathered until it is quiet.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{ports, units};

/// So long must it be quiet before the hint is given.
const QUIET: Duration = Duration::from_millis(300);
/// So long a hint is held back at most.
const LONGEST: Duration = Duration::from_secs(2);
/// So long after a failure the socket is opened again.
const RETRY: Duration = Duration::from_secs(10);
/// Where a running udevd listens (systemd-udevd(8)).
const UDEVD: &str = "/run/udev/control";

/// Why uevents can't be received.
#[derive(Debug, thiserror::Error)]
#[error("can't listen for hardware events")]
pub struct MonitorError {
    /// What the system says.
    pub source: io::Error,
}

/// Listens for hardware events. At rest it costs nothing.
#[derive(Debug)]
pub struct Monitor {
    socket: Option<Listening>,
    /// When the events began, and when the last one came, that no hint was given of.
    pending: Option<(Instant, Instant)>,
    /// When the failed socket is opened again.
    retry_at: Option<Instant>,
}

struct Listening {
    fd: AsyncFd<udev::MonitorSocket>,
    /// Whether udevd passes the events on, after its rules; otherwise they come from the kernel.
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
    /// Starts to listen. Events before the first [`changed`](Self::changed) are not lost.
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

    /// Waits until the hardware may have changed and it has been quiet since for 0.3 s, or 2 s have passed.
    ///
    /// It is a hint: look and compare. A failed socket is opened again, with a hint, since events may have been lost;
    /// as long as that fails there is a hint every 10 s. The future may be dropped at any time: no hint is lost.
    pub async fn changed(&mut self) {
        loop {
            let Some(listening) = &mut self.socket else {
                return self.reopen().await;
            };
            let received = match self.pending {
                None => listening.event().await,
                Some((first, last)) => {
                    let end = (last + QUIET).min(first + LONGEST);
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
        // udevd was started or ended since: its events come by another way.
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
                    error = &error as &dyn std::error::Error,
                    "hardware is looked at every {} s until events can be received",
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
            // The kernel filters these for us, so that others don't wake the daemon.
            let mut builder = udev::MonitorBuilder::new().map_err(failed)?;
            for subsystem in units::BUSES.into_iter().chain(ports::CLASSES) {
                builder = builder.match_subsystem(subsystem).map_err(failed)?;
            }
            builder.listen()
        } else {
            udev::MonitorBuilder::new_kernel().map_err(failed)?.listen()
        };
        // Its successor is unsafe, to have the caller vouch for what is so: the socket owns its descriptor for good.
        #[expect(
            deprecated,
            reason = "the safe one; a udev socket owns one descriptor and never replaces it"
        )]
        let fd = AsyncFd::new(socket.map_err(failed)?).map_err(failed)?;
        Ok(Self { fd, udevd })
    }

    /// Waits for an event of something that is looked at. Data that is no event counts too: it is what an overrun of the
    /// buffer looks like.
    async fn event(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable_mut().await?;
            let events = || {
                let events = ready.get_inner().iter();
                events.map(|event| ports::counts(&event.devpath().to_string_lossy()))
            };
            let first: Vec<bool> = events().collect();
            // An overrun ends the first round early: what comes then tells nothing of what was lost.
            let more = events().count() > 0;
            ready.clear_ready();
            if more || first.is_empty() || first.contains(&true) {
                return Ok(());
            }
        }
    }
}
