//! Sends events of the leaf's own stream to the hub's copy again, where the copy lacks them.
//!
//! A [`Filler`] reads the stream with a consumer of its own and publishes each event in the account of the link, below the
//! subjects that the copy captures (`up_events_of` of [`leaf_core::subject`]). Header and body are passed on as the bytes that
//! are stored, so that the copy has the same; the fence of the copy, `Nats-Expected-Last-Sequence`, is in the header already.
//! An event costs leafd hardly more than its bytes being copied: this works below the NATS client, on [`crate::raw`].
//!
//! Whether the copy has stored an event is not known here: it acknowledges none. The caller asks where the copy ends, and
//! begins again with a new [`Filler`] where that is not what was sent.

mod copy;
mod error;
mod event;
mod pull;

use std::io;

use leaf_core::id::{InstanceId, LeafName};
use leaf_core::subject;
use serde_json::{Value, json};

use crate::jetstream::{API_TIMEOUT, read_answer};
use crate::raw::{Frame, Said, Session};
use crate::settings::ConnectSettings;
use crate::stream_error::StreamError;
use event::{Delivered, Events};
use pull::{Next, Pull};

pub use crate::raw::LoginError;
pub use copy::{FillCopy, NotFilled};
pub use error::{FillError, Side};

/// How many bytes are read at once.
const READ_AT_ONCE: usize = 256 * 1024;
/// From this size on, events that were read are written.
const WRITTEN_AT_ONCE: usize = 128 * 1024;
/// How long the server keeps the consumer without a request.
const KEPT_IDLE_NANOSECONDS: u64 = 30_000_000_000;

/// Sends events of the leaf's own stream to the hub's copy, as the bytes that are stored.
///
/// After an error, or where a future of [`send`](Self::send) was dropped, open a new one. So too after half a minute without a
/// `send`: by then the server has removed the consumer, and it may close connections that answer no ping.
pub struct Filler {
    streams: Session,
    link: Session,
    /// The stream, its consumer and where the JetStream API is.
    api: Api,
    /// The prefix of the subjects for replies, with its last dot.
    inbox: String,
    requests: u64,
    events: Events,
    /// The bytes that wait to be written to `link`.
    out: Vec<u8>,
}

/// The result of [`Filler::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The sequence number of the last event that was sent.
    pub last: u64,
    /// Whether the stream had no more.
    pub end: bool,
}

struct Api {
    prefix: String,
    domain: Option<String>,
    stream: String,
    consumer: String,
}

impl Api {
    fn subject(&self, what: &str) -> String {
        format!(
            "{}.CONSUMER.{what}.{}.{}",
            self.prefix, self.stream, self.consumer
        )
    }
}

impl Filler {
    /// Connects as leafd's user in the account of the streams and as that in the account of the link, and begins to read the
    /// leaf's stream. The first event that is sent will be `from`.
    ///
    /// # Errors
    /// [`FillError`]: a user is refused, the server has no such stream, or does not answer.
    pub async fn open(
        streams: &ConnectSettings,
        link: &ConnectSettings,
        leaf: &LeafName,
        instance: InstanceId,
        from: u64,
    ) -> Result<Self, FillError> {
        let session = async |side: Side, settings: &ConnectSettings| {
            let opened = Session::open(settings).await;
            opened.map_err(|source| FillError::Login { side, source })
        };
        let domain = streams.jetstream_domain.clone();
        let consumer = format!("fill-{}", uuid::Uuid::now_v7().simple());
        let from = from.max(1);
        let mut filler = Self {
            link: session(Side::Link, link).await?,
            streams: session(Side::Streams, streams).await?,
            inbox: format!("{}.{}.", streams.inbox_prefix, uuid::Uuid::now_v7().simple()),
            requests: 0,
            events: Events::new(leaf, instance, &consumer, from),
            out: Vec::with_capacity(2 * WRITTEN_AT_ONCE),
            api: Api {
                prefix: match &domain {
                    Some(domain) => format!("$JS.{domain}.API"),
                    None => "$JS.API".to_owned(),
                },
                domain,
                stream: subject::event_stream(leaf),
                consumer,
            },
        };
        filler.streams.frames.read_at_once(READ_AT_ONCE);
        let subscribe = format!("SUB {}* 1\r\n", filler.inbox);
        let refused = filler.streams.send(subscribe.as_bytes(), |_| {}).await;
        match refused.map_err(|error| lost(Side::Streams, error, "a subscription"))? {
            None => filler.create_consumer(from).await?,
            Some(said) => {
                let side = Side::Streams;
                return Err(FillError::Refused { side, said });
            }
        }
        Ok(filler)
    }

