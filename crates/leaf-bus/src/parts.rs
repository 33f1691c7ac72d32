//! Replies that are larger than the NATS server accepts, in parts.
//!
//! A request with the header [`PARTS_HEADER`] (its value is `accepted`) gets such a reply as several messages, in order and
//! to the same inbox, each with the header `Leaf-Parts: 2/7`; their bodies make the reply's body. Without it the answer is a
//! problem, with the reply's size in the header [`REPLY_BYTES_HEADER`]. So `nats req`, which takes one message, gets an
//! answer that says what to do, and a client that knows the headers asks again: a command that changed something under its
//! own id, which gets the first reply again.

use async_nats::{HeaderMap, Message};

/// The header of a request whose sender takes the reply in parts, and of a part.
pub const PARTS_HEADER: &str = "Leaf-Parts";
/// The value of [`PARTS_HEADER`] in a request.
pub(crate) const ACCEPTED: &str = "accepted";
/// The header of a problem that says how large the reply is, in bytes.
pub const REPLY_BYTES_HEADER: &str = "Leaf-Reply-Bytes";

/// The bytes of a message for its headers, those of a reply or of a part.
pub(crate) const HEADER_ROOM: usize = 512;
/// The least size of a part, in bytes.
const LEAST_BYTES: usize = 128;

/// Returns the bytes for the body of a message with headers, if a server accepts messages of this size.
pub(crate) fn room(max_message_bytes: usize) -> usize {
    max_message_bytes.saturating_sub(HEADER_ROOM).max(LEAST_BYTES)
}

/// Returns whether a request's sender takes the reply in parts.
pub(crate) fn are_accepted(headers: Option<&HeaderMap>) -> bool {
    let value = headers.and_then(|headers| headers.get(PARTS_HEADER));
    value.is_some_and(|value| value.as_str() == ACCEPTED)
}

/// Returns the value of [`PARTS_HEADER`] in the part with this number, from 1.
pub(crate) fn name(part: usize, parts: usize) -> String {
    format!("{part}/{parts}")
}

/// A reply whose parts arrive.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    body: Vec<u8>,
    next: usize,
}

/// The outcome of adding a message: more parts are awaited, or the reply is complete.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Assembled {
    /// More parts follow.
    More,
    /// The reply's body is complete.
    Whole(Vec<u8>),
    /// The message is no part, or a part is missing.
    Broken,
}

impl Assembly {
    /// Adds a message.
    pub(crate) fn add(&mut self, message: &Message) -> Assembled {
        let value = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(PARTS_HEADER));
        let numbers = value.and_then(|value| {
            let (part, parts) = value.as_str().split_once('/')?;
            Some((part.parse::<usize>().ok()?, parts.parse::<usize>().ok()?))
        });
        match numbers {
            Some((part, parts)) if part == self.next + 1 && part <= parts => {
                self.next = part;
                self.body.extend_from_slice(&message.payload);
                if part == parts {
                    Assembled::Whole(std::mem::take(&mut self.body))
                } else {
                    Assembled::More
                }
            }
            _ => Assembled::Broken,
        }
    }
}
