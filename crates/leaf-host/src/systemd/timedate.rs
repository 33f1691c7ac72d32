//! Whether the host's clock is synchronized, by systemd-timedated (org.freedesktop.timedate1(5)).

use super::properties::get_all;
use super::{Systemd, SystemdError};

impl Systemd {
    /// Returns whether the kernel's clock is synchronized by NTP, whichever service does it.
    ///
    /// # Errors
    /// [`SystemdError`], if systemd-timedated does not run and can't be started.
    pub async fn is_clock_synchronized(&self) -> Result<bool, SystemdError> {
        self.call("ask systemd-timedated about the clock", |connection| async move {
            let timedate = get_all(
                &connection,
                "org.freedesktop.timedate1",
                "/org/freedesktop/timedate1",
                "org.freedesktop.timedate1",
            )
            .await?;
            Ok(timedate.is_set("NTPSynchronized"))
        })
        .await
    }
}
