//! Reading a leaf's stream in order and following it: an ordered consumer, made again wherever it broke.

use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::{self, consumer::Consumer};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use leaf_core::event::EventRecord;
use leaf_core::id::LeafName;
use leaf_core::subject;

use crate::client_error::ClientError;
use crate::jetstream::to_record;
use crate::link::Link;
use crate::stream_error::StreamError;

/// How long to wait before a broken consumer is made again.
const AGAIN: Duration = Duration::from_millis(500);

/// Where to begin with the events of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventsFrom {
    /// With this sequence number, or the first after it that the stream still has.
    Sequence(u64),
    /// With the first that the stream still has.
    Beginning,
    /// With the next that comes.
    New,
}

struct Follower {
    link: Link,
    stream: String,
    /// The next sequence number; unknown until the stream was asked for its last.
    next: Option<u64>,
    messages: Option<pull::Ordered>,
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
        next: match from {
            EventsFrom::Sequence(sequence) => Some(sequence.max(1)),
            EventsFrom::Beginning => Some(1),
            EventsFrom::New => None,
        },
        messages: None,
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
            let Some(messages) = &mut self.messages else {
                match self.open().await {
                    Ok(messages) => self.messages = Some(messages),
                    // What passes by itself: the connection, or a server that is just starting.
                    Err(
                        StreamError::Disconnected
                        | StreamError::Unanswered { .. }
                        | StreamError::Server { .. },
                    ) => {
                        tokio::time::sleep(AGAIN).await;
                        self.link.connected().await;
                    }
                    Err(error) => return Some(Err(error.into())),
                }
                continue;
            };
            match messages.next().await {
                Some(Ok(message)) => {
                    let Ok(info) = message.info() else { continue };
                    let sequence = info.stream_sequence;
                    if self.next.is_some_and(|next| sequence < next) {
                        continue;
                    }
                    self.next = Some(sequence + 1);
                    let headers = message.headers.clone().unwrap_or_default();
                    return Some(Ok(to_record(
                        sequence,
                        &message.subject,
                        &headers,
                        &message.payload,
                    )));
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, stream = self.stream, "following the stream again");
                    self.messages = None;
                    tokio::time::sleep(AGAIN).await;
                    self.link.connected().await;
                }
                None => self.messages = None,
            }
        }
    }

    async fn open(&mut self) -> Result<pull::Ordered, StreamError> {
        // Asked first, since its errors are told apart.
        let info = self.link.stream_info(&self.stream).await?;
        let next = *self.next.get_or_insert(info.state.last_sequence + 1);
        let client = self.link.client().clone();
        let context = match self.link.domain() {
            Some(domain) => jetstream::with_domain(client, domain),
            None => jetstream::new(client),
        };
        let server = |e: &dyn std::fmt::Display| StreamError::Server {
            code: 0,
            description: e.to_string(),
        };
        let stream = context
            .get_stream_no_info(&self.stream)
            .await
            .map_err(|e| server(&e))?;
        let config = pull::OrderedConfig {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: next },
            ..Default::default()
        };
        let consumer: Consumer<pull::OrderedConfig> =
            stream.create_consumer(config).await.map_err(|e| server(&e))?;
        consumer.messages().await.map_err(|e| server(&e))
    }
}
