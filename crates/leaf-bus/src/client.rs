//! The callers' side: send commands to a leaf, read its events, follow its jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use data_encoding::BASE64;
use futures::Stream;
use jiff::Timestamp;
use leaf_core::beat::Beat;
use leaf_core::command::{COMMAND_ID_HEADER, Request};
use leaf_core::event::header;
use leaf_core::fleet::{ActiveAgent, CopyStatus};
use leaf_core::id::{Caller, CommandId, ContainerName, JobId, LeafName};
use leaf_core::json::to_json;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::session;
use leaf_core::signed::{SIGNATURE_HEADER, TEXT_HEADER};
use leaf_core::subject::{self, CommandSubject};
use leaf_core::transfer::{self, Received};
use uuid::Uuid;

use crate::client_error::read_json;
use crate::jetstream::API_TIMEOUT;
use crate::link::Link;
use crate::pages::Stored;
use crate::parts::{self, Assembled, Assembly, PARTS_HEADER, REPLY_BYTES_HEADER};
use crate::service::{ERROR_CODE_HEADER, ERROR_HEADER};
use crate::settings::{ConnectError, ConnectSettings};
use crate::stream_error::{RequestError, StreamError, request_error};

pub use crate::client_error::ClientError;
pub use crate::follow::EventsFrom;
pub use crate::job_hints::JobHints;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The leaf refused the command, or it failed there.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// No leaf of this name is subscribed to commands.
    #[error("leaf {0} does not reply: it is not running, or not connected to this NATS server")]
    NoLeaf(LeafName),
    /// No reply in time. The command may have been carried out; with the same command id it can be sent again safely.
    #[error(
        "leaf {leaf} did not answer within {seconds} s: the command may still be carried out; send it again with the same id"
    )]
    TimedOut {
        /// The leaf's name.
        leaf: LeafName,
        /// The time limit, in seconds.
        seconds: f64,
    },
    /// The connection was lost before the reply came.
    #[error(
        "the connection to the NATS server was lost: the command may still be carried out; send it again with the same id"
    )]
    Disconnected,
    /// The NATS user may not publish the command.
    #[error("the NATS user may not send this command: {what}")]
    NoPermission {
        /// The server's error.
        what: String,
    },
    /// The command is larger than the server's limit.
    #[error("the command is too large: {0}")]
    TooLarge(String),
    /// The reply can't be parsed.
    #[error("can't parse the reply of leaf {leaf}: the leaf may have another version")]
    Unreadable {
        /// The leaf's name.
        leaf: LeafName,
        /// The reply's body.
        reply: Vec<u8>,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// Another error of the client.
    #[error("can't send the command: {0}")]
    Other(String),
}

/// The options of a command.
#[derive(Debug, Clone)]
pub struct CallOptions {
    /// The command's id; with the same id it can be sent again safely.
    pub id: Option<CommandId>,
    /// How long to wait for the reply.
    pub timeout: Duration,
    /// The correlation id, which the events that the command causes carry.
    pub correlation: Option<String>,
    /// The signature of the command under its id, if it is signed.
    pub signature: Option<Signed>,
}

/// A signature, and the text that is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The text.
    pub text: String,
    /// The kind of its signature: [`SSH_KIND`](leaf_core::signed::SSH_KIND) or
    /// [`OPENPGP_KIND`](leaf_core::signed::OPENPGP_KIND).
    pub kind: &'static str,
    /// Its signature.
    pub signature: Vec<u8>,
}

impl Signed {
    fn add_to(&self, headers: &mut HeaderMap) {
        headers.insert(TEXT_HEADER, BASE64.encode(self.text.as_bytes()).as_str());
        let signature = format!("{}:{}", self.kind, BASE64.encode(&self.signature));
        headers.insert(SIGNATURE_HEADER, signature.as_str());
    }
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            id: None,
            timeout: Duration::from_secs(10),
            correlation: None,
            signature: None,
        }
    }
}

/// The last beat of a leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The beat.
    pub beat: Beat,
    /// When the server that keeps it got it, by that server's clock. The leaf's own, by which the beat has its time, may be
    /// wrong.
    pub at: Timestamp,
}

/// The leaves that the stream of leases has, each list sorted by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaves {
    /// The last beat of each leaf.
    pub heard: Vec<Heard>,
    /// The leaves whose last beat can't be read, or names another leaf.
    pub unreadable: Vec<LeafName>,
}

