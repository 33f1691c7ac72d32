//! The host's wall clock: notice of a change that is not the passing of time.

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::process::async_fd;

/// A second that no clock reaches.
const NEVER: Timespec = Timespec {
    tv_sec: 1 << 40,
    tv_nsec: 0,
};

/// Says when the wall clock was set, or jumped because the host was suspended (`TFD_TIMER_CANCEL_ON_SET` of timerfd_create(2)).
///
/// A clock that is slewed, as time servers' programs do with small differences, is not set.
#[derive(Debug)]
pub struct WallClockWatch(AsyncFd<OwnedFd>);

impl WallClockWatch {
    /// Begins to watch.
    ///
    /// # Errors
    /// The kernel's: too many open files, or no memory.
    pub fn start() -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Realtime,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        let never = Itimerspec {
            it_interval: Timespec::default(),
            it_value: NEVER,
        };
        timerfd_settime(
            &timer,
            TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET,
            &never,
        )?;
        Ok(Self(async_fd(timer)?))
    }

    /// Returns once the clock was set since the last return, or since the start. Cancel safe.
    ///
    /// # Errors
    /// The kernel's, which are none that are expected.
    pub async fn was_set(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut expirations = [0; 8];
            match rustix::io::read(self.0.get_ref(), &mut expirations) {
                Err(rustix::io::Errno::WOULDBLOCK) => ready.clear_ready(),
                // The timer stays armed.
                Ok(_) | Err(rustix::io::Errno::CANCELED) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_clock_that_nobody_sets_is_not_reported() {
        let watch = WallClockWatch::start().expect("a timer");
        let quiet = tokio::time::timeout(Duration::from_millis(50), watch.was_set()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }
}
