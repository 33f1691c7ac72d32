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
    /// This hub agent is not the one that writes.
    #[error("another hub agent may be active: this one writes nothing until it is the active one")]
    NotActive,
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
    #[error("the NATS user lacks a permission: {what}")]
    NoPermission {
        /// The server's error.
        what: String,
    },
    /// JetStream is off for the server or the account, as the server says.
    #[error("JetStream is off for this account of the NATS server")]
    JetStreamOff,
    /// No JetStream answers.
    #[error("{}", no_jetstream(domain.as_deref()))]
    NoJetStream {
        /// The JetStream domain of the settings, if they have one.
        domain: Option<String>,
    },
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
    /// A message in the stream is not one that a leaf writes.
    #[error(
        "the message {sequence} of the stream {stream} was not written by a leaf: keep the program that wrote it from \
        publishing into the stream, and delete the stream, which the leaf then creates again"
    )]
    NotAnEvent {
        /// The stream's name.
        stream: String,
        /// The message's stream sequence.
        sequence: u64,
    },
    /// The stream's size is more than a limit allows.
    #[error("{}", no_room(stream, *needed_bytes, room))]
    NoRoom {
        /// The stream's name.
        stream: String,
        /// The stream's size, in bytes.
        needed_bytes: u64,
        /// The room that there is.
        room: Box<Room>,
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

/// The room that a server has for a stream, by the limit that is the tightest. Streams count with their full size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// The limit of the account for all of its streams.
    OfAccount {
        /// The limit, in bytes.
        limit_bytes: u64,
        /// The size of the account's other streams, in bytes.
        reserved_bytes: u64,
    },
    /// The limit of the account for one stream.
    OfStream {
        /// The limit, in bytes.
        limit_bytes: u64,
    },
    /// The limit of the server for the streams of all accounts, which it tells to no client.
    OfServer {
        /// The size of the account's other streams, in bytes.
        reserved_bytes: u64,
    },
}

/// Returns why a stream has no room, and what to do about it.
fn no_room(stream: &str, needed_bytes: u64, room: &Room) -> String {
    let needs = format!("the stream {stream} needs {}", size(needed_bytes));
    match *room {
        Room::OfAccount {
            limit_bytes,
            reserved_bytes,
        } => format!(
            "{needs}, and the account has {} left: its limit for files is {}, and its other streams take {}; lower \
            events.max_bytes in leafd's settings, or raise the account's limit (`max_file`, or `disk_storage` in its JWT)",
            size(limit_bytes.saturating_sub(reserved_bytes)),
            size(limit_bytes),
            size(reserved_bytes),
        ),
        Room::OfStream { limit_bytes } => format!(
            "{needs}, and the account allows a stream {} at most; lower events.max_bytes in leafd's settings, or raise the \
            account's limit (`disk_max_stream_bytes`)",
            size(limit_bytes),
        ),
        Room::OfServer { reserved_bytes } => format!(
            "{needs}, which is more than the NATS server has left of its `max_file` (an embedded server: of \
            nats.embedded.max_storage_bytes, or of the size of its file system), where this account's other streams take {}; \
            lower events.max_bytes in leafd's settings, or raise max_file in the server's `jetstream` block. The server tells \
            clients no amount; `nats server report jetstream` does, with an account of the system",
            size(reserved_bytes),
        ),
    }
}

/// Returns a size in bytes, as settings have it, and in MiB.
fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "one decimal of MiB is printed")]
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    format!("{bytes} bytes ({mebibytes:.1} MiB)")
}

/// Returns why no JetStream answers, and which settings to check.
fn no_jetstream(domain: Option<&str>) -> String {
    match domain {
        None => "no JetStream answers: the NATS server is just starting, or has no JetStream (`jetstream {}` in its \
                 configuration enables it), or has it only in a domain, which nats.jetstream_domain in leafd's settings, or \
                 jetstream_domain in a context, must then name"
            .to_owned(),
        Some(domain) => format!(
            "no JetStream answers in the domain {domain}: check that nats.jetstream_domain in leafd's settings, or \
            jetstream_domain in a context, is the `domain` in the `jetstream` block of the server that has the streams, and \
            that the connected server reaches that one (`leafnodes`); leave the setting out where the connected server \
            itself has the streams"
        ),
    }
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
            | Self::NoRoom { .. }
            | Self::Limited { .. } => true,
            Self::WrongLastSequence { .. }
            | Self::Unanswered { .. }
            | Self::NoStream { .. }
            | Self::Disconnected
            | Self::NoJetStream { .. }
            | Self::TooLarge { .. }
            | Self::NotActive
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

pub(crate) fn request_error(error: RequestError, what: &str, domain: Option<&str>) -> StreamError {
    match error {
        RequestError::NoResponders => StreamError::NoJetStream {
            domain: domain.map(str::to_owned),
        },
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
