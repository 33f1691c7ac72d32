//! The access of the leaf's own people: the credentials of the caller `admin` at the embedded server, which end by themselves and are
//! renewed in their files.
//!
//! A client reads the file at each connection, so one that is cut when its credentials end comes back with the next ones.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::identity::{Identity, admin_caller};
use leaf_core::command::LocalAccess;
use leaf_core::engine::Input;
use leaf_core::error::chain;
use leaf_core::renewal::Life;
use leaf_host::wall_clock::WallClockWatch;
use tokio::sync::mpsc;

use crate::complaints::Complaints;
use crate::wake::Wake;

/// How often the clock is looked at, and how soon a renewal that failed is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The files of the leaf's own people.
pub(crate) struct AccessFiles {
    identity: Arc<Identity>,
    /// The directory for root and the group of leafd, where systemd made one.
    directory: Option<PathBuf>,
    /// The server's address.
    url: String,
    valid: Duration,
    written: Timestamp,
}

impl AccessFiles {
    /// Writes the files for the first time. Those in `directory` are not needed by leafd.
    ///
    /// # Errors
    /// The error of the files beside the identity.
    pub(crate) fn write(
        identity: Arc<Identity>,
        directory: Option<PathBuf>,
        url: &str,
        valid: Duration,
    ) -> anyhow::Result<Self> {
        let mut files = Self {
            identity,
            directory,
            url: url.to_owned(),
            valid,
            written: Timestamp::now(),
        };
        files.identity.write_admin_credentials()?;
        if let Err(error) = files.renew_in_directory() {
            tracing::warn!(
                error = chain(error.as_ref()),
                "leafctl needs a context on this host: the one of root and the group leafd can't be written"
            );
        }
        files.written = Timestamp::now();
        Ok(files)
    }

    fn renew_in_directory(&self) -> anyhow::Result<()> {
        match &self.directory {
            Some(directory) => Ok(self.identity.write_access(directory, &self.url)?),
            None => Ok(()),
        }
    }

    fn renew(&mut self) -> anyhow::Result<()> {
        let now = Timestamp::now();
        self.identity.write_admin_credentials()?;
        self.renew_in_directory()?;
        self.written = now;
        Ok(())
    }

    fn life(&self) -> Life {
        Life::from(self.written, self.valid)
    }

    fn report(&self) -> LocalAccess {
        LocalAccess {
            caller: admin_caller(),
            valid_until: self.life().ends_at,
        }
    }

    /// Renews the credentials before they end, at once where the clock was set, and reports until when they are valid.
    ///
    /// # Errors
    /// Those of [`WallClockWatch`].
    pub(crate) async fn keep(mut self, inputs: mpsc::Sender<Wake>) -> anyhow::Result<()> {
        let clock = WallClockWatch::start()?;
        let mut complaints = Complaints::default();
        loop {
            let report = Input::LocalAccess(self.report());
            if inputs.send(report.into()).await.is_err() {
                return std::future::pending().await;
            }
            while !self.life().is_due(Timestamp::now()) {
                let pause = LOOK_EVERY.min(self.valid / 10);
                if let Ok(set) = tokio::time::timeout(pause, clock.was_set()).await {
                    set?;
                }
            }
            match self.renew() {
                Ok(()) => complaints = Complaints::default(),
                Err(error) => {
                    let error = chain(error.as_ref());
                    if complaints.is_new(&error) {
                        tracing::warn!(
                            error,
                            "can't renew the credentials of the leaf's own people, which end"
                        );
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }
}
