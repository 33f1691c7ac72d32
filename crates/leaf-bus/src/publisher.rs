//! Publishes events into a leaf's stream: in order, with many unacknowledged at once.
//!
//! Each message carries the sequence number that the stream must end with before it, so a second writer, a lost message
//! or a repeated one can't change the stream. After an error the publisher can't be used any more: read where the
//! stream ends, compare ([`crate::stream::EventStream::compare`]), and continue from there with a new publisher and the
//! same bytes.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::header::HeaderName;
use async_nats::{HeaderMap, Message, Subscriber};
use futures::{FutureExt as _, StreamExt as _};
use leaf_core::event::{EventRecord, header};
use tokio::time::Instant;

use crate::jetstream::read_ack;
use crate::link::{Link, Wait};
use crate::stream_error::{StreamError, publish_error, request_error};

/// How many messages may be unacknowledged at once.
const WINDOW_MESSAGES: usize = 1024;
/// How many bytes of bodies may be unacknowledged at once.
const WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// How long the server may take to acknowledge the oldest of them.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

const EXPECTED_LAST_SEQUENCE: HeaderName = HeaderName::from_static("Nats-Expected-Last-Sequence");
/// The headers of an event, in the order of their names.
static KNOWN: [(&str, HeaderName); 10] = [
    (
        header::CAUSATION_ID,
        HeaderName::from_static(header::CAUSATION_ID),
    ),
    (
        header::CORRELATION_ID,
        HeaderName::from_static(header::CORRELATION_ID),
    ),
    (
        header::DATA_CONTENT_TYPE,
        HeaderName::from_static(header::DATA_CONTENT_TYPE),
    ),
    (header::ID, HeaderName::from_static(header::ID)),
    (header::SEQUENCE, HeaderName::from_static(header::SEQUENCE)),
    (header::SOURCE, HeaderName::from_static(header::SOURCE)),
    (header::SPECVERSION, HeaderName::from_static(header::SPECVERSION)),
    (header::SUBJECT, HeaderName::from_static(header::SUBJECT)),
    (header::TIME, HeaderName::from_static(header::TIME)),
    (header::TYPE, HeaderName::from_static(header::TYPE)),
];

/// Publishes events in order and processes the server's acknowledgements.
#[derive(Debug)]
pub struct Publisher {
    link: Link,
    stream: String,
    inbox: async_nats::Subject,
    acks: Subscriber,
    wait: Wait,
    /// The unacknowledged messages, the oldest first; the first has the sequence number `acked + 1`.
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    acked: u64,
    failed: Option<StreamError>,
    last_subject: async_nats::Subject,
}

#[derive(Debug)]
struct InFlight {
    bytes: usize,
    sent: Instant,
}

impl Publisher {
    pub(crate) async fn start(link: Link, stream: String, after: u64) -> Result<Self, StreamError> {
        if !link.is_connected() {
            return Err(StreamError::Disconnected);
        }
        let wait = Wait::new(&link);
        let inbox = link.new_inbox();
        let acks = link.subscribe(inbox.clone()).await?;
        Ok(Self {
            link,
            stream,
            inbox: inbox.into(),
            acks,
            wait,
            in_flight: VecDeque::new(),
            bytes: 0,
            acked: after,
            failed: None,
            last_subject: async_nats::Subject::from_static(""),
        })
    }

    /// The last acknowledged sequence number.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// The sequence number of the event to publish next.
    #[must_use]
    pub fn next_sequence(&self) -> u64 {
        self.acked + self.in_flight.len() as u64 + 1
    }

    /// Whether a message is unacknowledged.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Publishes an event, which must have [`next_sequence`](Self::next_sequence); waits while too much is
    /// unacknowledged.
    ///
    /// # Errors
    /// The [`StreamError`] of this event or of one before it. The publisher can't be used afterwards.
    pub async fn publish(&mut self, record: EventRecord) -> Result<(), StreamError> {
        if record.sequence != self.next_sequence() {
            return self.fail(StreamError::WrongLastSequence {
                actual: Some(self.next_sequence() - 1),
            });
        }
        self.collect()?;
        if self.is_full(record.body.len(), 1) {
            // Makes room for several at once: fewer switches between sending and receiving.
            while self.is_full(record.body.len(), WINDOW_MESSAGES / 4) {
                self.next_ack().await?;
            }
        }
        if self.link.generation() != self.generation() || !self.link.is_connected() {
            return self.fail(StreamError::Disconnected);
        }
        let headers = headers(&record);
        let EventRecord {
            sequence,
            subject,
            body,
            ..
        } = record;
        let (subject, bytes) = (async_nats::Subject::from(subject), body.len());
        self.last_subject = subject.clone();
        let client = self.link.client();
        let sent = client
            .publish_with_reply_and_headers(subject, self.inbox.clone(), headers, body.into())
            .await;
        if let Err(error) = sent {
            let error = match request_error(publish_error(&error), "a publish", self.link.domain()) {
                StreamError::TooLarge { description } => StreamError::TooLarge {
                    description: self.too_large(sequence, bytes, &description),
                },
                other => other,
            };
            return self.fail(error);
        }
        self.in_flight.push_back(InFlight {
            bytes,
            sent: Instant::now(),
        });
        self.bytes += bytes;
        Ok(())
    }

