//! A connection that tries single rights: it sends one thing, and knows what the server said of it by the answer to a ping
//! that follows.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::Instant;

use crate::credentials;
use crate::raw::{DialError, Dialled, Dialler, Frame, Frames, Stream};
use crate::settings::{ConnectSettings, Credentials};

/// How long the server may take to answer a ping.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// A header for which no stream stores a message, should the user be allowed to publish it
/// (`Nats-Expected-Stream`, <https://docs.nats.io/nats-concepts/jetstream/headers>).
const STORED_BY_NONE: &str = "NATS/1.0\r\nNats-Expected-Stream: cim-other\r\n\r\n";

/// The codes of JetStream's errors that it is off for the account, or for the server
/// (nats-server, `server/errors.json`: JSNotEnabledForAccountErr, JSNotEnabledErr).
const JETSTREAM_OFF: [u64; 2] = [10039, 10076];

/// Why a user can't be tried.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
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

/// A message that was heard.
#[derive(Debug)]
pub(super) struct Heard {
    subscription: u64,
    /// The subject for its answer.
    pub(super) reply: Option<String>,
    /// Whether the server says that nobody is subscribed to the request.
    no_responders: bool,
    /// The code of its error, if it is one of the JetStream API.
    error: Option<u64>,
}

impl Heard {
    /// Whether it is an error of the JetStream API.
    pub(super) fn is_error(&self) -> bool {
        self.error.is_some()
    }

    /// Whether it says that the account has no JetStream: the server answers so where no import leads to another account.
    pub(super) fn is_jetstream_off(&self) -> bool {
        self.error.is_some_and(|code| JETSTREAM_OFF.contains(&code))
    }
}

/// What became of a request.
pub(super) enum Asked {
    Replied(Heard),
    /// Nobody answers.
    Silent,
    /// The server refuses the request.
    Refused,
}

pub(super) struct Probe {
    reader: Frames<ReadHalf<Box<dyn Stream>>>,
    writer: WriteHalf<Box<dyn Stream>>,
    subscriptions: u64,
    heard: VecDeque<Heard>,
    inbox: String,
}

impl Probe {
    pub(super) async fn connect(settings: &ConnectSettings) -> Result<Self, ProbeError> {
        let dialler = Dialler::new(settings).map_err(ProbeError::Dial)?;
        let Dialled { reader, writer, info } = dialler.dial().await.map_err(ProbeError::Dial)?;
        let mut probe = Self {
            reader,
            writer,
            subscriptions: 0,
            heard: VecDeque::new(),
            inbox: settings.inbox_prefix.clone(),
        };
        let mut connect = user(&settings.credentials, &info)?;
        for (field, value) in [
            ("verbose", json!(false)),
            ("pedantic", json!(false)),
            ("tls_required", json!(false)),
            ("headers", json!(true)),
            ("no_responders", json!(true)),
            ("echo", json!(true)),
            ("lang", json!("rust")),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("name", json!(settings.name)),
        ] {
            connect.insert(field.to_owned(), value);
        }
        let connect = format!("CONNECT {}\r\n", Value::Object(connect));
        match probe.send(connect.as_bytes()).await {
            Ok(None) => Ok(probe),
            Ok(Some(said)) => Err(ProbeError::Refused(said)),
            Err(error) => Err(ProbeError::Lost(error)),
        }
    }

    /// Returns a new subject below the user's inbox prefix.
    pub(super) fn new_inbox(&self) -> String {
        format!("{}.{}", self.inbox, uuid::Uuid::now_v7().simple())
    }

    /// Publishes a message that no stream stores; returns the server's refusal.
    pub(super) async fn publish(&mut self, subject: &str, reply: &str) -> io::Result<Option<String>> {
        let size = STORED_BY_NONE.len();
        let message = format!("HPUB {subject} {reply} {size} {size}\r\n{STORED_BY_NONE}\r\n");
        self.send(message.as_bytes()).await
    }

    /// Sends a request with an empty body; returns the server's refusal.
    pub(super) async fn request(&mut self, subject: &str, reply: &str) -> io::Result<Option<String>> {
        self.send(format!("PUB {subject} {reply} 0\r\n\r\n").as_bytes())
            .await
    }

    /// Subscribes; returns the subscription, or the server's refusal.
    pub(super) async fn subscribe(&mut self, subject: &str) -> io::Result<Result<u64, String>> {
        self.subscriptions += 1;
        let id = self.subscriptions;
        let refused = self.send(format!("SUB {subject} {id}\r\n").as_bytes()).await?;
        Ok(refused.map_or(Ok(id), Err))
    }

