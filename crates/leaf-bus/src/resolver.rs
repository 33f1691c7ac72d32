//! The account resolvers of a hub's servers, which keep the JWTs of accounts, as a user of the system account asks them
//! (`DirAccResolver` of nats-server). `docs/keys.md` says in which order.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;

use crate::link::Link;
use crate::settings::{ConnectError, ConnectSettings};
use crate::stream_error::RequestError;

/// The caller whose inbox the replies go to: the name of the user that pushes.
pub const PUSHER: &str = "fleet-push";

/// Why the servers can't be asked, or don't take a JWT.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// There is no connection.
    #[error("can't connect to the hub's server")]
    Connect(#[from] ConnectError),
    /// The servers keep accounts in their configuration or in memory.
    #[error(
        "the hub's servers take no JWTs of accounts: their configuration needs the resolver of hub/accounts.conf (`type: full`)"
    )]
    NoResolver,
    /// Some servers did not answer in time.
    #[error(
        "{answered} of {servers} servers of the hub answered {what} in time: those that are away take the newest JWT of the others \
         when they are back, if they have a route to them"
    )]
    Silent {
        /// The request.
        what: &'static str,
        /// How many answered.
        answered: usize,
        /// How many there are.
        servers: usize,
    },
    /// A server refused a JWT.
    #[error("a server of the hub refused the JWT: {0}")]
    Refused(String),
    /// The request failed.
    #[error("{what} failed: {why}")]
    Failed {
        /// The request.
        what: &'static str,
        /// The error.
        why: String,
    },
}

/// A connection in the system account.
#[derive(Debug)]
pub struct Resolvers {
    link: Link,
    limit: Duration,
    times: Vec<Timestamp>,
}

/// A server's answer to `$SYS.REQ.SERVER.PING.STATSZ`.
#[derive(Deserialize)]
struct Statistics {
    server: Server,
    statsz: Statsz,
}

#[derive(Deserialize)]
struct Server {
    id: String,
    /// The server's own time.
    time: Timestamp,
}

#[derive(Deserialize)]
struct Statsz {
    /// The servers that this one knows, itself among them.
    #[serde(default)]
    active_servers: usize,
}

/// A server's answer to `$SYS.REQ.CLAIMS.UPDATE`.
#[derive(Deserialize)]
struct Update {
    #[serde(default)]
    error: Option<UpdateError>,
}

#[derive(Deserialize)]
struct UpdateError {
    #[serde(default)]
    description: String,
}

impl Resolvers {
    /// Connects, and counts the servers. `limit` is the time for each request.
    ///
    /// # Errors
    /// [`ResolverError`].
    pub async fn connect(settings: &ConnectSettings, limit: Duration) -> Result<Self, ResolverError> {
        let link = Link::open_once(settings, limit).await?;
        let mut resolvers = Self {
            link,
            limit,
            times: Vec::new(),
        };
        resolvers.times = resolvers.count().await?;
        Ok(resolvers)
    }

    /// How many servers the hub has.
    #[must_use]
    pub fn servers(&self) -> usize {
        self.times.len()
    }

    /// The times of the servers' clocks when they were counted.
    #[must_use]
    pub fn times(&self) -> &[Timestamp] {
        &self.times
    }

    /// Returns the JWT of an account that each server has; of one that has none, nothing.
    ///
    /// # Errors
    /// [`ResolverError`].
    pub async fn lookup(&self, account: &str) -> Result<Vec<String>, ResolverError> {
        let subject = format!("$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP");
        let answers = self
            .all(&subject, Bytes::new(), "the look-up of an account")
            .await?;
        let texts = answers
            .into_iter()
            .map(|answer| String::from_utf8_lossy(&answer).into_owned());
        Ok(texts.filter(|jwt| !jwt.is_empty()).collect())
    }

    /// Gives each server the JWT of an account.
    ///
    /// # Errors
    /// [`ResolverError`], also if one of them refuses it.
    pub async fn push(&self, jwt: &str) -> Result<(), ResolverError> {
        let what = "the push of an account";
        let answers = self
            .all("$SYS.REQ.CLAIMS.UPDATE", Bytes::from(jwt.to_owned()), what)
            .await?;
        for answer in answers {
            let update: Update = read(&answer, what)?;
            if let Some(error) = update.error {
                return Err(ResolverError::Refused(error.description));
            }
        }
        Ok(())
    }

    /// Sends a request to all servers, and returns the answer of each.
    async fn all(&self, subject: &str, body: Bytes, what: &'static str) -> Result<Vec<Bytes>, ResolverError> {
        let mut replies = self
            .link
            .ask(subject, None, body)
            .await
            .map_err(|error| failed(error, what))?;
        let mut answers = Vec::new();
        while answers.len() < self.servers() {
            match replies.next(self.limit).await {
                Ok(message) => answers.push(message.payload),
                Err(RequestError::TimedOut) => {
                    return Err(ResolverError::Silent {
                        what,
                        answered: answers.len(),
                        servers: self.servers(),
                    });
                }
                Err(error) => return Err(failed(error, what)),
            }
        }
        Ok(answers)
    }

    /// Counts the servers, and returns the time of each: each says how many it knows.
    async fn count(&self) -> Result<Vec<Timestamp>, ResolverError> {
        let what = "the count of the servers";
        let mut replies = self
            .link
            .ask("$SYS.REQ.SERVER.PING.STATSZ", None, Bytes::new())
            .await
            .map_err(|error| failed(error, what))?;
        let (mut seen, mut known) = (BTreeMap::new(), 1);
        while seen.len() < known {
            match replies.next(self.limit).await {
                Ok(message) => {
                    let statistics: Statistics = read(&message.payload, what)?;
                    known = known.max(statistics.statsz.active_servers);
                    seen.insert(statistics.server.id, statistics.server.time);
                }
                Err(RequestError::TimedOut) => {
                    return Err(ResolverError::Silent {
                        what,
                        answered: seen.len(),
                        servers: known,
                    });
                }
                Err(error) => return Err(failed(error, what)),
            }
        }
        Ok(seen.into_values().collect())
    }
}

fn failed(error: RequestError, what: &'static str) -> ResolverError {
    match error {
        RequestError::NoResponders => ResolverError::NoResolver,
        other => ResolverError::Failed {
            what,
            why: format!("{other:?}"),
        },
    }
}

fn read<T: serde::de::DeserializeOwned>(answer: &[u8], what: &'static str) -> Result<T, ResolverError> {
    serde_json::from_slice(answer).map_err(|error| ResolverError::Failed {
        what,
        why: format!("the answer can't be read: {error}"),
    })
}
