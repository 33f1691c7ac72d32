//! The connection that the other modules use: options, events, requests that leave no memory behind.
//!
//! Work-arounds for async-nats 0.51: an unanswered request stays in its map for ever, so a request here has its own
//! inbox; without a connection messages are queued or lost, so a request fails at once instead; a permission violation
//! arrives as an event without a reply, so a waiting request listens for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{HeaderMap, Message, StatusCode};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::sync::{broadcast, watch};

use crate::level::{Mode, Shared};
use crate::options::{ATTEMPT, attempt_of, check_tls_files, classify, options};
use crate::settings::{ConnectError, ConnectSettings, ServerIdentity, Status, is_websocket, without_user};
use crate::stream_error::{RequestError, StreamError, publish_error, request_error};

/// A connection and its status.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    client: async_nats::Client,
    shared: Arc<Shared>,
    servers: Arc<str>,
    inbox_prefix: Arc<str>,
    api_prefix: Arc<str>,
    domain: Option<Arc<str>>,
}

impl Link {
    pub(crate) async fn open(settings: &ConnectSettings, mode: Mode) -> Result<Self, ConnectError> {
        Self::open_with(settings, mode, ATTEMPT).await
    }

    /// Connects within a time limit, which the servers share if there are several.
    pub(crate) async fn open_once(settings: &ConnectSettings, limit: Duration) -> Result<Self, ConnectError> {
        let link = Self::open_with(settings, Mode::Once, attempt_of(limit, settings.servers.len()));
        let link = tokio::time::timeout(limit, link).await;
        link.map_err(|_| ConnectError::TimedOut {
            servers: settings.servers_text(),
            seconds: limit.as_secs_f64(),
        })?
    }

    async fn open_with(
        settings: &ConnectSettings,
        mode: Mode,
        attempt: Duration,
    ) -> Result<Self, ConnectError> {
        let servers = settings.servers_text();
        let mut addresses = Vec::new();
        for server in &settings.servers {
            let address = server.parse::<async_nats::ServerAddr>().ok();
            let address = address.filter(|address| !address.host().is_empty());
            let address = address.ok_or_else(|| ConnectError::BadAddress {
                server: without_user(server),
            })?;
            if is_websocket(server) {
                return Err(ConnectError::Websocket {
                    server: without_user(server),
                });
            }
            addresses.push(address);
        }
        if addresses.is_empty() {
            return Err(ConnectError::BadAddress {
                server: String::new(),
            });
        }
        check_tls_files(settings, &servers)?;
        let shared = Arc::new(Shared::unconnected());
        let options = options(settings, mode, attempt, &shared, &servers)?;
        let client = options
            .connect(addresses)
            .await
            .map_err(|e| classify(&e, attempt, &servers, settings))?;
        if mode == Mode::Once {
            shared.connected(&servers);
        }
        let domain = settings.jetstream_domain.as_deref().map(Arc::from);
        Ok(Self {
            client,
            shared,
            servers: servers.into(),
            inbox_prefix: settings.inbox_prefix.as_str().into(),
            api_prefix: match &domain {
                Some(domain) => format!("$JS.{domain}.API").into(),
                None => "$JS.API".into(),
            },
            domain,
        })
    }

    pub(crate) fn client(&self) -> &async_nats::Client {
        &self.client
    }

    pub(crate) fn servers(&self) -> &str {
        &self.servers
    }

    pub(crate) fn api_prefix(&self) -> &str {
        &self.api_prefix
    }

