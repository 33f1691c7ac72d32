//! Renewed credentials for a given NATS server: commands move to a connection with them before the former ones end.
//!
//! A server cuts a connection in the second in which its credentials end. Whoever renews the file (a switch of the system, a
//! secret's manager) may do so at any time before: leafd looks at it, connects anew, and takes commands over that connection, while the
//! former one still answers what it has. The other connections are cut at the end, and come back with the file's credentials: events are
//! sent again, and the lease is renewed.

use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::connect::{ConnectSettings, CredentialsLife};
use leaf_bus::serve::FreshConnection;
use leaf_core::engine::Input;
use leaf_core::error::chain;
use tokio::sync::mpsc;

use crate::complaints::Complaints;
use crate::wake::Wake;

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The renewal of the callers' connection.
pub(crate) struct Renewal {
    /// How it connects.
    pub(crate) connect: ConnectSettings,
    /// Receives connections with renewed credentials.
    pub(crate) fresh: mpsc::Sender<FreshConnection>,
    /// Receives until when the credentials are valid.
    pub(crate) inputs: mpsc::Sender<Wake>,
}

impl Renewal {
    /// Runs until the daemon ends.
    ///
    /// # Errors
    /// Never.
    pub(crate) async fn keep(self) -> anyhow::Result<()> {
        let Some(mut used) = self.connect.credentials.life() else {
            return std::future::pending().await;
        };
        let mut complaints = Complaints::default();
        self.report(&used).await;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let problem = match self.connect.credentials.life() {
                Some(found) if found.id != used.id => match self.renew().await {
                    Ok(()) => {
                        tracing::info!(
                            until = until(&found),
                            "commands come over a connection with renewed credentials"
                        );
                        used = found;
                        self.report(&used).await;
                        None
                    }
                    Err(error) => Some(format!(
                        "the renewed credentials can't be used: {}",
                        chain(error.as_ref())
                    )),
                },
                _ if is_late(&used, Timestamp::now()) => Some(format!(
                    "those of nats.credentials end at {}, and the file has no newer ones",
                    until(&used)
                )),
                _ => None,
            };
            match problem {
                Some(problem) if complaints.is_new(&problem) => {
                    tracing::warn!(problem, "credentials for NATS");
                }
                Some(_) => {}
                None => complaints = Complaints::default(),
            }
        }
    }

    async fn renew(&self) -> anyhow::Result<()> {
        let fresh = FreshConnection::open(&self.connect).await?;
        // The task that takes commands is there as long as the daemon.
        let _ = self.fresh.send(fresh).await;
        Ok(())
    }

    async fn report(&self, life: &CredentialsLife) {
        let _ = self
            .inputs
            .send(Input::CredentialsUntil(life.expires_at).into())
            .await;
    }
}

fn until(life: &CredentialsLife) -> String {
    life.expires_at
        .map_or_else(|| "never".to_owned(), |time| time.to_string())
}

/// Returns whether two thirds of the credentials' life are over.
pub(crate) fn is_late(life: &CredentialsLife, now: Timestamp) -> bool {
    life.expires_at.is_some_and(|end| {
        let (whole, left) = (end.duration_since(life.issued_at), end.duration_since(now));
        left * 3 <= whole
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_late_when_two_thirds_of_their_life_are_over() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let late = |expires_at, now| {
            let life = CredentialsLife {
                id: "x".to_owned(),
                issued_at: at(1000),
                expires_at,
            };
            is_late(&life, at(now))
        };
        assert!(!late(Some(at(1900)), 1000) && !late(Some(at(1900)), 1599));
        assert!(late(Some(at(1900)), 1600) && late(Some(at(1900)), 5000));
        assert!(!late(None, 9_000_000));
    }
}
