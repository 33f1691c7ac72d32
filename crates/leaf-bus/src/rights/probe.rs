//! A connection that tries single rights: it sends one thing, and knows what the server said of it by the answer to a ping
//! that follows.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::raw::{LoginError, Said, Session};
use crate::settings::ConnectSettings;

/// A header for which no stream stores a message, should the user be allowed to publish it
/// (`Nats-Expected-Stream`, <https://docs.nats.io/nats-concepts/jetstream/headers>).
const STORED_BY_NONE: &str = "NATS/1.0\r\nNats-Expected-Stream: cim-other\r\n\r\n";

/// The codes of JetStream's errors that it is off for the account, or for the server
/// (nats-server, `server/errors.json`: JSNotEnabledForAccountErr, JSNotEnabledErr).
const JETSTREAM_OFF: [u64; 2] = [10039, 10076];

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
    session: Session,
    subscriptions: u64,
    heard: VecDeque<Heard>,
    inbox: String,
}

impl Probe {
    pub(super) async fn connect(settings: &ConnectSettings) -> Result<Self, LoginError> {
        Ok(Self {
            session: Session::open(settings).await?,
            subscriptions: 0,
            heard: VecDeque::new(),
            inbox: settings.inbox_prefix.clone(),
        })
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
                Ok(read) => read?,
                Err(_) => return Ok(None),
            }
        }
    }

    /// Sends these bytes and a ping; returns the last error that the server sent before its answer.
    async fn send(&mut self, bytes: &[u8]) -> io::Result<Option<String>> {
        let messages = &mut self.heard;
        let keep = |bytes: &[u8]| messages.extend(heard(&String::from_utf8_lossy(bytes)));
        self.session.send(bytes, keep).await
    }

    /// Reads one frame, and keeps a message.
    async fn read(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        match self.session.read(&mut bytes).await? {
            Said::Message => self.heard.extend(heard(&String::from_utf8_lossy(&bytes))),
            Said::End => return Err(io::ErrorKind::UnexpectedEof.into()),
            Said::Pong | Said::Error(_) | Said::Other => {}
        }
        Ok(())
    }
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
