//! Reads a leaf's stream in order and follows it, page by page and without a consumer: a user who may create consumers
//! can make the server write anywhere in the streams' account, so readers may not.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use leaf_core::event::EventRecord;
use leaf_core::id::LeafName;
use leaf_core::subject;

use crate::client_error::ClientError;
use crate::link::Link;
use crate::pages::Pages;
use crate::stream_error::StreamError;

/// How long to wait after an error.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// When to read again without a message: soon after the last event, since a message may be heard before it is stored,
/// then after a pause that doubles. Live messages are hints only, and may be missed.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The first event of a leaf to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventsFrom {
    /// The event with this sequence number, or the first one after it that the stream still has.
    Sequence(u64),
    /// The first event that the stream still has.
    Beginning,
    /// The next event that is published.
    New,
}

struct Follower {
    link: Link,
    leaf: LeafName,
    stream: String,
    /// The next sequence number; `None` until the stream's last one is known.
    next: Option<u64>,
    pages: Option<Pages>,
    /// The live messages, subscribed only while there is nothing to read, so that they can't pile up behind a slow
    /// reader.
    hints: Option<async_nats::Subscriber>,
    pause: Duration,
    ended: bool,
}

pub(crate) fn events(
    link: Link,
    leaf: LeafName,
    from: EventsFrom,
) -> BoxStream<'static, Result<EventRecord, ClientError>> {
    let follower = Follower {
        link,
        stream: subject::event_stream(&leaf),
        leaf,
        next: match from {
            EventsFrom::Sequence(sequence) => Some(sequence.max(1)),
            EventsFrom::Beginning => Some(1),
            EventsFrom::New => None,
        },
        pages: None,
        hints: None,
        pause: FIRST_PAUSE,
        ended: false,
    };
    futures::stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await?;
        follower.ended = item.is_err();
        Some((item, follower))
    })
    .boxed()
}

impl Follower {
    async fn next(&mut self) -> Option<Result<EventRecord, ClientError>> {
        if self.ended {
            return None;
        }
        loop {
            match self.read().await {
                Ok(Some(record)) => {
                    self.pause = FIRST_PAUSE;
                    return Some(Ok(record));
                }
                Ok(None) => {}
                // Temporary errors: a lost connection, or a server that is just starting.
                Err(
                    StreamError::Disconnected
                    | StreamError::NoJetStream { .. }
                    | StreamError::Unanswered { .. }
                    | StreamError::Server { .. },
                ) => {
                    self.pages = None;
                    self.hints = None;
                    tokio::time::sleep(RETRY_PAUSE).await;
                    self.link.connected().await;
                }
                Err(error) => return Some(Err(error.into())),
            }
        }
    }

    /// Returns the next event, or `None` after a pause without one.
    async fn read(&mut self) -> Result<Option<EventRecord>, StreamError> {
        let next = match self.next {
            Some(next) => next,
            None => self.link.stream_info(&self.stream).await?.state.last_sequence + 1,
        };
        self.next = Some(next);
        let pages = self
            .pages
            .get_or_insert_with(|| self.link.read_from(&self.stream, next, None));
        if let Some(record) = pages.next().await? {
            self.next = Some(record.sequence + 1);
            return Ok(Some(record));
        }
        self.pages = None;
        match &mut self.hints {
            // The server processes this before the next request, so no event is missed in between.
            None => self.hints = Some(self.link.subscribe(subject::events_of(&self.leaf)).await?),
            Some(hints) => {
                match tokio::time::timeout(self.pause, hints.next()).await {
                    Ok(_) => self.pause = FIRST_PAUSE,
                    Err(_) => self.pause = (self.pause * 2).min(LONGEST_PAUSE),
                }
                self.hints = None;
            }
        }
        Ok(None)
    }
}