    pub(crate) fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    pub(crate) fn new_inbox(&self) -> String {
        self.client.new_inbox()
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Makes the next attempt to connect follow at once.
    pub(crate) fn hurry(&self) {
        self.shared.hurry();
    }

    pub(crate) async fn connected(&self) {
        let mut status = self.status();
        // The status may lag behind the client's own state, and vice versa: both must be connected.
        while !(self.is_connected() && status.borrow_and_update().is_connected()) {
            let _ = tokio::time::timeout(Duration::from_millis(500), status.changed()).await;
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    pub(crate) fn server(&self) -> Option<ServerIdentity> {
        self.client.try_server_info().map(|info| ServerIdentity {
            id: info.server_id,
            name: info.server_name,
            version: info.version,
            max_payload_bytes: info.max_payload,
        })
    }

    pub(crate) fn max_message_bytes(&self) -> Option<usize> {
        (self.generation() > 0).then(|| self.client.max_payload())
    }

    pub(crate) fn dropped_messages(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn violations(&self) -> broadcast::Receiver<String> {
        self.shared.violations.subscribe()
    }

    pub(crate) async fn subscribe(&self, subject: String) -> Result<async_nats::Subscriber, StreamError> {
        self.client
            .subscribe(subject.clone())
            .await
            .map_err(|e| StreamError::Server {
                code: 0,
                description: format!("can't subscribe to {subject}: {e}"),
            })
    }

    /// Waits until the server has processed everything that was sent. The client's own flush only empties its buffer,
    /// so this sends a request that every user may send; any reply will do.
    pub(crate) async fn flush(&self, limit: Duration) -> Result<(), StreamError> {
        let subject = format!("{}.INFO", self.api_prefix);
        match self.request(&subject, None, Bytes::new(), limit).await {
            Ok(_) | Err(RequestError::NoResponders | RequestError::Forbidden(_)) => Ok(()),
            Err(error) => Err(request_error(error, "a question", self.domain())),
        }
    }

    pub(crate) async fn close(self, limit: Duration) {
        if !self.is_connected() {
            return;
        }
        let mut closed = self.shared.closed.subscribe();
        // `drain` only starts it; `Closed` reports its end.
        let done = async {
            if self.client.drain().await.is_ok() {
                let _ = closed.wait_for(|closed| *closed).await;
            }
        };
        let _ = tokio::time::timeout(limit, done).await;
    }

    /// Sends a request and returns its reply.
    pub(crate) async fn request(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        body: Bytes,
        limit: Duration,
    ) -> Result<Message, RequestError> {
        let mut replies = self.ask(subject, headers, body).await?;
        replies.next(limit).await
    }

    /// Sends a request that has several replies.
    pub(crate) async fn ask(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        body: Bytes,
    ) -> Result<Replies, RequestError> {
        let wait = self.wait()?;
        let inbox = self.new_inbox();
        let other = |e: &dyn std::fmt::Display| RequestError::Other(e.to_string());
        let subscriber = self
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|e| other(&e))?;
        let sent = match headers {
            Some(headers) => {
                self.client
                    .publish_with_reply_and_headers(subject.to_owned(), inbox, headers, body)
                    .await
            }
            None => {
                self.client
                    .publish_with_reply(subject.to_owned(), inbox, body)
                    .await
            }
        };
        sent.map_err(|e| publish_error(&e))?;
        Ok(Replies {
            link: self.clone(),
            subject: subject.to_owned(),
            subscriber,
            wait,
        })
    }

    /// Begins the wait for a reply, before the request is sent.
    fn wait(&self) -> Result<Wait, RequestError> {
        if !self.is_connected() {
            return Err(RequestError::Disconnected);
        }
        Ok(Wait::new(self))
    }

    /// Sends a request with the client's shared inbox: faster, but an unanswered one leaves an entry behind.
    pub(crate) async fn quick_request(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        body: Bytes,
        limit: Duration,
    ) -> Result<Message, RequestError> {
        let mut wait = self.wait()?;
        let mut request = async_nats::Request::new().payload(body).timeout(None);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let answer = async {
            use async_nats::RequestErrorKind as Kind;
            self.client
                .send_request(subject.to_owned(), request)
                .await
                .map_err(|e| match e.kind() {
                    Kind::NoResponders => RequestError::NoResponders,
                    Kind::TimedOut => RequestError::TimedOut,
                    Kind::MaxPayloadExceeded => RequestError::TooLarge(e.to_string()),
                    _ => RequestError::Other(e.to_string()),
                })
        };
        wait.reply(self, subject, answer, limit).await
    }
}

/// The replies to a request. Dropping it ends the subscription.
#[derive(Debug)]
pub(crate) struct Replies {
    link: Link,
    subject: String,
    subscriber: async_nats::Subscriber,
    wait: Wait,
}

impl Replies {
    /// Returns the next reply.
    pub(crate) async fn next(&mut self, limit: Duration) -> Result<Message, RequestError> {
        let reply = async {
            match self.subscriber.next().await {
                Some(message) if message.status == Some(StatusCode::NO_RESPONDERS) => {
                    Err(RequestError::NoResponders)
                }
                Some(message) => Ok(message),
                None => Err(RequestError::Disconnected),
            }
        };
        self.wait.reply(&self.link, &self.subject, reply, limit).await
    }
}

/// The errors that can occur while a request waits for its reply.
#[derive(Debug)]
pub(crate) struct Wait {
    generation: u64,
    status: watch::Receiver<Status>,
    violations: broadcast::Receiver<String>,
}

impl Wait {
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn new(link: &Link) -> Self {
        Self {
            generation: link.generation(),
            status: link.status(),
            violations: link.violations(),
        }
    }

    /// Waits for a reply, as long as one can come and at most for the limit.
    async fn reply(
        &mut self,
        link: &Link,
        subject: &str,
        reply: impl Future<Output = Result<Message, RequestError>>,
        limit: Duration,
    ) -> Result<Message, RequestError> {
        tokio::select! {
            biased;
            reply = reply => reply,
            error = self.trouble(link, subject) => Err(error),
            () = tokio::time::sleep(limit) => Err(RequestError::TimedOut),
        }
    }

    /// Returns when no reply will come: the connection was lost, or the server denied the request.
    pub(crate) async fn trouble(&mut self, link: &Link, subject: &str) -> RequestError {
        loop {
            if self.generation != link.generation() || !link.is_connected() {
                return RequestError::Disconnected;
            }
            tokio::select! {
                changed = self.status.changed() => if changed.is_err() {
                    return RequestError::Disconnected;
                },
                violation = self.violations.recv() => match violation {
                    Ok(text) if concerns(&text, subject, &link.inbox_prefix) => return RequestError::Forbidden(text),
                    Err(broadcast::error::RecvError::Closed) => return RequestError::Disconnected,
                    _ => {}
                },
            }
        }
    }
}

fn concerns(violation: &str, subject: &str, inbox_prefix: &str) -> bool {
    violation.contains(&format!("\"{subject}\""))
        || (violation.contains("Subscription to") && violation.contains(&format!("\"{inbox_prefix}.")))
}
