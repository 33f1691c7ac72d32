//! Errors of reading from the server.

use crate::stream_error::StreamError;

/// Why reading from the server failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A request to the server failed.
    #[error("can't read from the NATS server")]
    Stream(#[from] StreamError),
    /// A message can't be parsed.
    #[error("can't parse the message on {subject}")]
    Unreadable {
        /// The message's subject.
        subject: String,
        /// The parser's error.
        source: serde_json::Error,
    },
}

pub(crate) fn read_json<T: serde::de::DeserializeOwned>(
    subject: &str,
    body: &[u8],
) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|source| ClientError::Unreadable {
        subject: subject.to_owned(),
        source,
    })
}
