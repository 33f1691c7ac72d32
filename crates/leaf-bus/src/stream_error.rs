//! What can go wrong with a request, a publish and a stream: each way to fail is told apart.

/// Why a stream did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The stream does not end where the publisher thought.
    #[error("the stream does not end where it was expected to")]
    WrongLastSequence {
        /// Where it ends, if the server says so.
        actual: Option<u64>,
    },
    /// No answer: the message may be stored, or not.
    #[error("the NATS server did not answer {what}")]
    Unanswered {
        /// What it was asked.
        what: String,
    },
    /// There is no such stream.
    #[error("there is no stream {stream}")]
    NoStream {
        /// Its name.
        stream: String,
    },
    /// There is no room to store anything.
    #[error("the NATS server has no room to store more: {description}")]
    StorageFull {
        /// What it says.
        description: String,
    },
    /// There is no connection, or it was lost meanwhile.
    #[error("there is no connection to the NATS server")]
    Disconnected,
    /// The user may not do that.
    #[error("the user may not do this: {what}")]
    NoPermission {
        /// What the server says.
        what: String,
    },
    /// The server keeps no streams for us.
    #[error("JetStream is off")]
    JetStreamOff,
    /// A stream of this name is not what it should be, and can't be made so.
    #[error("the stream {stream} is not ours to change: {why}; move it away, or name the leaf differently")]
    Foreign {
        /// Its name.
        stream: String,
        /// What is other than expected.
        why: String,
    },
    /// A message is larger than the server takes, or than its settings allow.
    #[error("the message is too large: {description}")]
    TooLarge {
        /// By how much.
        description: String,
    },
    /// A message in the stream is not an event.
    #[error("the message {sequence} of the stream is not an event of a leaf")]
    NotAnEvent {
        /// Its place in the stream.
        sequence: u64,
    },
    /// Something else.
    #[error("the NATS server refuses it: {description} ({code})")]
    Server {
        /// Its error code, 0 if it has none.
        code: u64,
        /// What it says.
        description: String,
    },
}

/// Why a request has no answer.
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
        RequestError::NoResponders => StreamError::JetStreamOff,
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
