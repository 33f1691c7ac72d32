//! One request to a leaf's hub over a connection that is made for it: what a person would learn by unplugging the leaf and connecting it
//! again. Start at [`FreshDial::ask`].
//!
//! It speaks the protocol of leaf nodes, as the leaf's own server does, since a hub may offer the leaf that port alone:
//! `server/leafnode.go` and `server/parser.go` of nats-server are the source of its form. Websockets are not spoken.

use std::time::Duration;

use leaf_core::id::LeafName;
use leaf_core::subject;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::embedded::Hub;
use crate::raw::{DialError, Dialler, LEAF_NODES, LoginError, Said, Session};
use crate::settings::{ConnectSettings, Credentials, Tls, is_websocket};

/// How long the hub may take to answer a request, after it has accepted the connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why a request over a new connection got no answer.
#[derive(Debug, thiserror::Error)]
pub enum FreshDialError {
    /// The hub's address is that of a websocket.
    #[error("{url:?} is a websocket, over which no new connection is tried here: a person has to confirm")]
    Websocket {
        /// The address.
        url: String,
    },
    /// No server of the hub can be reached.
    #[error("can't reach the hub")]
    Dial(#[source] DialError),
    /// The address is a port of a NATS server for clients, not its port for leaf nodes.
    #[error(
        "{server} is a NATS server, but not its port for leaf nodes (7422, where its `leafnodes` block says no other)"
    )]
    OtherPort {
        /// The server.
        server: String,
    },
    /// The credentials can't be read.
    #[error("can't read the credentials for the hub")]
    Credentials(#[source] LoginError),
    /// The hub refuses the leaf, or its right to ask.
    #[error("the hub at {server} refuses the leaf: {said}")]
    Refused {
        /// The server.
        server: String,
        /// The server's words.
        said: String,
    },
    /// The connection was made, and lost before the answer.
    #[error("the connection to the hub at {server} was lost")]
    Lost {
        /// The server.
        server: String,
        /// The error of the connection.
        source: std::io::Error,
    },
    /// The hub took the request, and nobody answered it.
    #[error(
        "the hub at {server} took the request, but nothing answered it within {} s: leaf-hub does not run there, or is older \
        than this leaf, or does not know it", ANSWER_WITHIN.as_secs()
    )]
    Unanswered {
        /// The server.
        server: String,
    },
    /// The answer has another form.
    #[error("the hub at {server} sent something other than an answer")]
    NoAnswer {
        /// The server.
        server: String,
    },
}

/// A client that sends one request to a hub, over a new connection as a leaf node for each.
#[derive(Debug, Clone)]
pub struct FreshDial {
    /// One for each server of the hub.
    servers: Vec<ConnectSettings>,
    leaf: LeafName,
}

impl FreshDial {
    /// Takes the settings of the leaf's own server for its hub.
    ///
    /// # Errors
    /// [`FreshDialError::Websocket`].
    pub fn new(hub: &Hub, leaf: &LeafName) -> Result<Self, FreshDialError> {
        if let Some(url) = hub.urls.iter().find(|url| is_websocket(url)) {
            return Err(FreshDialError::Websocket { url: url.clone() });
        }
        // What nats-server knows as an unencrypted connection of leaf nodes.
        let plain = |url: &String| match url.strip_prefix("nats-leaf://") {
            Some(host) => format!("nats://{host}"),
            None => url.clone(),
        };
        let settings = |url: String| ConnectSettings {
            servers: vec![url],
            credentials: Credentials::in_file(&hub.credentials),
            tls: Tls {
                ca: hub.ca.clone(),
                ..Tls::default()
            },
            ..ConnectSettings::new("")
        };
        Ok(Self {
            servers: hub.urls.iter().map(plain).map(settings).collect(),
            leaf: leaf.clone(),
        })
    }

    /// Sends a request on this subject to one server of the hub after the other, over a connection for each, and returns the body of
    /// the first answer. It ends by itself: each server has a time limit of 5 s to take a connection, to let the leaf in, and to answer.
    ///
    /// # Errors
    /// [`FreshDialError`], of the last server.
    pub async fn ask(&self, subject: &str, body: &[u8]) -> Result<Vec<u8>, FreshDialError> {
        let mut last = None;
        for settings in &self.servers {
            match self.ask_at(settings, subject, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = Some(error),
            }
        }
        let none = DialError::BadAddress {
            server: String::new(),
            default_port: LEAF_NODES,
        };
        Err(last.unwrap_or(FreshDialError::Dial(none)))
    }

