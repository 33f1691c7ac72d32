//! A page of messages by a batched direct get (NATS ADR-31), whose replies are collected while the next one is under way.

use std::time::Duration;

use async_nats::Message;
use serde_json::Value;
use tokio::time::Instant;

use crate::link::{Link, Replies};
use crate::pages::status_of_page;
use crate::stream_error::RequestError;

/// How long a page may take.
pub(super) const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long no reply may come.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The most bytes that a page may have: more than an honest one, whose messages are seldom large.
const MOST_BYTES: usize = 128 << 20;

/// A page that was asked for.
#[derive(Debug)]
pub(super) struct PageRequest {
    replies: Replies,
    messages: Vec<Message>,
    bytes: usize,
    /// How many messages were asked for.
    most: usize,
    deadline: Instant,
}

/// Why there is no page.
#[derive(Debug)]
pub(super) enum PageError {
    Request(RequestError),
    /// There are more messages than were asked for, or more bytes than a page may have.
    TooMuch,
    /// The server's refusal.
    Refused {
        code: u16,
        description: String,
    },
}

/// The messages of a page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) messages: Vec<Message>,
    /// Whether the stream has no more.
    pub(super) end: bool,
}

impl PageRequest {
    /// Asks for at most so many messages: the body's `batch`.
    pub(super) async fn ask(
        link: &Link,
        subject: &str,
        mut body: Value,
        most: u64,
    ) -> Result<Self, PageError> {
        body["batch"] = most.into();
        let asked = link.ask(subject, None, body.to_string().into()).await;
        Ok(Self {
            replies: asked.map_err(PageError::Request)?,
            messages: Vec::new(),
            bytes: 0,
            most: usize::try_from(most).unwrap_or(usize::MAX),
            deadline: Instant::now() + PAGE_TIMEOUT,
        })
    }

    /// Returns the page when it is complete. The future may be dropped and the call repeated, until it returned.
    pub(super) async fn collect(&mut self) -> Result<Page, PageError> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let reply = self.replies.next(left.min(REPLY_TIMEOUT)).await;
            let message = reply.map_err(PageError::Request)?;
            match status_of_page(&message) {
                None => {
                    self.bytes += message.length;
                    if self.messages.len() == self.most || self.bytes > MOST_BYTES {
                        return Err(PageError::TooMuch);
                    }
                    self.messages.push(message);
                }
                Some(204) => {
                    let pending = number(&message, "Nats-Num-Pending").unwrap_or(0);
                    return Ok(self.page(pending == 0));
                }
                Some(404) => return Ok(self.page(true)),
                Some(code) => {
                    return Err(PageError::Refused {
                        code,
                        description: message.description.unwrap_or_default(),
                    });
                }
            }
        }
    }

    fn page(&mut self, end: bool) -> Page {
        Page {
            messages: std::mem::take(&mut self.messages),
            end,
        }
    }
}

/// Returns the number in a header of the server.
pub(super) fn number(message: &Message, name: &'static str) -> Option<u64> {
    header(message, name)?.parse().ok()
}

/// Returns a header of the server, which stands behind those that were stored.
pub(super) fn header<'a>(message: &'a Message, name: &'static str) -> Option<&'a str> {
    Some(message.headers.as_ref()?.get_last(name)?.as_str())
}
