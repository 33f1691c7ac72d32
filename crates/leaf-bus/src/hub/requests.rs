//! The requests of leaves to the agent.

use std::collections::BTreeSet;

use async_nats::Message;
use futures::StreamExt as _;
use leaf_core::event::header;
use leaf_core::fleet::fact::FleetFact;
use leaf_core::fleet::witness::WitnessRequest;
use leaf_core::fleet::work::WorkReport;
use leaf_core::fleet::{Claim, Fill, ReadCopy, Release};
use leaf_core::id::LeafName;
use leaf_core::json::to_json;
use leaf_core::subject;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Hub;
use crate::link::Link;
use crate::parts;
use crate::stream_error::StreamError;

/// The longest reply subject that the agent answers, in bytes.
const LONGEST_REPLY: usize = 256;

/// A request of a leaf.
#[derive(Debug)]
pub struct LeafRequest {
    /// The leaf of its subject, which only this leaf's user may publish to.
    pub leaf: LeafName,
    /// The request's kind and arguments.
    pub asked: Asked,
    reply: async_nats::Subject,
    link: Link,
}

/// The kinds of requests of leaves.
#[derive(Debug)]
pub enum Asked {
    /// Its name.
    Claim(Box<Claim>),
    /// The end of its claim.
    Release(Release),
    /// Whether it may send what its copy lacks.
    Fill(Fill),
    /// Events of its copy.
    ReadCopy(ReadCopy),
    /// The signature of a witness.
    Witness(WitnessRequest),
    /// The agent's answers about the works of a report.
    Work(Box<WorkReport>),
}

/// Receives the requests of leaves.
#[derive(Debug)]
pub struct Requests {
    link: Link,
    subscriber: async_nats::Subscriber,
    /// The leaves whose requests were refused, and that was logged.
    refused: BTreeSet<LeafName>,
}

impl Hub {
    /// Subscribes to the requests of leaves.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn requests(&self) -> Result<Requests, StreamError> {
        Ok(Requests {
            subscriber: self.links.subscribe(subject::hub_requests()).await?,
            link: self.links.clone(),
            refused: BTreeSet::new(),
        })
    }
}

/// Receives the names of leaves that something happened to which a person's command has done.
#[derive(Debug)]
pub struct DoneTo {
    subscriber: async_nats::Subscriber,
    fact: FleetFact,
}

impl Hub {
    /// Subscribes to the deletions of copies, which begin anew.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn resets(&self) -> Result<DoneTo, StreamError> {
        self.done(FleetFact::Reset).await
    }

    /// Subscribes to the removals of leaves from the registry.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn forgotten(&self) -> Result<DoneTo, StreamError> {
        self.done(FleetFact::Forgotten).await
    }

    async fn done(&self, fact: FleetFact) -> Result<DoneTo, StreamError> {
        let subject = subject::fleet_facts_of_all(fact.as_str());
        Ok(DoneTo {
            subscriber: self.fleet.subscribe(subject).await?,
            fact,
        })
    }
}

impl DoneTo {
    /// Returns the next leaf.
    ///
    /// # Errors
    /// [`StreamError::Disconnected`] when there will be no more.
    pub async fn next(&mut self) -> Result<LeafName, StreamError> {
        loop {
            let message = self.subscriber.next().await.ok_or(StreamError::Disconnected)?;
            // A leaf that floods its copy can have the hub's server send another message here.
            let kind = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get(header::TYPE));
            if kind.is_some_and(|kind| kind.as_str() == self.fact.kind())
                && let Some(leaf) = subject::leaf_of(&message.subject)
            {
                return Ok(leaf);
            }
        }
    }
}

impl Requests {
    /// Returns the next request that may be answered. Others are ignored: the first one of each leaf is logged.
    ///
    /// # Errors
    /// [`StreamError::Disconnected`] when there will be no more.
    pub async fn next(&mut self) -> Result<LeafRequest, StreamError> {
        loop {
            let message = self.subscriber.next().await.ok_or(StreamError::Disconnected)?;
            let Some(leaf) = subject::leaf_of(&message.subject) else {
                continue;
            };
            match read(&leaf, &message) {
                Ok((asked, reply)) => {
                    return Ok(LeafRequest {
                        leaf,
                        asked,
                        reply,
                        link: self.link.clone(),
                    });
                }
                Err(why) => {
                    if self.refused.insert(leaf.clone()) {
                        tracing::warn!(%leaf, subject = %message.subject, why, "a request of a leaf is ignored");
                    }
                }
            }
        }
    }
}

fn read(leaf: &LeafName, message: &Message) -> Result<(Asked, async_nats::Subject), String> {
    let reply = message.reply.clone().ok_or("it has no reply subject")?;
    // With any other one the agent would publish where the leaf may not.
    if !subject::is_inbox_of_leaf(&reply, leaf) {
        return Err("its reply subject is not an inbox of this leaf".to_owned());
    }
    if reply.len() > LONGEST_REPLY {
        return Err(format!("its reply subject has {} bytes", reply.len()));
    }
    let text = message.subject.as_str();
    let asked = if text == subject::hub_claim(leaf) {
        Asked::Claim(Box::new(parse(message)?))
    } else if text == subject::hub_release(leaf) {
        Asked::Release(parse(message)?)
    } else if text == subject::hub_fill(leaf) {
        Asked::Fill(parse(message)?)
    } else if text == subject::hub_copy_read(leaf) {
        Asked::ReadCopy(parse(message)?)
    } else if text == subject::hub_witness(leaf) {
        Asked::Witness(parse(message)?)
    } else if text == subject::hub_work(leaf) {
        Asked::Work(Box::new(parse(message)?))
    } else {
        return Err("there is no such request".to_owned());
    };
    Ok((asked, reply))
}

fn parse<T: DeserializeOwned>(message: &Message) -> Result<T, String> {
    serde_json::from_slice(&message.payload).map_err(|error| format!("its body can't be read: {error}"))
}

impl LeafRequest {
    /// The largest body of a reply, in bytes.
    #[must_use]
    pub fn reply_room(&self) -> usize {
        parts::room(self.link.client().max_payload())
    }

    /// Sends the reply.
    ///
    /// # Errors
    /// [`StreamError`] if it can't be sent.
    pub async fn reply(self, reply: &(impl Serialize + Sync)) -> Result<(), StreamError> {
        let sent = self
            .link
            .client()
            .publish(self.reply, to_json(reply).into())
            .await;
        sent.map_err(|error| StreamError::Server {
            code: 0,
            description: format!("can't send the reply: {error}"),
        })
    }
}