    /// Sends the next events: at most `events`, and up to `bytes` of them with what the server adds to each, some hundred
    /// bytes; one that is larger than that is sent alone. When this returns, the server has all of them.
    ///
    /// A server drops, without a word, what it can't store fast enough: when 10,000 messages or more wait for the stream of the
    /// copy (by its version, and `max_buffered_msgs`) or 128 MiB of them (`max_buffered_size`). The leaf's server closes its link
    /// to the hub when 64 MiB wait for that (`max_pending`). So the callers ask where the copy ends, and keep what is sent but not
    /// stored there below these.
    ///
    /// # Errors
    /// [`FillError`]. Of [`FillError::Gap`] and [`FillError::NotAnEvent`], what is before it in the stream is sent.
    pub async fn send(&mut self, events: usize, bytes: usize) -> Result<Sent, FillError> {
        let end = match self.pass_on(events.max(1), bytes.max(1)).await {
            Err(error) if !error.is_of_the_stream() => return Err(error),
            read => {
                self.settle().await?;
                read?
            }
        };
        Ok(Sent {
            last: self.events.last(),
            end,
        })
    }

    /// Deletes the consumer and closes both connections.
    pub async fn close(mut self) {
        // The server deletes it by itself where this fails.
        let _ = self.request(&self.api.subject("DELETE"), &json!({})).await;
        self.streams.close().await;
        self.link.close().await;
    }

    /// Makes the consumer: JetStream's API of consumers, ADR-15 and ADR-31 of NATS.
    async fn create_consumer(&mut self, from: u64) -> Result<(), FillError> {
        let body = json!({
            "stream_name": self.api.stream,
            "action": "create",
            "config": {
                "name": self.api.consumer,
                "description": "fills the hub's copy",
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": from,
                "ack_policy": "none",
                "replay_policy": "instant",
                "mem_storage": true,
                "num_replicas": 1,
                "max_waiting": 4,
                "inactive_threshold": KEPT_IDLE_NANOSECONDS,
            },
        });
        let answer = self.request(&self.api.subject("CREATE"), &body).await?;
        match answer.and_then(|answer| read_answer::<Value>(&answer, &self.api.stream)) {
            Ok(_) => Ok(()),
            Err(source) => Err(FillError::NoConsumer {
                stream: self.api.stream.clone(),
                source,
            }),
        }
    }