    fn too_large(&self, sequence: u64, bytes: usize, description: &str) -> String {
        let allowed = self.link.server().map_or(0, |server| server.max_payload_bytes);
        format!(
            "event {sequence} ({}) has a body of {bytes} bytes, and the NATS server accepts messages of {allowed} bytes: \
             raise its `max_payload` ({description})",
            self.last_subject,
        )
    }

    /// Waits for the next acknowledgement, processes all that have arrived, and returns [`acked`](Self::acked). With
    /// nothing unacknowledged it waits until the connection is lost. The future may be dropped and the call repeated.
    ///
    /// # Errors
    /// The [`StreamError`] of the first event that was not stored. The publisher can't be used afterwards.
    pub async fn next_ack(&mut self) -> Result<u64, StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let deadline = self.in_flight.front().map(|oldest| oldest.sent + ACK_TIMEOUT);
        let message = tokio::select! {
            biased;
            message = self.acks.next() => message.ok_or(StreamError::Disconnected),
            error = self.wait.trouble(&self.link, &self.last_subject) => Err(request_error(error, "a publish", self.link.domain())),
            () = sleep_until(deadline) => Err(StreamError::Unanswered { what: format!("the event {}", self.acked + 1) }),
        };
        match message {
            Ok(message) => self.take(&message)?,
            Err(error) => return self.fail(error),
        }
        self.collect()?;
        Ok(self.acked)
    }

    /// Waits until all published events are acknowledged, and returns [`acked`](Self::acked).
    ///
    /// # Errors
    /// The [`StreamError`] of the first event that was not stored. The publisher can't be used afterwards.
    pub async fn settle(&mut self) -> Result<u64, StreamError> {
        while self.is_waiting() {
            self.next_ack().await?;
        }
        match &self.failed {
            Some(error) => Err(error.clone()),
            None => Ok(self.acked),
        }
    }

    /// Whether there is no room for a body of this size and this number of messages.
    fn is_full(&self, bytes: usize, messages: usize) -> bool {
        self.is_waiting()
            && (self.in_flight.len() + messages > WINDOW_MESSAGES || self.bytes + bytes > WINDOW_BYTES)
    }

    fn generation(&self) -> u64 {
        self.wait.generation()
    }

    /// Processes the acknowledgements that have arrived.
    fn collect(&mut self) -> Result<(), StreamError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        while let Some(Some(message)) = self.acks.next().now_or_never() {
            self.take(&message)?;
        }
        Ok(())
    }

    fn take(&mut self, message: &Message) -> Result<(), StreamError> {
        if message.status.is_some() {
            return self.fail(StreamError::NoStream {
                stream: self.stream.clone(),
            });
        }
        match read_ack(&message.payload, &self.stream) {
            Ok(sequence) if sequence == self.acked + 1 => {
                if let Some(oldest) = self.in_flight.pop_front() {
                    self.bytes -= oldest.bytes;
                }
                self.acked = sequence;
                Ok(())
            }
            // Acknowledgements arrive in order; another number means that another stream answers as well.
            Ok(sequence) => self.fail(StreamError::WrongLastSequence {
                actual: Some(sequence),
            }),
            Err(error) => self.fail(error),
        }
    }

    fn fail<T>(&mut self, error: StreamError) -> Result<T, StreamError> {
        self.failed = Some(error.clone());
        Err(error)
    }
}

/// Returns the headers of an event that is published after the one before it.
pub(crate) fn headers(record: &EventRecord) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in record.headers.iter() {
        // A known name needs no allocation.
        match KNOWN.iter().find(|(text, _)| *text == name) {
            Some((_, known)) => headers.insert(known.clone(), value),
            None => headers.insert(name, value),
        }
    }
    // No `Nats-Msg-Id`: the server checks the expected sequence first, which rejects a duplicate.
    headers.insert(EXPECTED_LAST_SEQUENCE, (record.sequence - 1).to_string());
    headers
}

pub(crate) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
