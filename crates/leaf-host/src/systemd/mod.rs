//! systemd and systemd-machined, over D-Bus: org.freedesktop.systemd1(5), org.freedesktop.machine1(5).
//!
//! Start at [`Systemd`]. A call that can't reach D-Bus or systemd is repeated over another connection for a bounded
//! time: both go away for a moment when they are updated. All calls are idempotent.

mod error;
mod job;
mod machine;
mod properties;
mod timedate;
mod unit;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::{Mutex, broadcast};
use tokio::task::JoinSet;
use tokio::time::Instant;
use zbus::connection::Builder;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream};

pub use error::{SystemdError, is_away, is_not_found};
pub use job::{UnitJob, UnitJobOutcome};
pub use machine::{Machine, MachineEvent, MachineEvents};
pub use properties::Properties;
pub use unit::{KillWhom, ListedUnit, ServiceEnd, UnitState, transient_property};

use error::describe;
use job::JobSignal;

pub use zbus::{OwnedVariant, Variant};

const SYSTEMD: &str = "org.freedesktop.systemd1";
const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// The number of job signals kept for a slow waiter.
const JOB_SIGNALS: usize = 1024;
/// The pause before the first repetition of a call; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The time limits of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// The time limit for an answer: systemd is busy while it reloads.
    pub answer: Duration,
    /// How long D-Bus or systemd may be unreachable before that is an error.
    pub away: Duration,
}

/// The client of systemd and systemd-machined. Clones share one connection, which is made when it is first needed, and
/// again after it broke. Needs tokio with I/O and time.
#[derive(Debug, Clone)]
pub struct Systemd {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The address of the bus, if it isn't the system bus.
    address: Option<String>,
    patience: Patience,
    link: Mutex<Option<Link>>,
    /// Signals for callers that wait for jobs. A slow one misses some, and queries the unit instead.
    jobs: broadcast::Sender<JobSignal>,
}

/// A connection, and the task that receives its job signals.
#[derive(Debug)]
struct Link {
    connection: Connection,
    listener: Option<JoinSet<()>>,
}

impl Systemd {
    /// Returns the client on the system bus; nothing is connected yet.
    #[must_use]
    pub fn new(patience: Patience) -> Self {
        Self::with(None, patience)
    }

    /// Returns the client on the bus at this address (D-Bus specification, "Server addresses"); nothing is connected yet.
    #[must_use]
    pub fn at(address: impl Into<String>, patience: Patience) -> Self {
        Self::with(Some(address.into()), patience)
    }

    fn with(address: Option<String>, patience: Patience) -> Self {
        Self {
            shared: Arc::new(Shared {
                address,
                patience,
                link: Mutex::default(),
                jobs: broadcast::Sender::new(JOB_SIGNALS),
            }),
        }
    }

    /// Closes the connection; the next call makes another.
    pub async fn disconnect(&self) {
        *self.shared.link.lock().await = None;
        // Callers that wait for a job get no more signals.
        let _ = self.shared.jobs.send(JobSignal::Lost);
    }

    /// Returns a new connection, for listening.
    async fn connect(&self) -> zbus::Result<Connection> {
        let builder = match &self.shared.address {
            Some(address) => Builder::address(address.as_str()),
            None => Builder::system(),
        };
        builder.build().await
    }

    /// Returns the shared connection.
    async fn connection(&self) -> zbus::Result<Connection> {
        let mut link = self.shared.link.lock().await;
        if let Some(link) = link.as_ref().filter(|link| !link.connection.is_closed()) {
            return Ok(link.connection.clone());
        }
        let connection = self.connect().await?;
        *link = Some(Link {
            connection: connection.clone(),
            listener: None,
        });
        Ok(connection)
    }

    /// Starts receiving job signals from the shared connection, unless that was done before.
    async fn listen_to_jobs(&self) -> zbus::Result<()> {
        let connection = self.connection().await?;
        let mut link = self.shared.link.lock().await;
        let Some(link) = link.as_mut().filter(|link| link.listener.is_none()) else {
            return Ok(());
        };
        // Once for all jobs, since subscribing and unsubscribing would cost five more calls per job; and by one task,
        // since a stream that is not read blocks all others.
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(SYSTEMD)
            .interface(MANAGER)
            .member("JobRemoved")
            .build()?;
        let mut messages = MessageStream::for_match_rule(rule, &connection, None).await?;
        let jobs = self.shared.jobs.clone();
        let mut listener = JoinSet::new();
        listener.spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                // Fails if no caller waits for a job, which is not an error.
                let _ = JobSignal::of(&message).map(|signal| jobs.send(signal));
            }
            let _ = jobs.send(JobSignal::Lost);
        });
        link.listener = Some(listener);
        Ok(())
    }

    /// Makes a call, and repeats it over another connection while D-Bus or the called service is unreachable.
    async fn call<T, F>(&self, what: &str, call: impl Fn(Connection) -> F) -> Result<T, SystemdError>
    where
        F: Future<Output = zbus::Result<T>>,
    {
        let Patience { answer, away } = self.shared.patience;
        let deadline = Instant::now() + away;
        let mut pause = FIRST_PAUSE;
        let what = || what.to_owned();
        loop {
            let attempt = async { call(self.connection().await?).await };
            let error = match tokio::time::timeout(answer, attempt).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error,
                Err(_) => {
                    return Err(SystemdError::NoAnswer {
                        what: what(),
                        after: answer,
                    });
                }
            };
            if !is_away(&error) {
                return Err(SystemdError::Refused {
                    what: what(),
                    said: describe(&error),
                    source: error,
                });
            }
            self.disconnect().await;
            if Instant::now() + pause > deadline {
                return Err(SystemdError::Away {
                    what: what(),
                    after: away,
                    source: error,
                });
            }
            tracing::debug!(%error, what = what(), "D-Bus or systemd is unreachable");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

/// Encodes the name of a unit or a machine for its D-Bus path: everything but letters and digits becomes `_` and two
/// hexadecimal digits (sd_bus_path_encode(3)).
fn path_part(name: &str) -> String {
    let mut part = String::new();
    for (at, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit()) {
            part.push(char::from(byte));
        } else {
            part.push_str(&format!("_{byte:02x}"));
        }
    }
    part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_a_part_of_a_path_as_systemd_writes_it() {
        assert_eq!(
            path_part("container@web-1.service"),
            "container_40web_2d1_2eservice"
        );
        assert_eq!(path_part("1web"), "_31web");
    }
}
