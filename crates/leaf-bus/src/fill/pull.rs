//! One request to a consumer, and when the server has answered all of it.
//!
//! A server ends a request without `expires` in one of these ways (`server/consumer.go` of nats-server 2.12 to 2.15):
//! - after the last event that it asked for; a status `409 Batch Completed` follows if it had `max_bytes` left;
//! - after the event that uses up `max_bytes` to the byte, without a word;
//! - with a status `409 Message Size Exceeds MaxBytes` if the next event needs more than is left of `max_bytes`;
//! - with a status `404 No Messages` if the stream has no more events, be it at once or after some;
//! - with another status if it can't be answered (any more): `409` that the consumer is deleted, has a new leader, or that too
//!   many requests wait; `408` that as many other requests wait as there are events; `503` that there is no consumer.

use leaf_core::printable::printable_line;

use super::FillError;
use super::event::{Delivered, Passed};

/// What follows after a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// More messages for this request.
    More,
    /// Another request, for one event of whatever size.
    Alone,
    /// Nothing.
    Done {
        /// Whether the stream had no more.
        end: bool,
    },
}

/// A request for events that is being answered.
pub(super) struct Pull {
    inbox: String,
    has_events: bool,
    events_left: usize,
    /// What is left of `max_bytes`, as the server counts it.
    bytes_left: Option<usize>,
    pending: u64,
}

impl Pull {
    /// `inbox`: the subject of its statuses.
    pub(super) fn new(inbox: String, events: usize, bytes: Option<usize>) -> Self {
        Self {
            inbox,
            has_events: false,
            events_left: events,
            bytes_left: bytes,
            pending: u64::MAX,
        }
    }

    /// Counts an event.
    pub(super) fn count(&mut self, passed: &Passed) -> Next {
        self.has_events = true;
        self.pending = passed.pending;
        self.events_left = self.events_left.saturating_sub(1);
        // Where that does not come out, a server counts otherwise, and then says so at the end.
        self.bytes_left = self
            .bytes_left
            .and_then(|left| left.checked_sub(passed.counted_bytes));
        if self.events_left == 0 || self.bytes_left == Some(0) {
            self.done()
        } else {
            Next::More
        }
    }

    /// Reads a status.
    pub(super) fn status(&self, message: &Delivered<'_>) -> Result<Next, FillError> {
        let Some(status) = message.status() else {
            return Ok(Next::More);
        };
        // The status of a request before this one may follow its last event.
        if message.subject != self.inbox.as_bytes() || status.starts_with(b"100") {
            return Ok(Next::More);
        }
        if status.starts_with(b"404") {
            return Ok(Next::Done { end: true });
        }
        if self.has_events {
            return Ok(self.done());
        }
        if status == b"409 Message Size Exceeds MaxBytes" {
            return Ok(Next::Alone);
        }
        Err(FillError::Ended {
            status: printable_line(&String::from_utf8_lossy(status)).into_owned(),
        })
    }

    fn done(&self) -> Next {
        Next::Done {
            end: self.pending == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(counted_bytes: usize, pending: u64) -> Passed {
        Passed {
            counted_bytes,
            pending,
        }
    }

    fn status(pull: &Pull, inbox: &str, status: &str) -> Result<Next, String> {
        let header = format!("NATS/1.0 {status}\r\n\r\n");
        let size = header.len();
        let frame = format!("HMSG {inbox} 1 {size} {size}\r\n{header}\r\n");
        let message = Delivered::parse(frame.as_bytes()).expect("a message");
        pull.status(&message).map_err(|error| error.to_string())
    }

    #[test]
    fn a_request_is_done_after_its_events_or_its_bytes() {
        let mut pull = Pull::new("i.1".to_owned(), 2, Some(1000));
        assert_eq!(pull.count(&event(100, 7)), Next::More);
        assert_eq!(pull.count(&event(100, 6)), Next::Done { end: false });
        let mut pull = Pull::new("i.1".to_owned(), 9, Some(1000));
        assert_eq!(pull.count(&event(400, 1)), Next::More);
        assert_eq!(pull.count(&event(600, 0)), Next::Done { end: true });
        let mut pull = Pull::new("i.1".to_owned(), 9, Some(1000));
        assert_eq!(pull.count(&event(1001, 1)), Next::More);
    }

    #[test]
    fn a_status_ends_a_request_by_what_came_before() {
        let mut pull = Pull::new("i.2".to_owned(), 5, Some(1000));
        assert_eq!(
            status(&pull, "i.2", "404 No Messages"),
            Ok(Next::Done { end: true })
        );
        assert_eq!(status(&pull, "i.1", "409 Batch Completed"), Ok(Next::More));
        assert_eq!(
            status(&pull, "i.2", "409 Message Size Exceeds MaxBytes"),
            Ok(Next::Alone)
        );
        for end in [
            "503",
            "408 Requests Pending",
            "409 Consumer Deleted",
            "400 Bad\u{1b}",
        ] {
            let error = status(&pull, "i.2", end).expect_err(end);
            assert!(
                error.contains(&end.replace('\u{1b}', "\\u{1b}")) && !error.contains('\u{1b}'),
                "{error}"
            );
        }
        pull.count(&event(10, 3));
        for end in [
            "409 Message Size Exceeds MaxBytes",
            "409 Consumer Deleted",
            "408 Request Timeout",
        ] {
            assert_eq!(status(&pull, "i.2", end), Ok(Next::Done { end: false }), "{end}");
        }
    }
}