    pub(super) async fn unsubscribe(&mut self, subscription: u64) -> io::Result<()> {
        self.send(format!("UNSUB {subscription}\r\n").as_bytes()).await?;
        self.heard.retain(|heard| heard.subscription != subscription);
        Ok(())
    }

    /// Sends a request with an empty body, with an inbox of its own, and waits for the reply.
    pub(super) async fn ask(&mut self, subject: &str, within: Duration) -> io::Result<Asked> {
        let inbox = self.new_inbox();
        let Ok(replies) = self.subscribe(&inbox).await? else {
            return Ok(Asked::Refused);
        };
        let asked = if self.request(subject, &inbox).await?.is_some() {
            Asked::Refused
        } else {
            match self.hear(replies, within).await? {
                Some(reply) if !reply.no_responders => Asked::Replied(reply),
                _ => Asked::Silent,
            }
        };
        self.unsubscribe(replies).await?;
        Ok(asked)
    }

    /// Waits for a message of a subscription.
    pub(super) async fn hear(&mut self, subscription: u64, within: Duration) -> io::Result<Option<Heard>> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(at) = self
                .heard
                .iter()
                .position(|heard| heard.subscription == subscription)
            {
                return Ok(self.heard.remove(at));
            }
            // A message comes whole or not at all: reading is cut off only where the wait ends for good.
            match tokio::time::timeout_at(deadline, self.read()).await {
                Ok(read) => drop(read?),
                Err(_) => return Ok(None),
            }
        }
    }

    /// Sends these bytes and a ping; returns the last error that the server sent before its answer.
    async fn send(&mut self, bytes: &[u8]) -> io::Result<Option<String>> {
        let mut bytes = bytes.to_vec();
        bytes.extend(b"PING\r\n");
        self.writer.write_all(&bytes).await?;
        self.writer.flush().await?;
        let mut said = None;
        let answer = async {
            loop {
                match self.read().await? {
                    Line::Pong => return Ok(said),
                    Line::Error(text) => said = Some(text),
                    Line::Other => {}
                    Line::End => return said.map(Some).ok_or(io::ErrorKind::UnexpectedEof.into()),
                }
            }
        };
        tokio::time::timeout(ANSWERS_WITHIN, answer)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Reads one frame: keeps a message, and answers a ping.
    async fn read(&mut self) -> io::Result<Line> {
        let mut bytes = Vec::new();
        let frame = self.reader.next(&mut bytes).await?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(match frame {
            None => Line::End,
            Some(Frame::Info) => Line::Other,
            Some(Frame::Message) => {
                self.heard.extend(heard(&text));
                Line::Other
            }
            Some(Frame::Line) if text.starts_with("PONG") => Line::Pong,
            Some(Frame::Line) if text.starts_with("PING") => {
                self.writer.write_all(b"PONG\r\n").await?;
                self.writer.flush().await?;
                Line::Other
            }
            Some(Frame::Line) => text.strip_prefix("-ERR").map_or(Line::Other, |said| {
                Line::Error(said.trim().trim_matches('\'').to_owned())
            }),
        })
    }
}

enum Line {
    Pong,
    Error(String),
    Other,
    End,
}

/// Returns the message of a frame `MSG subject id [reply] size` or `HMSG subject id [reply] size size`.
fn heard(text: &str) -> Option<Heard> {
    let (line, rest) = text.split_once("\r\n")?;
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let with_headers = words.first()?.eq_ignore_ascii_case("HMSG");
    let sizes = if with_headers { 2 } else { 1 };
    Some(Heard {
        subscription: words.get(2)?.parse().ok()?,
        reply: (words.len() == 4 + sizes).then(|| words[3].to_owned()),
        no_responders: with_headers && rest.starts_with("NATS/1.0 503"),
        error: serde_json::from_str::<Value>(rest)
            .ok()
            .and_then(|reply| Some(reply.get("error")?["err_code"].as_u64().unwrap_or_default())),
    })
}

/// Returns the fields of `CONNECT` that say who the user is.
fn user(credentials: &Credentials, info: &Map<String, Value>) -> Result<Map<String, Value>, ProbeError> {
    let nonce = info.get("nonce").and_then(Value::as_str).unwrap_or_default();
    let encode = |signature: &[u8]| data_encoding::BASE64URL_NOPAD.encode(signature);
    let unusable = |source: Box<dyn std::error::Error + Send + Sync>| ProbeError::Credentials {
        what: credentials::describe(credentials),
        source,
    };
    let fields = match credentials {
        Credentials::None => json!({}),
        Credentials::File(_) | Credentials::Text(_) => {
            let signed = credentials::sign(credentials, nonce.as_bytes())
                .map_err(|(what, source)| ProbeError::Credentials { what, source })?;
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
