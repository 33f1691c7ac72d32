//! Makes this agent the active one of the hub: two agents at once would answer leaves differently, and overwrite each other's
//! documents. The others wait.
//!
//! The agent may write until [`MAY_WRITE`] after its last renewal began, and another one takes over when it has seen no renewal for
//! [`AGENT_SECONDS`], by its own clock: so neither depends on what the clocks say.

use std::time::Duration;

use jiff::Timestamp;
use leaf_bus::hub::{Allowed, Hub, Registry};
use leaf_bus::stream::StreamError;
use leaf_core::error::chain;
use leaf_core::fleet::{AGENT_SECONDS, ActiveAgent};
use leaf_core::id::InstanceId;
use leaf_host::notify;
use tokio::time::Instant;
use uuid::Uuid;

use crate::process;

/// How often the active agent renews its document.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// The pause after an error, and between two looks of one that waits.
const PAUSE: Duration = Duration::from_millis(500);
/// How long after the beginning of a renewal the agent may write.
const MAY_WRITE: Duration = Duration::from_secs(8);
/// How long the end of the agent waits for its document to be stored.
const RELEASE_WITHIN: Duration = Duration::from_secs(2);

/// This agent, which is active.
#[derive(Debug)]
pub(crate) struct Active {
    hub: Hub,
    registry: Registry,
    document: ActiveAgent,
    /// The number of the document.
    sequence: u64,
}

/// Another agent is active.
#[derive(Debug, thiserror::Error)]
#[error(
    "another hub agent has become active: instance {} on {}; this one ends, and waits after its next start",
    .0.instance, .0.hostname
)]
pub(crate) struct Replaced(Box<ActiveAgent>);

impl Active {
    /// Waits until no other agent is active, and makes this one the active one.
    pub(crate) async fn take(hub: &Hub, registry: &Registry) -> Self {
        hub.allow(Allowed::Never);
        let now = Timestamp::now();
        let mut active = Self {
            hub: hub.clone(),
            registry: registry.clone(),
            document: ActiveAgent {
                instance: InstanceId(Uuid::now_v7()),
                hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                since: now,
                renewed: now,
                process: process::own(),
                released: false,
            },
            sequence: 0,
        };
        let (mut waiting, mut complaint) = (Waiting::default(), String::new());
        loop {
            let why = match active.registry.active().await {
                Ok(found) => match waiting.decide(found, Instant::now()) {
                    Ok(after) => {
                        active.sequence = after;
                        active.document.since = Timestamp::now();
                        match active.renew().await {
                            Ok(()) => return active,
                            Err(error) => chain(&error),
                        }
                    }
                    Err(other) => format!(
                        "another hub agent is active: instance {} on {}, since {}; this one waits until it ends",
                        other.instance, other.hostname, other.since
                    ),
                },
                Err(error) => chain(&error),
            };
            notify::not_ready(&format!("not ready: {why}"));
            if why != complaint {
                tracing::warn!(why, "not active");
                complaint = why;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Renews the document as long as the agent runs.
    ///
    /// # Errors
    /// [`Replaced`] if another agent is active.
    pub(crate) async fn keep(&mut self) -> anyhow::Error {
        let mut complaint = String::new();
        loop {
            match self.renew().await {
                Ok(()) => {
                    complaint.clear();
                    tokio::time::sleep(RENEW_EVERY).await;
                    continue;
                }
                // The answer to the last renewal was lost, the hub's store is another one, or another agent took over.
                Err(StreamError::WrongLastSequence { .. }) => match self.registry.active().await {
                    Ok(Some((Some(other), _))) if other.instance != self.document.instance => {
                        self.hub.allow(Allowed::Never);
                        return Replaced(Box::new(other)).into();
                    }
                    Ok(found) => self.sequence = found.map_or(0, |(_, sequence)| sequence),
                    Err(error) => complain(&error, &mut complaint),
                },
                Err(error) => complain(&error, &mut complaint),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Ends this agent's time, so that the next one need not wait.
    pub(crate) async fn release(mut self) {
        self.hub.allow(Allowed::Never);
        self.document.released = true;
        let put = self.registry.put_active(&self.document, self.sequence);
        if !matches!(tokio::time::timeout(RELEASE_WITHIN, put).await, Ok(Ok(_))) {
            tracing::warn!("can't say that this agent ends: another one waits for {AGENT_SECONDS} s");
        }
    }

    async fn renew(&mut self) -> Result<(), StreamError> {
        let began = Instant::now();
        self.document.renewed = Timestamp::now();
        self.sequence = self.registry.put_active(&self.document, self.sequence).await?;
        self.hub.allow(Allowed::Until(began + MAY_WRITE));
        Ok(())
    }
}

fn complain(error: &StreamError, complaint: &mut String) {
    let why = chain(error);
    if *complaint != why {
        tracing::warn!(
            error = why,
            "can't renew the document of the active agent: nothing is written until that succeeds"
        );
        *complaint = why;
    }
}

/// What an agent that waits has seen of the active one.
#[derive(Debug, Default)]
struct Waiting {
    /// The number of its document, and when it was seen first.
    seen: Option<(u64, Instant)>,
}

impl Waiting {
    /// Returns the number of the document to replace, or the agent that is waited for.
    fn decide(
        &mut self,
        found: Option<(Option<ActiveAgent>, u64)>,
        now: Instant,
    ) -> Result<u64, Box<ActiveAgent>> {
        let (other, sequence) = match found {
            None => return Ok(0),
            Some((None, sequence)) => return Ok(sequence),
            Some((Some(other), sequence)) => (other, sequence),
        };
        let since = match self.seen {
            Some((seen, since)) if seen == sequence => since,
            _ => {
                self.seen = Some((sequence, now));
                now
            }
        };
        let is_gone = other.released
            || other.process.as_deref().is_some_and(process::has_ended)
            || now.duration_since(since) >= Duration::from_secs(AGENT_SECONDS);
        if is_gone {
            Ok(sequence)
        } else {
            Err(Box::new(other))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(process: Option<String>) -> ActiveAgent {
        ActiveAgent {
            instance: InstanceId(Uuid::from_u128(1)),
            hostname: "hub".to_owned(),
            version: "1".to_owned(),
            since: Timestamp::UNIX_EPOCH,
            renewed: Timestamp::UNIX_EPOCH,
            process,
            released: false,
        }
    }

    #[test]
    fn an_agent_waits_for_the_active_one_as_long_as_that_renews_its_document() {
        let mut waiting = Waiting::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(waiting.decide(None, at(0)), Ok(0));
        let other = document(process::own());
        for (sequence, seconds) in [(4, 0), (4, 9), (5, 12), (5, 21)] {
            let decided = waiting.decide(Some((Some(other.clone()), sequence)), at(seconds));
            assert_eq!(decided, Err(Box::new(other.clone())), "{sequence} {seconds}");
        }
        assert_eq!(waiting.decide(Some((Some(other), 5)), at(22)), Ok(5));
        // One that can't be read is replaced, under its number.
        assert_eq!(waiting.decide(Some((None, 6)), at(22)), Ok(6));
        assert!(MAY_WRITE < Duration::from_secs(AGENT_SECONDS));
    }

    #[test]
    fn one_that_was_stopped_is_not_waited_for() {
        let released = ActiveAgent {
            released: true,
            ..document(process::own())
        };
        let decided = Waiting::default().decide(Some((Some(released), 7)), Instant::now());
        assert_eq!(decided, Ok(7));
    }
}
