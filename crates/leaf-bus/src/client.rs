//! A person's or another service's side: command a leaf, read its events, follow its jobs.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::{HeaderMap, Message};
use futures::{Stream, StreamExt as _};
use leaf_core::beat::Beat;
use leaf_core::command::{COMMAND_ID_HEADER, Request};
use leaf_core::event::header;
use leaf_core::id::{Caller, CommandId, ContainerName, JobId, LeafName};
use leaf_core::job::Progress;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::subject::{self, CommandSubject};

use crate::client_error::read_json;
use crate::jetstream::API_TIMEOUT;
use crate::level::Mode;
use crate::link::Link;
use crate::service::{ERROR_CODE_HEADER, ERROR_HEADER};
use crate::settings::{ConnectError, ConnectSettings};
use crate::stream_error::{RequestError, StreamError, request_error};

pub use crate::client_error::ClientError;
pub use crate::follow::EventsFrom;

/// Why a command did not work.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The leaf says why.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// Nobody listens to commands for it.
    #[error("no leaf {0} answers: it is not running, or has no connection to this NATS server")]
    NoLeaf(LeafName),
    /// No answer in time: it may be carried out, or not. With the same command id it may be sent again.
    #[error(
        "leaf {leaf} did not answer within {seconds} s: the command may be carried out; with the same id it may be sent again"
    )]
    TimedOut {
        /// The leaf.
        leaf: LeafName,
        /// How long we waited.
        seconds: f64,
    },
    /// The connection was lost meanwhile.
    #[error(
        "the connection to the NATS server was lost: the command may be carried out; with the same id it may be sent again"
    )]
    Disconnected,
    /// The user may not send it.
    #[error("the user may not send this command: {what}")]
    NoPermission {
        /// What the server says.
        what: String,
    },
    /// The command is larger than the server takes.
    #[error("the command is too large: {0}")]
    TooLarge(String),
    /// The reply is not what it should be.
    #[error("the reply of leaf {leaf} can't be read: it may be of another version")]
    Unreadable {
        /// The leaf.
        leaf: LeafName,
        /// What serde says.
        source: serde_json::Error,
    },
    /// Something that should not be.
    #[error("the command could not be sent: {0}")]
    Other(String),
}

/// How a command is sent.
#[derive(Debug, Clone)]
pub struct CallOptions {
    /// The command's id; with the same id it may be sent again.
    pub id: Option<CommandId>,
    /// How long to wait for the answer.
    pub timeout: Duration,
    /// A mark of our own, which comes back in the events that it causes.
    pub correlation: Option<String>,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            id: None,
            timeout: Duration::from_secs(10),
            correlation: None,
        }
    }
}

/// What a job says while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobMessage {
    /// How far it is.
    Progress(Progress),
    /// A piece of what it prints. Whoever has read the log up to some offset (with `job.log`) goes on with the first piece
    /// whose `next_offset` is beyond it.
    Log {
        /// Where the piece begins in the log, in bytes.
        offset: u64,
        /// Where the next piece begins. The text need not be as long as the piece: what is not UTF-8 is replaced, and
        /// of a job that says very much parts are left out.
        next_offset: u64,
        /// The text.
        text: String,
    },
    /// It has ended; its report says how.
    Ended,
}

/// A connection as one caller.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) link: Link,
    caller: Caller,
}

impl Client {
    /// Makes one attempt to connect, within `timeout`. A connection that is lost later comes back by itself.
    ///
    /// # Errors
    /// [`ConnectError`], which says what to do.
    pub async fn connect(settings: &ConnectSettings, timeout: Duration) -> Result<Self, ConnectError> {
        // Without a caller of its own, a client may still be one on a server that does not care.
        let mut settings = settings.clone();
        let caller = settings
            .caller()
            .unwrap_or_else(|| Caller::new("anonymous").expect("a caller's name"));
        settings.inbox_prefix = subject::inbox_prefix(&caller);
        let link = tokio::time::timeout(timeout, Link::open(&settings, Mode::Once)).await;
        let link = link.map_err(|_| ConnectError::TimedOut {
            servers: settings.servers_text(),
            seconds: timeout.as_secs_f64(),
        })??;
        Ok(Self { link, caller })
    }

