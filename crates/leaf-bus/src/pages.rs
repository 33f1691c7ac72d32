//! The messages of a stream, read page by page with batched direct gets (NATS ADR-31).

use std::collections::VecDeque;

use async_nats::HeaderMap;
use jiff::Timestamp;
use leaf_core::event::EventRecord;

use crate::jetstream::API_TIMEOUT;
use crate::link::Link;
use crate::stream_error::{RequestError, StreamError, request_error};

/// How many messages a page of a stream has.
const PAGE: usize = 512;

impl Link {
    /// Reads all messages of a stream from a sequence number on, page by page.
    pub(crate) fn read_from(&self, stream: &str, sequence: u64, filter: Option<&str>) -> Pages {
        Pages {
            link: self.clone(),
            stream: stream.to_owned(),
            filter: filter.map(str::to_owned),
            next: sequence.max(1),
            page: VecDeque::new(),
            timed: false,
            done: false,
        }
    }
}

/// Messages of a stream, in order; see [`Link::read_from`].
#[derive(Debug)]
pub(crate) struct Pages {
    link: Link,
    stream: String,
    filter: Option<String>,
    next: u64,
    page: VecDeque<Stored>,
    /// Whether the times of the messages are read as well.
    timed: bool,
    done: bool,
}

/// A message of a stream.
#[derive(Debug)]
pub(crate) struct Stored {
    /// The message with its event headers.
    pub(crate) record: EventRecord,
    /// When the server stored it, if that was asked for.
    pub(crate) time: Option<Timestamp>,
}

impl Pages {
    /// Reads the times of the messages as well.
    pub(crate) fn timed(self) -> Self {
        Self { timed: true, ..self }
    }

    /// Returns the next message with its event headers, or `None` after the last one.
    pub(crate) async fn next(&mut self) -> Result<Option<EventRecord>, StreamError> {
        Ok(self.next_stored().await?.map(|stored| stored.record))
    }

    /// Like [`Pages::next`], with the time.
    pub(crate) async fn next_stored(&mut self) -> Result<Option<Stored>, StreamError> {
        while self.page.is_empty() && !self.done {
            self.fetch().await?;
        }
        Ok(self.page.pop_front())
    }

    /// Fetches one page. Where that costs the connection, since a message of it has a header that the client can't read, the
    /// messages are read one by one.
    async fn fetch(&mut self) -> Result<(), StreamError> {
        match self.fetch_page().await {
            Err(StreamError::Disconnected) => {
                let back = tokio::time::timeout(API_TIMEOUT, self.link.connected()).await;
                back.map_err(|_| StreamError::Disconnected)?;
                self.fetch_one_by_one().await
            }
            other => other,
        }
    }

    /// Fetches as many messages as a page has, each by a request whose reply is JSON. One that can't be read has no headers here.
    async fn fetch_one_by_one(&mut self) -> Result<(), StreamError> {
        let subjects = self.filter.clone().unwrap_or_else(|| ">".to_owned());
        for _ in 0..PAGE {
            let which = serde_json::json!({ "seq": self.next, "next_by_subj": subjects });
            let stored = match self.link.get_message(&self.stream, &which).await {
                Ok(Some(m)) => Stored {
                    record: to_record(m.sequence, &m.subject, &m.headers, &m.payload),
                    time: Timestamp::from_nanosecond(m.time.unix_timestamp_nanos()).ok(),
                },
                Ok(None) => {
                    self.done = true;
                    return Ok(());
                }
                Err(StreamError::NotAnEvent { sequence, .. }) => Stored {
                    record: EventRecord {
                        sequence,
                        subject: String::new(),
                        headers: [("", ""); 0].into_iter().collect(),
                        body: Vec::new(),
                    },
                    time: None,
                },
                Err(error) => return Err(error),
            };
            self.take(stored)?;
        }
        Ok(())
    }

