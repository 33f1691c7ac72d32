//! Why something could not be read from the server.

use crate::stream_error::StreamError;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The stream, or what it needs.
    #[error("can't read from the NATS server")]
    Stream(#[from] StreamError),
    /// A message is not what it should be.
    #[error("the message on {subject} can't be read")]
    Unreadable {
        /// Where it stood.
        subject: String,
        /// What serde says.
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
