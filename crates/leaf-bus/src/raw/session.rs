//! A connection of a user that the server has accepted.

use std::io;
use std::time::Duration;

use leaf_core::printable::printable_line;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};

use super::{DialError, Dialled, Dialler, Frame, Frames, Stream};
use crate::credentials;
use crate::settings::{ConnectSettings, Credentials};

/// How long the server may take to answer a ping, or to accept bytes.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// Why a user can't connect.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// No server answers.
    #[error(transparent)]
    Dial(DialError),
    /// The credentials can't be read.
    #[error("the credentials {what} can't be used")]
    Credentials {
        /// Which.
        what: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refuses the user.
    #[error("the server refuses the user: {0}")]
    Refused(String),
    /// The connection was lost.
    #[error("the connection to the server was lost")]
    Lost(#[source] io::Error),
}

/// What the server said.
pub(crate) enum Said {
    /// A message: the bytes that were read.
    Message,
    /// The answer to a ping.
    Pong,
    /// An error, in the server's words.
    Error(String),
    /// Something that needs no answer, or has it already.
    Other,
    /// The connection is closed.
    End,
}

/// A connection of a user.
pub(crate) struct Session {
    /// What the server sends.
    pub(crate) frames: Frames<ReadHalf<Box<dyn Stream>>>,
    writer: WriteHalf<Box<dyn Stream>>,
}

impl Session {
    /// Connects to the first server that answers.
    pub(crate) async fn open(settings: &ConnectSettings) -> Result<Self, LoginError> {
        let dialler = Dialler::new(settings).map_err(LoginError::Dial)?;
        let dialled = dialler.dial().await.map_err(LoginError::Dial)?;
        let says = json!({
            "verbose": false,
            "pedantic": false,
            "tls_required": false,
            "headers": true,
            "no_responders": true,
            "echo": true,
            "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"),
            "name": settings.name,
        });
        Self::log_in(dialled, &settings.credentials, says, b"").await
    }

    /// Sends `CONNECT` with who the user is and these fields, and then these bytes, and waits until the server has accepted both.
    pub(crate) async fn log_in(
        dialled: Dialled,
        credentials: &Credentials,
        mut says: Value,
        then: &[u8],
    ) -> Result<Self, LoginError> {
        let mut session = Self {
            frames: dialled.reader,
            writer: dialled.writer,
        };
        for (field, value) in user(credentials, &dialled.info)? {
            says[field] = value;
        }
        let connect = [format!("CONNECT {says}\r\n").as_bytes(), then].concat();
        match session.send(&connect, |_| {}).await {
            Ok(None) => Ok(session),
            Ok(Some(said)) => Err(LoginError::Refused(said)),
            Err(error) => Err(LoginError::Lost(error)),
        }
    }

    /// Sends these bytes and a ping, and hands over the messages up to its answer; returns the last error that the server sent
    /// before that.
    pub(crate) async fn send(
        &mut self,
        bytes: &[u8],
        mut heard: impl FnMut(&[u8]),
    ) -> io::Result<Option<String>> {
        let written = self.write(&[bytes, b"PING\r\n"].concat()).await;
        let mut said = None;
        let answer = async {
            // Where the bytes were not accepted, the server may have said why.
            loop {
                let mut bytes = Vec::new();
                match self.read(&mut bytes).await {
                    Ok(Said::Pong) => return Ok(said),
                    Ok(Said::Error(text)) => said = Some(text),
                    Ok(Said::Message) => heard(&bytes),
                    Ok(Said::Other) => {}
                    Ok(Said::End) => return said.map(Some).ok_or(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) => return said.map(Some).ok_or(error),
                }
            }
        };
        match tokio::time::timeout(ANSWERS_WITHIN, answer).await {
            Ok(answer) => match (answer, written) {
                (Ok(Some(said)), _) => Ok(Some(said)),
                (_, Err(error)) => Err(error),
                (answer, Ok(())) => answer,
            },
            Err(_) => written.and(Err(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Writes these bytes. An error if the server accepts none of them for too long.
    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = tokio::time::timeout(ANSWERS_WITHIN, self.writer.write(bytes)).await??;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[written..];
        }
        tokio::time::timeout(ANSWERS_WITHIN, self.writer.flush()).await?
    }

    /// Reads more of what the server sends; `false` at the end of the connection. An error if nothing comes for too long.
    pub(crate) async fn read_more(&mut self) -> io::Result<bool> {
        tokio::time::timeout(ANSWERS_WITHIN, self.frames.read_more()).await?
    }

    /// Reads one frame into these bytes, and answers a ping.
    pub(crate) async fn read(&mut self, bytes: &mut Vec<u8>) -> io::Result<Said> {
        bytes.clear();
        let frame = self.frames.next(bytes).await?;
        Ok(match frame {
            None => Said::End,
            Some(Frame::Info) => Said::Other,
            Some(Frame::Message) => Said::Message,
            Some(Frame::Line) if bytes.starts_with(b"PONG") => Said::Pong,
            Some(Frame::Line) if bytes.starts_with(b"PING") => {
                self.write(b"PONG\r\n").await?;
                Said::Other
            }
            Some(Frame::Line) => match bytes.strip_prefix(b"-ERR") {
                Some(said) => {
                    let said = String::from_utf8_lossy(said);
                    Said::Error(printable_line(said.trim().trim_matches('\'')).into_owned())
                }
                None => Said::Other,
            },
        })
    }

    /// Says goodbye to the server, which then processes what it has received.
    pub(crate) async fn close(mut self) {
        let _ = tokio::time::timeout(ANSWERS_WITHIN, self.writer.shutdown()).await;
    }
}

/// Returns the fields of `CONNECT` that say who the user is.
fn user(credentials: &Credentials, info: &Map<String, Value>) -> Result<Map<String, Value>, LoginError> {
    let nonce = info.get("nonce").and_then(Value::as_str).unwrap_or_default();
    let encode = |signature: &[u8]| data_encoding::BASE64URL_NOPAD.encode(signature);
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| LoginError::Credentials {
        what: credentials::describe(credentials),
        source,
    };
    let fields = match credentials {
        Credentials::None => json!({}),
        Credentials::File(_) | Credentials::Text(_) => {
            let signed = credentials::sign(credentials, nonce.as_bytes())
                .map_err(|(what, source)| LoginError::Credentials { what, source })?;
            json!({ "jwt": signed.jwt, "sig": encode(&signed.signature) })
        }
        Credentials::NkeyFile(path) => {
            let seed = std::fs::read_to_string(path).map_err(|error| unusable(error.into()))?;
            let pair = nkeys::KeyPair::from_seed(seed.trim()).map_err(|error| unusable(error.into()))?;
            let signature = pair
                .sign(nonce.as_bytes())
                .map_err(|error| unusable(error.into()))?;
            json!({ "nkey": pair.public_key(), "sig": encode(&signature) })
        }
        Credentials::Password { user, password } => json!({ "user": user, "pass": password.expose() }),
        Credentials::Token(token) => json!({ "auth_token": token.expose() }),
    };
    match fields {
        Value::Object(fields) => Ok(fields),
        _ => unreachable!("each is an object"),
    }
}