    /// Takes a message, which must follow the last one.
    fn take(&mut self, stored: Stored) -> Result<(), StreamError> {
        let sequence = stored.record.sequence;
        let next = sequence.checked_add(1).filter(|_| sequence >= self.next);
        self.next = next.ok_or_else(|| StreamError::NotAnEvent {
            stream: self.stream.clone(),
            sequence: self.next,
        })?;
        self.page.push_back(stored);
        Ok(())
    }

    /// Fetches one page by a batched direct get (NATS ADR-31).
    async fn fetch_page(&mut self) -> Result<(), StreamError> {
        let what = format!("DIRECT.GET.{}", self.stream);
        let subject = format!("{}.{what}", self.link.api_prefix());
        let mut body = serde_json::json!({ "seq": self.next, "batch": PAGE });
        if let Some(filter) = &self.filter {
            body["next_by_subj"] = filter.as_str().into();
        }
        let asked = self.link.ask(&subject, None, body.to_string().into()).await;
        let mut replies = asked.map_err(|e| request_error(e, &what, self.link.domain()))?;
        loop {
            let message = match replies.next(API_TIMEOUT).await {
                Ok(message) => message,
                // No responder: no such stream, no direct access to it, no JetStream, or a server that has just started and
                // answers for the stream, but not yet for its messages.
                Err(RequestError::NoResponders) => {
                    let info = self.link.stream_info(&self.stream).await?;
                    if info.config.allow_direct {
                        return Err(StreamError::NoJetStream {
                            domain: self.link.domain().map(str::to_owned),
                        });
                    }
                    let why = "it does not allow direct gets".to_owned();
                    return Err(StreamError::Foreign {
                        stream: self.stream.clone(),
                        why,
                    });
                }
                Err(error) => return Err(request_error(error, &what, self.link.domain())),
            };
            let status = status_of_page(&message);
            let headers = message.headers.unwrap_or_default();
            let number = |name| {
                headers
                    .get_last(name)
                    .and_then(|v| v.as_str().parse::<u64>().ok())
            };
            match status {
                None => {
                    let (Some(sequence), Some(subject)) =
                        (number("Nats-Sequence"), headers.get_last("Nats-Subject"))
                    else {
                        return Err(StreamError::NotAnEvent {
                            stream: self.stream.clone(),
                            sequence: self.next,
                        });
                    };
                    let time = self.timed.then(|| headers.get_last("Nats-Time-Stamp")).flatten();
                    self.take(Stored {
                        record: to_record(sequence, subject.as_str(), &headers, &message.payload),
                        time: time.and_then(|time| time.as_str().parse().ok()),
                    })?;
                }
                Some(204) => {
                    self.done = number("Nats-Num-Pending").unwrap_or(0) == 0;
                    return Ok(());
                }
                Some(404) => {
                    self.done = true;
                    return Ok(());
                }
                Some(code) => {
                    let description = message.description.unwrap_or_default();
                    return Err(StreamError::Server {
                        code: code.into(),
                        description,
                    });
                }
            }
        }
    }
}

/// Returns the status of a reply of a direct get that is no message of the stream: the server adds `Nats-Stream` to those, also where
/// a header that was stored begins as a status does. What it adds stands behind what was stored.
pub(crate) fn status_of_page(message: &async_nats::Message) -> Option<u16> {
    let headers = message.headers.as_ref();
    if headers.is_some_and(|headers| headers.get("Nats-Stream").is_some()) {
        return None;
    }
    message.status.map(|status| status.as_u16())
}

/// Returns an event of a stream with its own headers only, sorted.
pub(crate) fn to_record(sequence: u64, subject: &str, headers: &HeaderMap, body: &[u8]) -> EventRecord {
    let mut kept: Vec<(&str, &str)> = headers
        .iter()
        .map(|(name, values)| (AsRef::<str>::as_ref(name), values))
        .filter(|(name, _)| name.starts_with("ce-"))
        .filter_map(|(name, values)| Some((name, values.first()?.as_str())))
        .collect();
    kept.sort_unstable();
    EventRecord {
        sequence,
        subject: subject.to_owned(),
        headers: kept.into_iter().collect(),
        body: body.to_vec(),
    }
}
