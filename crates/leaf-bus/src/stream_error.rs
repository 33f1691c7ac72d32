//! The errors of requests, publishes and streams.

use leaf_core::subject;

/// Why an operation on a stream failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The stream's last sequence number is not the expected one.
    #[error("the stream does not end with the expected sequence number")]
    WrongLastSequence {
        /// Its last sequence number, if the server returned it.
        actual: Option<u64>,
    },
    /// No reply: the message may have been stored.
    #[error("the NATS server did not answer {what}")]
    Unanswered {
        /// The request.
        what: String,
    },
    /// The stream does not exist.
    #[error("stream {stream} does not exist")]
    NoStream {
        /// The stream's name.
        stream: String,
    },
    /// The server has no storage left.
    #[error("the NATS server has no room to store more: {description}")]
    StorageFull {
        /// The server's description.
        description: String,
    },
    /// There is no connection, or it was lost during the request.
    #[error("not connected to the NATS server")]
    Disconnected,
    /// The user lacks a permission.
    #[error("the user may not do this: {what}")]
    NoPermission {
        /// The server's error.
        what: String,
    },
    /// JetStream is off for the server or the account, as the server says.
    #[error("JetStream is off for this account of the NATS server")]
    JetStreamOff,
    /// No JetStream answers.
    #[error(
        "no JetStream answers: the NATS server has none, is just starting, or does not reach the JetStream domain of the settings"
    )]
    NoJetStream,
    /// A stream of this name has other settings, which can't be updated.
    #[error(
        "the stream {stream} belongs to another application: {why}; {}",
        way_out(stream)
    )]
    Foreign {
        /// The stream's name.
        stream: String,
        /// The settings that differ.
        why: String,
    },
    /// A message is larger than the server's limit.
    #[error("the message is too large: {description}")]
    TooLarge {
        /// The sizes.
        description: String,
    },
    /// A message in the stream is not an event.
    #[error("the message {sequence} of the stream is not an event of a leaf")]
    NotAnEvent {
        /// The message's stream sequence.
        sequence: u64,
    },
    /// The account's limits don't allow the stream.
    #[error("the account's limits don't allow the stream {stream}: {description} ({code})")]
    Limited {
        /// The stream's name.
        stream: String,
        /// The error code.
        code: u64,
        /// The server's description.
        description: String,
    },
    /// Another error of the API.
    #[error("the NATS server returned an error: {description} ({code})")]
    Server {
        /// The error code, 0 if there is none.
        code: u64,
        /// The server's description.
        description: String,
    },
}

/// Returns what to do about a foreign stream. Some streams are named after the leaf, others are shared by all leaves.
fn way_out(stream: &str) -> &'static str {
    if stream == subject::LEASE_STREAM || stream == subject::state_stream() {
        "remove it, or give the leaves an account without it"
    } else {
        "remove it, or name the leaf differently"
    }
}

impl StreamError {
    /// Returns whether the server has answered, and gives the same answer until an operator changes a setting or removes
    /// a stream. Otherwise the error says nothing of what the server would allow.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::StorageFull { .. }
            | Self::NoPermission { .. }
            | Self::JetStreamOff
            | Self::Foreign { .. }
            | Self::NotAnEvent { .. }
            | Self::Limited { .. } => true,
            Self::WrongLastSequence { .. }
            | Self::Unanswered { .. }
            | Self::NoStream { .. }
            | Self::Disconnected
            | Self::NoJetStream
            | Self::TooLarge { .. }
            | Self::Server { .. } => false,
        }
    }
}

/// Why a request has no reply.
#[derive(Debug)]
pub(crate) enum RequestError {
    NoResponders,
    TimedOut,
    Disconnected,
    Forbidden(String),
    TooLarge(String),
    Other(String),
}

pub(crate) fn request_error(error: RequestError, what: &str) -> StreamError {
    match error {
        RequestError::NoResponders => StreamError::NoJetStream,
        RequestError::TimedOut => StreamError::Unanswered {
            what: what.to_owned(),
        },
        RequestError::Disconnected => StreamError::Disconnected,
        RequestError::Forbidden(what) => StreamError::NoPermission { what },
        RequestError::TooLarge(description) => StreamError::TooLarge { description },
        RequestError::Other(description) => StreamError::Server { code: 0, description },
    }
}

pub(crate) fn publish_error(error: &async_nats::PublishError) -> RequestError {
    match error.kind() {
        async_nats::client::PublishErrorKind::MaxPayloadExceeded => RequestError::TooLarge(error.to_string()),
        async_nats::client::PublishErrorKind::Send => RequestError::Disconnected,
        async_nats::client::PublishErrorKind::InvalidSubject => RequestError::Other(error.to_string()),
    }
}
