//! Why events can't be sent to a copy.

use std::{fmt, io};

use crate::raw::LoginError;
use crate::stream_error::StreamError;

/// One of the two accounts that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The account of the leaf's streams.
    Streams,
    /// The account of the link to the hub.
    Link,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Streams => "the account of the streams",
            Self::Link => "the account of the link to the hub",
        })
    }
}

/// Why events can't be sent to a copy.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// A user can't connect.
    #[error(
        "leafd can't connect to {side} to send events to the hub: check the NATS server, and the user's credentials"
    )]
    Login {
        /// The account.
        side: Side,
        /// Why not.
        source: LoginError,
    },
    /// The consumer can't be created.
    #[error("the events of the stream {stream} can't be read to send them to the hub")]
    NoConsumer {
        /// The stream's name.
        stream: String,
        /// Why not.
        source: StreamError,
    },
    /// The server refuses something.
    #[error(
        "the NATS server refuses leafd's user in {side} what sending events to the hub needs: {said}: give the user the permissions of docs/nats.md"
    )]
    Refused {
        /// The account.
        side: Side,
        /// The server's words.
        said: String,
    },
    /// A connection was lost.
    #[error(
        "the connection to {side} was lost while events were sent to the hub: it begins again where the copy ends"
    )]
    Lost {
        /// The account.
        side: Side,
        /// The operating system's error.
        source: io::Error,
    },
    /// The server does not answer in time.
    #[error("the NATS server does not answer {what}: check its log and the load of its host")]
    Unanswered {
        /// The request.
        what: String,
    },
    /// The server has ended the reading: the consumer is gone, or was made by another server that now has no leader.
    #[error(
        "the NATS server has ended the reading of the events ({status}): begin again with a new consumer"
    )]
    Ended {
        /// The status in the server's words.
        status: String,
    },
    /// The stream lacks an event that is to be sent.
    #[error(
        "the leaf's stream continues with event {first}, and not with {expected}: what is between has expired or was deleted, so the copy must begin again after it"
    )]
    Gap {
        /// The sequence number of the event that is to be sent next.
        expected: u64,
        /// The sequence number of the next event that the stream has.
        first: u64,
    },
    /// A message in the stream is not one that a leaf writes.
    #[error(
        "the message {sequence} in the leaf's stream was not written by a leaf: keep the program that wrote it from publishing into \
        the stream, and delete the stream, which the leaf then creates again"
    )]
    NotAnEvent {
        /// The message's stream sequence.
        sequence: u64,
    },
}

impl FillError {
    /// Whether the error is about what the stream has, and not about reading or sending.
    #[must_use]
    pub fn is_of_the_stream(&self) -> bool {
        matches!(self, Self::Gap { .. } | Self::NotAnEvent { .. })
    }
}
