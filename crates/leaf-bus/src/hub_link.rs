//! A leaf's requests to the hub agent: claims on its name, leave to fill the hub's copy, and events of it. `docs/fleet.md` is the contract.

use std::collections::VecDeque;
use std::time::Duration;

use leaf_core::event::EventRecord;
use leaf_core::fleet::work::{WorkReply, WorkReport};
use leaf_core::fleet::{Claim, ClaimReply, CopyReply, Fill, FillReply, ReadCopy, Release, Released};
use leaf_core::id::{InstanceId, LeafName};
use leaf_core::json::to_json;
use leaf_core::subject;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::level::Mode;
use crate::link::Link;
use crate::settings::{ConnectError, ConnectSettings};
use crate::stream_error::RequestError;

/// How long the agent may take to answer a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why the hub agent gave no answer that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HubError {
    /// There is no connection to the leaf's own server.
    #[error("not connected to the leaf's NATS server")]
    Disconnected,
    /// Nobody hears the request.
    #[error(
        "no hub agent answers: the link to the hub is down, leaf-hub does not run there, or the hub does not know this leaf's user"
    )]
    NoAgent,
    /// The request was heard, and no answer came in time.
    #[error("the hub agent did not answer {what} within {} s", ANSWER_WITHIN.as_secs())]
    Unanswered {
        /// The request.
        what: String,
    },
    /// The user of the link may not send the request or receive the answer.
    #[error("the NATS user of the link to the hub lacks a permission: {what}")]
    Refused {
        /// The server's error.
        what: String,
    },
    /// The answer has another form: that of a newer agent, or of another program.
    #[error(
        "the hub agent's answer to {what} can't be read ({why}): update leafd if the agent is newer, and keep other \
        programs from answering in its place"
    )]
    Unreadable {
        /// The request.
        what: String,
        /// The error.
        why: String,
    },
    /// The hub's copy has no event with this number after the one before it.
    #[error("the hub's copy has event {found} where {expected} follows")]
    NotInOrder {
        /// The next number.
        expected: u64,
        /// The number that was read.
        found: u64,
    },
    /// The hub's copy has events that the agent can't return.
    #[error("the hub's copy can't be returned from event {from} on: {why}")]
    UnreadableCopy {
        /// The first number that was asked for.
        from: u64,
        /// The agent's reason, which names the event.
        why: String,
    },
    /// The request could not be sent.
    #[error("can't send {what} to the hub: {why}")]
    Send {
        /// The request.
        what: String,
        /// The error.
        why: String,
    },
}

impl HubError {
    /// Returns whether this means that the hub can't be reached at the moment, and says nothing of it otherwise.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Disconnected | Self::NoAgent | Self::Unanswered { .. })
    }
}

/// A leaf's connection as the user of the account `LINK` of its own server, whose subjects cross to the hub. Cheap to
/// clone; clones share it.
#[derive(Debug, Clone)]
pub struct HubLink {
    link: Link,
    leaf: LeafName,
}

impl HubLink {
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Returns a connection that is established later, and retried for ever. The settings' inbox prefix is set to
    /// [`subject::leaf_inbox_prefix`], below which the agent replies.
    ///
    /// # Errors
    /// [`ConnectError`] if the settings can't be used.
    pub async fn open(settings: &ConnectSettings, leaf: &LeafName) -> Result<Self, ConnectError> {
        let settings = ConnectSettings {
            inbox_prefix: subject::leaf_inbox_prefix(leaf),
            ..settings.clone()
        };
        Ok(Self {
            link: Link::open(&settings, Mode::Forever).await?,
            leaf: leaf.clone(),
        })
    }

    /// The leaf.
    #[must_use]
    pub fn leaf(&self) -> &LeafName {
        &self.leaf
    }

    /// Claims the leaf's name, or renews the claim.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn claim(&self, claim: &Claim) -> Result<ClaimReply, HubError> {
        self.ask(&subject::hub_claim(&self.leaf), claim).await
    }

    /// Gives a claim back, and returns whether the instance had one.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn release(&self, release: &Release) -> Result<bool, HubError> {
        let reply: Released = self.ask(&subject::hub_release(&self.leaf), release).await?;
        Ok(reply.released)
    }

    /// Asks from where on the hub's copy takes events that it lacks.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn fill(&self, instance: InstanceId) -> Result<FillReply, HubError> {
        self.ask(&subject::hub_fill(&self.leaf), &Fill { instance }).await
    }

    /// Tells the agent of the leaf's works, and returns its answers.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn tell_works(&self, report: &WorkReport) -> Result<WorkReply, HubError> {
        self.ask(&subject::hub_work(&self.leaf), report).await
    }

    /// Reads the hub's copy of the leaf's events from this number on, in order and page by page, up to its last event at
    /// the time of reading.
    #[must_use]
    pub fn read_copy(&self, from: u64) -> CopyReader {
        CopyReader {
            hub: self.clone(),
            next: from.max(1),
            page: VecDeque::new(),
            done: false,
        }
    }

    /// Closes the connection for all clones, within `limit`.
    pub async fn close(self, limit: Duration) {
        self.link.close(limit).await;
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        subject: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, HubError> {
        let what = || subject.to_owned();
        let reply = self
            .link
            .request(subject, None, to_json(body).into(), ANSWER_WITHIN)
            .await
            .map_err(|error| match error {
                RequestError::NoResponders => HubError::NoAgent,
                RequestError::TimedOut => HubError::Unanswered { what: what() },
                RequestError::Disconnected => HubError::Disconnected,
                RequestError::Forbidden(text) => HubError::Refused { what: text },
                RequestError::TooLarge(why) | RequestError::Other(why) => {
                    HubError::Send { what: what(), why }
                }
            })?;
        serde_json::from_slice(&reply.payload).map_err(|error| HubError::Unreadable {
            what: what(),
            why: error.to_string(),
        })
    }
}

/// Events of the hub's copy, in order; see [`HubLink::read_copy`].
#[derive(Debug)]
pub struct CopyReader {
    hub: HubLink,
    next: u64,
    page: VecDeque<EventRecord>,
    done: bool,
}

impl CopyReader {
    /// Returns the next event, or `None` after the last one. After an error it may be called again, and asks for the same
    /// events once more.
    ///
    /// # Errors
    /// [`HubError`]; [`HubError::NotInOrder`] if the copy lacks the event.
    pub async fn next(&mut self) -> Result<Option<EventRecord>, HubError> {
        if self.page.is_empty() && !self.done {
            self.fetch().await?;
        }
        Ok(self.page.pop_front())
    }

    async fn fetch(&mut self) -> Result<(), HubError> {
        let subject = subject::hub_copy_read(&self.hub.leaf);
        let page = match self.hub.ask(&subject, &ReadCopy { from: self.next }).await? {
            CopyReply::Page(page) => page,
            CopyReply::Unreadable(refused) => {
                return Err(HubError::UnreadableCopy {
                    from: self.next,
                    why: refused.unreadable,
                });
            }
        };
        let mut next = self.next;
        let mut events = VecDeque::with_capacity(page.events.len());
        for event in page.events {
            if event.sequence != next {
                return Err(HubError::NotInOrder {
                    expected: next,
                    found: event.sequence,
                });
            }
            next += 1;
            events.push_back(event.into());
        }
        self.done = events.is_empty() || next > page.last;
        self.next = next;
        self.page = events;
        Ok(())
    }
}