    /// Sends a request to one server.
    async fn ask_at(
        &self,
        settings: &ConnectSettings,
        subject: &str,
        body: &[u8],
    ) -> Result<Vec<u8>, FreshDialError> {
        let dialler = Dialler::of_leaf_nodes(settings).map_err(FreshDialError::Dial)?;
        let dialled = dialler.dial().await.map_err(FreshDialError::Dial)?;
        let server = dialled.server.clone();
        let says_number = |field| dialled.info.get(field).is_some_and(Value::is_number);
        if !(says_number("client_id") && dialled.info.contains_key("leafnode_urls")) {
            return Err(FreshDialError::OtherPort { server });
        }
        // A server takes a connection with the name and account of another one for that one's successor, and ends the other: the
        // leaf's own server has the leaf's name. A leaf's name has no dot.
        let says = json!({
            "name": format!("witness.{}", self.leaf),
            "server_id": format!("witness.{}", Uuid::now_v7().simple()),
            "remote_account": "witness",
            // The hub may refuse older versions, and this protocol is the same in all that leaves work with.
            "version": dialled.info.get("version").cloned().unwrap_or_default(),
            "headers": false,
        });
        let inbox = format!(
            "{}.{}",
            subject::leaf_inbox_prefix(&self.leaf),
            Uuid::now_v7().simple()
        );
        let interest = format!("LS+ {inbox}\r\n");
        let session = Session::log_in(dialled, &settings.credentials, says, interest.as_bytes()).await;
        let mut session = session.map_err(|error| match error {
            LoginError::Refused(said) => FreshDialError::Refused {
                server: server.clone(),
                said,
            },
            LoginError::Lost(source) => FreshDialError::Lost {
                server: server.clone(),
                source,
            },
            LoginError::Dial(error) => FreshDialError::Dial(error),
            error @ LoginError::Credentials { .. } => FreshDialError::Credentials(error),
        })?;
        let message = [
            format!("LMSG {subject} {inbox} {}\r\n", body.len()).as_bytes(),
            body,
            b"\r\n",
        ]
        .concat();
        let lost = |source| FreshDialError::Lost {
            server: server.clone(),
            source,
        };
        session.write(&message).await.map_err(lost)?;
        let answer = tokio::time::timeout(ANSWER_WITHIN, answer(&mut session, &inbox, &server)).await;
        session.close().await;
        answer.unwrap_or(Err(FreshDialError::Unanswered { server }))
    }
}

/// Returns the body of the first message.
async fn answer(session: &mut Session, inbox: &str, server: &str) -> Result<Vec<u8>, FreshDialError> {
    let server = server.to_owned();
    let mut bytes = Vec::new();
    loop {
        match session.read(&mut bytes).await {
            Ok(Said::Message) => {
                return body(&bytes, inbox)
                    .map(<[u8]>::to_vec)
                    .ok_or(FreshDialError::NoAnswer { server });
            }
            Ok(Said::Error(said)) => return Err(FreshDialError::Refused { server, said }),
            Ok(Said::Pong | Said::Other) => {}
            Ok(Said::End) => {
                let source = std::io::ErrorKind::UnexpectedEof.into();
                return Err(FreshDialError::Lost { server, source });
            }
            Err(source) => return Err(FreshDialError::Lost { server, source }),
        }
    }
}

/// Returns the body of an `LMSG` on this subject.
fn body<'a>(message: &'a [u8], subject: &str) -> Option<&'a [u8]> {
    let end_of_line = message.iter().position(|byte| *byte == b'\n')?;
    let (line, rest) = message.split_at(end_of_line + 1);
    let mut words = line.split(u8::is_ascii_whitespace);
    let is_ours = words.next()?.eq_ignore_ascii_case(b"LMSG") && words.next()? == subject.as_bytes();
    is_ours.then(|| rest.strip_suffix(b"\r\n"))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_on_its_own_inbox_is_an_answer() {
        assert_eq!(body(b"LMSG a.b 2\r\nhi\r\n", "a.b"), Some(&b"hi"[..]));
        assert_eq!(body(b"LMSG a.b | q 2\r\n\r\n\r\n", "a.b"), Some(&b"\r\n"[..]));
        for other in [
            &b"LMSG a.c 2\r\nhi\r\n"[..],
            b"HMSG a.b 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
            b"LMSG a.b 2\r\nhi",
            b"LMSG",
        ] {
            assert_eq!(body(other, "a.b"), None, "{other:?}");
        }
    }

    #[test]
    fn a_hub_behind_a_websocket_is_not_dialled() {
        let hub = Hub {
            urls: vec!["tls://a".to_owned(), "wss://b".to_owned()],
            credentials: "/nowhere".into(),
            ca: None,
        };
        let leaf = LeafName::new("edge").expect("a name");
        let error = FreshDial::new(&hub, &leaf).expect_err("a websocket");
        assert!(error.to_string().contains("wss://b"), "{error}");
    }
}