    /// Sends a request to the JetStream API and returns its answer.
    async fn request(
        &mut self,
        subject: &str,
        body: &Value,
    ) -> Result<Result<Vec<u8>, StreamError>, FillError> {
        let inbox = self.ask(subject, body).await?;
        let answer = async {
            let mut bytes = Vec::new();
            loop {
                match self.streams.read(&mut bytes).await {
                    Ok(Said::Message) => match Delivered::parse(&bytes) {
                        Some(answer) if answer.subject == inbox.as_bytes() => {
                            return Ok(match answer.status() {
                                Some(_) => Err(StreamError::NoJetStream {
                                    domain: self.api.domain.clone(),
                                }),
                                None => Ok(answer.body.to_vec()),
                            });
                        }
                        _ => {}
                    },
                    Ok(said) => check(Side::Streams, said)?,
                    Err(error) => return Err(lost(Side::Streams, error, subject)),
                }
            }
        };
        let late = || FillError::Unanswered {
            what: subject.to_owned(),
        };
        tokio::time::timeout(API_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    /// Sends a request, and returns the subject of what answers it.
    async fn ask(&mut self, subject: &str, body: &Value) -> Result<String, FillError> {
        self.requests += 1;
        let inbox = format!("{}{}", self.inbox, self.requests);
        let body = body.to_string();
        let request = format!("PUB {subject} {inbox} {}\r\n{body}\r\n", body.len());
        match self.streams.write(request.as_bytes()).await {
            Ok(()) => Ok(inbox),
            Err(error) => Err(lost(Side::Streams, error, subject)),
        }
    }

    /// Asks for the next events. Of `None` bytes, there is one, of whatever size.
    async fn pull(&mut self, events: usize, bytes: Option<usize>) -> Result<Pull, FillError> {
        let mut body = json!({ "batch": events, "no_wait": true });
        if let Some(bytes) = bytes {
            body["max_bytes"] = bytes.into();
        }
        let inbox = self.ask(&self.api.subject("MSG.NEXT"), &body).await?;
        Ok(Pull::new(inbox, events, bytes))
    }

    /// Reads the next events and writes most of them; returns whether the stream has no more.
    async fn pass_on(&mut self, events: usize, bytes: usize) -> Result<bool, FillError> {
        let mut pull = self.pull(events, Some(bytes)).await?;
        let lost = |error| lost(Side::Streams, error, "a request for events");
        loop {
            while let Some((frame, bytes)) = self.streams.frames.peek().map_err(lost)? {
                if frame != Frame::Message {
                    let said = self.streams.read(&mut Vec::new()).await.map_err(lost)?;
                    check(Side::Streams, said)?;
                    continue;
                }
                let length = bytes.len();
                let next = match Delivered::parse(bytes) {
                    Some(message) => match self.events.pass(&message, &mut self.out)? {
                        Some(passed) => pull.count(&passed),
                        None => pull.status(&message)?,
                    },
                    None => Next::More,
                };
                self.streams.frames.skip(length);
                match next {
                    Next::More => {}
                    Next::Alone => pull = self.pull(1, None).await?,
                    Next::Done { end } => return Ok(end),
                }
                if self.out.len() >= WRITTEN_AT_ONCE {
                    self.write_out().await?;
                }
            }
            if !self.streams.read_more().await.map_err(lost)? {
                check(Side::Streams, Said::End)?;
            }
        }
    }

    /// Writes what is to be written to the link.
    async fn write_out(&mut self) -> Result<(), FillError> {
        let written = self.link.write(&self.out).await;
        self.out.clear();
        self.out.shrink_to(4 * WRITTEN_AT_ONCE);
        match written {
            Ok(()) => Ok(()),
            Err(error) => {
                // A server that closes a connection says why before that.
                if let Ok(Some(said)) = self.link.send(b"", |_| {}).await {
                    let side = Side::Link;
                    return Err(FillError::Refused { side, said });
                }
                Err(lost(Side::Link, error, "events that are sent up"))
            }
        }
    }

    /// Returns when the link's server has all that is written.
    async fn settle(&mut self) -> Result<(), FillError> {
        self.write_out().await?;
        match self.link.send(b"", |_| {}).await {
            Ok(None) => Ok(()),
            Ok(Some(said)) => Err(FillError::Refused {
                side: Side::Link,
                said,
            }),
            Err(error) => Err(lost(Side::Link, error, "events that are sent up")),
        }
    }
}

/// Returns an error of a connection.
fn lost(side: Side, error: io::Error, what: &str) -> FillError {
    if error.kind() == io::ErrorKind::TimedOut {
        let what = what.to_owned();
        return FillError::Unanswered { what };
    }
    FillError::Lost { side, source: error }
}

/// Returns an error if the server said one, or nothing more.
fn check(side: Side, said: Said) -> Result<(), FillError> {
    match said {
        Said::Error(said) => Err(FillError::Refused { side, said }),
        Said::End => Err(lost(side, io::ErrorKind::UnexpectedEof.into(), "")),
        Said::Message | Said::Pong | Said::Other => Ok(()),
    }
}