    /// Who we are, from the inbox prefix `_INBOX.<caller>`; `anonymous` where it names nobody.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Asks whether JetStream answers us.
    ///
    /// # Errors
    /// [`ConnectError::JetStreamOff`] or [`ConnectError::NoPermission`].
    pub async fn check_jetstream(&self) -> Result<(), ConnectError> {
        self.link.check_jetstream().await
    }

    /// Returns the last lease of every leaf that has one now, sorted by name.
    ///
    /// # Errors
    /// [`ClientError`] when the stream of leases can't be read.
    pub async fn leaves(&self) -> Result<Vec<Beat>, ClientError> {
        // The stream keeps one message a leaf; one that is renewed meanwhile is met twice, the newer last.
        let mut beats = BTreeMap::new();
        let filter = subject::beats();
        let mut pages = self.link.read_from(subject::LEASE_STREAM, 1, Some(&filter));
        loop {
            match pages.next().await {
                Ok(Some(message)) => {
                    let beat: Beat = read_json(&message.subject, &message.body)?;
                    beats.insert(beat.leaf.clone(), beat);
                }
                // No such stream: no leaf was ever here.
                Ok(None) | Err(StreamError::NoStream { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(beats.into_values().collect())
    }

    /// Sends a command and returns its reply.
    ///
    /// # Errors
    /// [`CallError::Problem`] when the leaf refuses it or it failed there.
    pub async fn call<R: Request>(
        &self,
        leaf: &LeafName,
        request: &R,
        options: CallOptions,
    ) -> Result<R::Reply, CallError> {
        let body = serde_json::to_vec(request).expect("a command has string keys only");
        let command = R::DECLARATION;
        let reply = self
            .call_raw(leaf, command.noun, command.verb, body, options)
            .await?;
        serde_json::from_slice(&reply).map_err(|source| CallError::Unreadable {
            leaf: leaf.clone(),
            source,
        })
    }

    /// Sends any noun and verb with any body, and returns the reply's body.
    ///
    /// # Errors
    /// [`CallError::Problem`] when the leaf refuses it or it failed there.
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
        let headers = (!headers.is_empty()).then_some(headers);
        let answer = self
            .link
            .quick_request(&subject, headers, body.into(), options.timeout)
            .await;
        let answer = answer.map_err(|error| match error {
            RequestError::NoResponders => CallError::NoLeaf(leaf.clone()),
            RequestError::TimedOut => CallError::TimedOut {
                leaf: leaf.clone(),
                seconds: options.timeout.as_secs_f64(),
            },
            RequestError::Disconnected => CallError::Disconnected,
            RequestError::Forbidden(what) => CallError::NoPermission { what },
            RequestError::TooLarge(what) => CallError::TooLarge(what),
            RequestError::Other(what) => CallError::Other(what),
        })?;
        match read_problem(&answer) {
            Some(problem) => Err(problem.into()),
            None => Ok(answer.payload.to_vec()),
        }
    }

    /// Asks a container of a leaf how it does, and returns what it says: a JSON document.
    ///
    /// # Errors
    /// [`ClientError`] when it does not answer in time, or what it says is not JSON.
    pub async fn request_container_health(
        &self,
        leaf: &LeafName,
        container: &ContainerName,
        timeout: Duration,
    ) -> Result<serde_json::Value, ClientError> {
        let subject = subject::container_health(leaf, container);
        let answer = self
            .link
            .request(&subject, None, bytes::Bytes::new(), timeout)
            .await;
        let answer = answer.map_err(|e| match e {
            RequestError::NoResponders => StreamError::Unanswered {
                what: format!("{subject}: nobody listens there"),
            },
            other => request_error(other, &subject),
        })?;
        serde_json::from_slice(&answer.payload).map_err(|source| ClientError::Unreadable { subject, source })
    }

    /// Returns what a job says while it runs, from now on. It has no end: the job's state says when it is over.
    ///
    /// # Errors
    /// [`ClientError`] when there is no connection.
    pub async fn job_messages(
        &self,
        leaf: &LeafName,
        job: JobId,
    ) -> Result<impl Stream<Item = JobMessage> + Send + Unpin + use<>, ClientError> {
        let progress = subject::job_progress(leaf, job);
        let (log, ended) = (subject::job_log(leaf, job), subject::job_ended(leaf, job));
        let subscriber = self.link.subscribe(subject::job_messages(leaf, job)).await?;
        self.link.flush(API_TIMEOUT).await?;
        // What is of a newer version, or broken, is left out: it is of the moment only.
        Ok(subscriber.filter_map(move |message| {
            let read = if *message.subject == *progress {
                serde_json::from_slice(&message.payload)
                    .ok()
                    .map(JobMessage::Progress)
            } else if *message.subject == *log {
                read_log(&message)
            } else {
                (*message.subject == *ended).then_some(JobMessage::Ended)
            };
            std::future::ready(read)
        }))
    }

    /// Returns the last sequence number of a leaf's stream; 0 if it is empty.
    ///
    /// # Errors
    /// [`ClientError`] when there is no such stream, or it can't be read.
    pub async fn last_sequence(&self, leaf: &LeafName) -> Result<u64, ClientError> {
        Ok(self
            .link
            .stream_info(&subject::event_stream(leaf))
            .await?
            .state
            .last_sequence)
    }

    /// Returns the events of a leaf in order, each once, and then those to come; over lost connections, too. An error
    /// that does not go away by itself ends it.
    pub fn events(
        &self,
        leaf: &LeafName,
        from: EventsFrom,
    ) -> impl Stream<Item = Result<leaf_core::event::EventRecord, ClientError>> + Send + Unpin + use<> {
        crate::follow::events(self.link.clone(), leaf.clone(), from)
    }

    /// Returns what is so now of a leaf, by key (`container.web`), from the bucket of states.
    ///
    /// # Errors
    /// [`ClientError`] when the bucket can't be read.
    pub async fn state_entries(
        &self,
        leaf: &LeafName,
    ) -> Result<BTreeMap<String, serde_json::Value>, ClientError> {
        crate::kv::entries(&self.link, leaf).await
    }

    /// Closes the connection; returns at the latest after `limit`.
    pub async fn close(self, limit: Duration) {
        self.link.close(limit).await;
    }
}

/// Returns the piece of a job's log that a message is, if it says where it belongs.
fn read_log(message: &Message) -> Option<JobMessage> {
    let headers = message.headers.as_ref()?;
    let number = |name: &str| headers.get(name)?.as_str().parse().ok();
    Some(JobMessage::Log {
        offset: number(header::OFFSET)?,
        next_offset: number(header::NEXT_OFFSET)?,
        text: String::from_utf8_lossy(&message.payload).into_owned(),
    })
}

/// Returns the problem that a reply carries, if it carries one.
fn read_problem(answer: &Message) -> Option<Problem> {
    let headers = answer.headers.as_ref()?;
    let code = headers.get(ERROR_CODE_HEADER)?;
    Some(serde_json::from_slice(&answer.payload).unwrap_or_else(|_| {
        // Not one of ours: a responder that knows ADR-32 only, or a code of a newer leaf.
        let detail = headers
            .get(ERROR_HEADER)
            .map_or("no reason given", |text| text.as_str());
        Problem::new(ProblemCode::Failed, format!("{detail} ({})", code.as_str()))
    }))
}