/// A caller's connection.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) link: Link,
    caller: Caller,
}

/// The reply to a request of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionReply {
    /// The stream of the output in the body.
    pub stream: Option<String>,
    /// The offset of the first byte of that.
    pub offset: Option<String>,
    /// The state, as JSON.
    pub state: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Client {
    /// Tries to connect once, within `timeout`. A connection that is lost later is re-established.
    ///
    /// # Errors
    /// [`ConnectError`], which says what to do.
    pub async fn connect(settings: &ConnectSettings, timeout: Duration) -> Result<Self, ConnectError> {
        // On a server without authentication, a client needs no caller in its settings.
        let mut settings = settings.clone();
        let caller = settings
            .caller()
            .unwrap_or_else(|| Caller::new("anonymous").expect("a caller's name"));
        settings.inbox_prefix = subject::inbox_prefix(&caller);
        let link = Link::open_once(&settings, timeout).await?;
        Ok(Self { link, caller })
    }

    /// The caller, from the inbox prefix `_INBOX.<caller>`; `anonymous` if the prefix has none.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Returns the largest message that the server takes, in bytes.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        self.link.client().max_payload()
    }

    /// Checks that JetStream is enabled and that this user may use it.
    ///
    /// # Errors
    /// [`ConnectError::JetStreamOff`], [`ConnectError::NoJetStream`] or [`ConnectError::NoPermission`].
    pub async fn check_jetstream(&self) -> Result<(), ConnectError> {
        self.link.check_jetstream().await
    }

    /// Returns the last beat of each leaf that the stream of leases has.
    ///
    /// # Errors
    /// [`ClientError`] when the stream of leases can't be read.
    pub async fn leaves(&self) -> Result<Leaves, ClientError> {
        // The stream keeps one message for each leaf; one that is renewed while reading is read twice, the newer last.
        let mut all = BTreeMap::new();
        let filter = subject::beats();
        let pages = self.link.read_from(subject::LEASE_STREAM, 1, Some(&filter));
        let mut pages = pages.timed();
        loop {
            match pages.next_stored().await {
                Ok(Some(Stored { record, time })) => {
                    let Some(leaf) = subject::leaf_of_beat(&record.subject) else {
                        continue;
                    };
                    // A leaf may publish on the subject of its own beat only, whatever the beat says.
                    let beat = serde_json::from_slice(&record.body).ok();
                    let beat = beat.filter(|beat: &Beat| beat.leaf == leaf);
                    let heard = beat.map(|beat| Heard {
                        at: time.unwrap_or(beat.time),
                        beat,
                    });
                    all.insert(leaf, heard);
                }
                // Without the stream no leaf has ever run here.
                Ok(None) | Err(StreamError::NoStream { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let mut leaves = Leaves::default();
        for (leaf, heard) in all {
            match heard {
                Some(heard) => leaves.heard.push(heard),
                None => leaves.unreadable.push(leaf),
            }
        }
        Ok(leaves)
    }

    /// Returns the documents about a hub's copies of leaves, by leaf: none if the server is no hub.
    ///
    /// # Errors
    /// [`ClientError`] when the bucket can't be read.
    pub async fn copies(&self) -> Result<BTreeMap<LeafName, CopyStatus>, ClientError> {
        let mut copies = BTreeMap::new();
        let stream = format!("KV_{}", subject::FLEET_BUCKET);
        let filter = subject::copy_statuses();
        let mut pages = self.link.read_from(&stream, 1, Some(&filter));
        loop {
            match pages.next().await {
                Ok(Some(message)) => {
                    // What is no document is of an entry that was deleted.
                    if let Ok(status) = serde_json::from_slice::<CopyStatus>(&message.body) {
                        copies.insert(status.leaf.clone(), status);
                    }
                }
                Ok(None) | Err(StreamError::NoStream { .. }) => return Ok(copies),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Returns what the hub agent says about the hub's copy of a leaf's events; `None` if this server has no such copy.
    ///
    /// # Errors
    /// [`ClientError`] when it can't be read.
    pub async fn copy_status(&self, leaf: &LeafName) -> Result<Option<CopyStatus>, ClientError> {
        let stream = format!("KV_{}", subject::FLEET_BUCKET);
        let subject = subject::copy_status(leaf);
        let which = serde_json::json!({ "last_by_subj": subject });
        match self.link.get_message(&stream, &which).await {
            Ok(Some(message)) if !message.payload.is_empty() => {
                Ok(Some(read_json(&subject, &message.payload)?))
            }
            Ok(_) | Err(StreamError::NoStream { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the document about the agent of this hub; `None` if this server has none, or it can't be read.
    ///
    /// # Errors
    /// [`ClientError`] when the server does not give it.
    pub async fn hub_agent(&self) -> Result<Option<ActiveAgent>, ClientError> {
        let stream = format!("KV_{}", subject::FLEET_BUCKET);
        let which = serde_json::json!({ "last_by_subj": subject::active_agent() });
        match self.link.get_message(&stream, &which).await {
            Ok(message) => Ok(message.and_then(|message| serde_json::from_slice(&message.payload).ok())),
            Err(StreamError::NoStream { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends a command and returns its reply.
    ///
    /// # Errors
    /// [`CallError::Problem`] if the leaf refuses the command or fails to carry it out.
    pub async fn call<R: Request>(
        &self,
        leaf: &LeafName,
        request: &R,
        options: CallOptions,
    ) -> Result<R::Reply, CallError> {
        let body = to_json(request);
        let command = R::DECLARATION;
        let reply = self
            .call_raw(leaf, command.noun, command.verb, body, options)
            .await?;
        serde_json::from_slice(&reply).map_err(|source| CallError::Unreadable {
            leaf: leaf.clone(),
            reply,
            source,
        })
    }

    /// Sends a command by noun, verb and body, and returns the reply's body.
    ///
    /// # Errors
    /// [`CallError::Problem`] if the leaf refuses the command or fails to carry it out.
    pub async fn call_raw(
        &self,
        leaf: &LeafName,
        noun: &str,
        verb: &str,
        body: Vec<u8>,
        options: CallOptions,
    ) -> Result<Vec<u8>, CallError> {
        let (noun, verb) = (noun.to_owned(), verb.to_owned());
        let subject = CommandSubject {
            leaf: leaf.clone(),
            caller: self.caller.clone(),
            noun,
            verb,
        }
        .build();
        let mut headers = HeaderMap::new();
        if let Some(id) = &options.id {
            headers.insert(COMMAND_ID_HEADER, id.as_str());
        }
        if let Some(mark) = &options.correlation {
            headers.insert(header::CORRELATION_ID, header::encode(mark).as_ref());
        }
        let body = Bytes::from(body);
        let failed = |error| call_error(error, leaf, &options);
        if let Some(signature) = &options.signature {
            // A signed query is answered once: a large reply can't be asked for again.
            signature.add_to(&mut headers);
            headers.insert(PARTS_HEADER, parts::ACCEPTED);
            let replies = self.call_in_parts(&subject, headers, body, options.timeout);
            return Box::pin(replies).await.map_err(failed)?;
        }
        let some_headers = (!headers.is_empty()).then(|| headers.clone());
        let answer = self
            .link
            .quick_request(&subject, some_headers, body.clone(), options.timeout)
            .await
            .map_err(failed)?;
        if let Some(id) = id_of_too_large(&answer) {
            // A change gets its first reply again; a query is asked once more.
            headers.insert(COMMAND_ID_HEADER, id.as_str());
            headers.insert(PARTS_HEADER, parts::ACCEPTED);
            let replies = self.call_in_parts(&subject, headers, body, options.timeout);
            return Box::pin(replies).await.map_err(failed)?;
        }
        body_of(&answer)
    }

    /// Sends a request of a session with these headers, and returns its reply. `tag` is what each reply of the leaf has of the request's
    /// signature.
    ///
    /// # Errors
    /// [`CallError::Problem`] if the leaf refuses it; [`CallError::Other`] if the reply is not the leaf's.
    pub async fn session_request(
        &self,
        leaf: &LeafName,
        verb: &str,
        (headers, tag): (&[(&str, String)], &str),
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<SessionReply, CallError> {
        let subject = CommandSubject {
            leaf: leaf.clone(),
            caller: self.caller.clone(),
            noun: session::NOUN.to_owned(),
            verb: verb.to_owned(),
        }
        .build();
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.insert(*name, value.as_str());
        }
        let options = CallOptions {
            timeout,
            ..CallOptions::default()
        };
        let answer = self
            .link
            .quick_request(&subject, Some(all), Bytes::from(body), timeout)
            .await
            .map_err(|error| call_error(error, leaf, &options))?;
        let header = |name: &str| {
            let value = answer.headers.as_ref().and_then(|headers| headers.get(name));
            value.map(|value| value.as_str().to_owned())
        };
        // Nobody who did not see the request made it.
        if header(session::REPLY_HEADER).as_deref() != Some(tag) {
            return Err(CallError::Other("a reply that is not the leaf's".to_owned()));
        }
        let reply = SessionReply {
            stream: header(session::STREAM_HEADER),
            offset: header(session::OFFSET_HEADER),
            state: header(session::STATE_HEADER),
            body: body_of(&answer)?,
        };
        Ok(reply)
    }

    /// Sends a request of an upload, and returns its reply. A write has the offset of its first byte.
    ///
    /// # Errors
    /// [`CallError::Problem`] if the leaf refuses it; all others say that it can be sent again.
    pub async fn upload_request(
        &self,
        leaf: &LeafName,
        verb: &str,
        upload: Uuid,
        (offset, body): (Option<u64>, Bytes),
        timeout: Duration,
    ) -> Result<Received, CallError> {
        let (body, _) = self
            .transfer_request(leaf, verb, upload, (offset, body), timeout)
            .await?;
        serde_json::from_slice(&body)
            .map_err(|error| CallError::Other(format!("the reply to transfer.{verb}: {error}")))
    }

    /// Returns the bytes of a download from an offset on.
    ///
    /// # Errors
    /// [`CallError::Problem`] if the leaf refuses it; all others say that it can be sent again.
    pub async fn download_request(
        &self,
        leaf: &LeafName,
        download: Uuid,
        offset: u64,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let request = (Some(offset), Bytes::new());
        let (body, replied) = self
            .transfer_request(leaf, "read", download, request, timeout)
            .await?;
        if replied != Some(offset.to_string()) {
            return Err(CallError::Other("a reply to another read".to_owned()));
        }
        Ok(body)
    }

    /// Sends a request of a transfer, and returns the body of the reply and its offset.
    async fn transfer_request(
        &self,
        leaf: &LeafName,
        verb: &str,
        id: Uuid,
        (offset, body): (Option<u64>, Bytes),
        timeout: Duration,
    ) -> Result<(Vec<u8>, Option<String>), CallError> {
        let subject = CommandSubject {
            leaf: leaf.clone(),
            caller: self.caller.clone(),
            noun: transfer::NOUN.to_owned(),
            verb: verb.to_owned(),
        }
        .build();
        let mut headers = HeaderMap::new();
        headers.insert(transfer::UPLOAD_HEADER, id.to_string().as_str());
        if let Some(offset) = offset {
            headers.insert(session::OFFSET_HEADER, offset.to_string().as_str());
        }
        let options = CallOptions {
            timeout,
            ..CallOptions::default()
        };
        let answer = self
            .link
            .quick_request(&subject, Some(headers), body, timeout)
            .await
            .map_err(|error| call_error(error, leaf, &options))?;
        let offset = answer
            .headers
            .as_ref()
            .and_then(|headers| headers.get(session::OFFSET_HEADER))
            .map(|value| value.as_str().to_owned());
        Ok((body_of(&answer)?, offset))
    }

    /// Sends a command whose reply comes in parts, and returns the reply's body.
    async fn call_in_parts(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Result<Vec<u8>, CallError>, RequestError> {
        let mut replies = self.link.ask(subject, Some(headers), body).await?;
        let mut assembly = Assembly::default();
        let mut is_first = true;
        loop {
            let message = replies.next(timeout).await?;
            match assembly.add(&message) {
                Assembled::Whole(body) => return Ok(Ok(body)),
                Assembled::More => is_first = false,
                // It is a whole reply: a problem, or by now small enough.
                Assembled::Broken if is_first => return Ok(body_of(&message)),
                Assembled::Broken => {
                    let what = "a part of the leaf's reply is missing".to_owned();
                    return Ok(Err(CallError::Other(what)));
                }
            }
        }
    }

    /// Sends a health request to a container of a leaf, and returns its reply: a JSON document.
    ///
    /// # Errors
    /// [`ClientError`] if it does not answer in time, or the reply is not JSON.
    pub async fn request_container_health(
        &self,
        leaf: &LeafName,
        container: &ContainerName,
        timeout: Duration,
    ) -> Result<serde_json::Value, ClientError> {
        let subject = subject::container_health(leaf, container);
        let answer = self.link.request(&subject, None, Bytes::new(), timeout).await;
        let answer = answer.map_err(|e| match e {
            RequestError::NoResponders => StreamError::Unanswered {
                what: format!("{subject}: no subscriber"),
            },
            other => request_error(other, &subject, self.link.domain()),
        })?;
        serde_json::from_slice(&answer.payload).map_err(|source| ClientError::Unreadable { subject, source })
    }

    /// Returns hints from now on that a running job may have something new to say, which [`ShowJob`] and [`ReadJobLog`]
    /// return. The job's messages themselves are not read: another caller can have the server send some.
    ///
    /// [`ShowJob`]: leaf_core::command::ShowJob
    /// [`ReadJobLog`]: leaf_core::command::ReadJobLog
    ///
    /// # Errors
    /// [`ClientError`] if there is no connection.
    pub async fn job_hints(&self, leaf: &LeafName, job: JobId) -> Result<JobHints, ClientError> {
        let subscriber = self.link.subscribe(subject::job_messages(leaf, job)).await?;
        self.link.flush(API_TIMEOUT).await?;
        Ok(JobHints::new(subscriber))
    }

    /// Returns the last sequence number of a leaf's stream; 0 if it is empty.
    ///
    /// # Errors
    /// [`ClientError`] if the stream does not exist or can't be read.
    pub async fn last_sequence(&self, leaf: &LeafName) -> Result<u64, ClientError> {
        Ok(self
            .link
            .stream_info(&subject::event_stream(leaf))
            .await?
            .state
            .last_sequence)
    }

    /// Returns the events of a leaf in order, each once, then those that follow, also across lost connections. A
    /// permanent error ends the stream.
    pub fn events(
        &self,
        leaf: &LeafName,
        from: EventsFrom,
    ) -> impl Stream<Item = Result<leaf_core::event::EventRecord, ClientError>> + Send + Unpin + use<> {
        crate::follow::events(self.link.clone(), leaf.clone(), from)
    }

    /// Returns the current state of a leaf by key (`container.web`), from the state bucket.
    ///
    /// # Errors
    /// [`ClientError`] when the bucket can't be read.
    pub async fn state_entries(
        &self,
        leaf: &LeafName,
    ) -> Result<BTreeMap<String, serde_json::Value>, ClientError> {
        crate::kv::entries(&self.link, leaf).await
    }

    /// Closes the connection within `limit`.
    pub async fn close(self, limit: Duration) {
        self.link.close(limit).await;
    }
}

fn call_error(error: RequestError, leaf: &LeafName, options: &CallOptions) -> CallError {
    match error {
        RequestError::NoResponders => CallError::NoLeaf(leaf.clone()),
        RequestError::TimedOut => CallError::TimedOut {
            leaf: leaf.clone(),
            seconds: options.timeout.as_secs_f64(),
        },
        RequestError::Disconnected => CallError::Disconnected,
        RequestError::Forbidden(what) => CallError::NoPermission { what },
        RequestError::TooLarge(what) => CallError::TooLarge(what),
        RequestError::Other(what) => CallError::Other(what),
    }
}

/// Returns the body of a reply, or its problem.
fn body_of(answer: &Message) -> Result<Vec<u8>, CallError> {
    match read_problem(answer) {
        Some(problem) => Err(problem.into()),
        None => Ok(answer.payload.to_vec()),
    }
}

/// Returns the command's id if the answer says that the reply is too large for one message.
fn id_of_too_large(answer: &Message) -> Option<CommandId> {
    let headers = answer.headers.as_ref()?;
    headers.get(REPLY_BYTES_HEADER)?;
    CommandId::new(headers.get(header::CAUSATION_ID)?.as_str()).ok()
}

/// Returns the problem in a reply, if the reply is an error.
fn read_problem(answer: &Message) -> Option<Problem> {
    let headers = answer.headers.as_ref()?;
    let code = headers.get(ERROR_CODE_HEADER)?;
    Some(serde_json::from_slice(&answer.payload).unwrap_or_else(|_| {
        // The responder implements ADR-32 only, or the code is of a newer leaf.
        let body: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
        let detail = body["detail"].as_str().or_else(|| {
            let header = headers.get(ERROR_HEADER)?;
            Some(header.as_str())
        });
        let code = body["code"].as_str().unwrap_or(code.as_str());
        let detail = format!("{} ({code})", detail.unwrap_or("no reason given"));
        Problem::new(ProblemCode::Failed, detail)
    }))
}
