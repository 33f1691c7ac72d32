//! Receives and answers commands: plain subscriptions with the NATS service protocol (ADR-32).
//!
//! The server itself refuses a wrong version or subject, a body that is too large, and an invalid command id. A command
//! whose reply subject is not below its caller's own inbox is not carried out and not answered: otherwise a caller
//! could make the leaf publish wherever the leaf may.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use async_nats::{HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::SelectAll;
use leaf_core::command::{COMMAND_ID_HEADER, MAX_COMMAND_BYTES};
use leaf_core::event::header;
use leaf_core::id::{Caller, CommandId, LeafName};
use leaf_core::json::to_json;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::session;
use leaf_core::signed::{MAX_SIGNATURE_BYTES, MAX_TEXT_BYTES, SIGNATURE_HEADER, TEXT_HEADER};
use leaf_core::subject::{self, CommandSubject, SubjectError};
use leaf_core::transfer;

use crate::connect::{Bus, ConnectError, ConnectSettings};
use crate::hub_link::HubLink;
use crate::level::Mode;
use crate::link::Link;
use crate::overlap::{Connection, Overlap};
use crate::parts::{self, PARTS_HEADER, REPLY_BYTES_HEADER};
use crate::service::{ERROR_CODE_HEADER, ERROR_HEADER, SERVICE_NAME, Stats};
use crate::stream_error::{RequestError, StreamError, publish_error};

pub use crate::service::ServiceInfo;

/// How long a draining server waits for messages that are still in flight.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a new connection waits for the server to know its subscription.
const KNOWN_WITHIN: Duration = Duration::from_secs(5);
/// The room for the kind of a signature before its bytes.
const SIGNATURE_KIND_BYTES: usize = 16;
/// The longest header of a request of a session, in bytes.
const MAX_SESSION_HEADER_BYTES: usize = 128;
/// The longest `ce-correlationid`, in bytes.
const MAX_CORRELATION_BYTES: usize = 256;

/// A command whose subject and headers are validated.
#[derive(Debug)]
pub struct Incoming {
    /// The command's caller.
    pub caller: Caller,
    /// The command's noun.
    pub noun: String,
    /// The command's verb.
    pub verb: String,
    /// The command id, if the sender set one.
    pub command_id: Option<CommandId>,
    /// The correlation id, if the sender set one.
    pub correlation: Option<String>,
    /// The headers of a signature, if the sender set any of them.
    pub signed: Option<SignedHeaders>,
    /// The headers of a request of a session, if it has all that each must have.
    pub session: Option<SessionHeaders>,
    /// The headers of a request of an upload or a download, if it has them.
    pub transfer: Option<TransferHeaders>,
    /// Whether it came from a hub, and not from a client of this server.
    pub from_hub: bool,
    /// The body with the arguments, not parsed yet.
    pub body: Bytes,
    /// Sends the reply.
    pub responder: Responder,
}

/// The headers of a signed command, as they arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedHeaders {
    /// The header with the signed text.
    pub text: Option<String>,
    /// The header with the signature over that text.
    pub signature: Option<String>,
}

/// The headers of a request of a session, as they arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionHeaders {
    /// The job and the attachment.
    pub session: String,
    /// The number.
    pub number: String,
    /// The offset of a write.
    pub offset: Option<String>,
    /// The client's signature, in base64.
    pub signature: String,
}

/// The headers of a request of an upload or a download, as they arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferHeaders {
    /// The upload or the download.
    pub upload: String,
    /// The offset of a write or a read.
    pub offset: Option<String>,
}

/// Sends the reply to one command.
#[derive(Debug)]
pub struct Responder {
    link: Arc<Link>,
    stats: Arc<Stats>,
    endpoint: usize,
    reply: String,
    /// Whether the sender takes a large reply in parts.
    parts: bool,
    began: Instant,
    answered: bool,
}

/// Receives commands. It makes progress only while [`Server::next`] is called.
#[derive(Debug)]
pub struct Server {
    link: Arc<Link>,
    leaf: LeafName,
    sources: Vec<Source>,
    /// The source of the last command.
    last_source: usize,
    /// The number of the next source.
    next_source: Connection,
    /// Tells apart the copies of a command that arrives over a fresh connection and the former one.
    overlap: Overlap,
    discovery: SelectAll<Subscriber>,
    stats: Arc<Stats>,
    drained_by: Option<tokio::time::Instant>,
}

/// A connection on which commands arrive, and on which they are answered.
#[derive(Debug)]
struct Source {
    number: Connection,
    link: Arc<Link>,
    commands: Subscriber,
    /// Whether they come from a hub: then their reply subjects are the hub's server's.
    from_hub: bool,
    ended: bool,
}

impl Source {
    async fn open(
        number: Connection,
        link: Arc<Link>,
        leaf: &LeafName,
        from_hub: bool,
    ) -> Result<Self, StreamError> {
        Ok(Self {
            number,
            commands: link.subscribe(subject::commands_of(leaf)).await?,
            link,
            from_hub,
            ended: false,
        })
    }

    /// Takes no further commands; those that have arrived or are in flight are still returned.
    async fn drain(&mut self) {
        let told = if self.link.is_connected() {
            tokio::time::timeout(DRAIN, self.commands.drain()).await
        } else {
            tokio::time::timeout(DRAIN, self.commands.unsubscribe()).await
        };
        if !matches!(told, Ok(Ok(()))) {
            tracing::warn!("a subscription to commands could not be ended in order");
        }
    }
}

/// A connection that was made with credentials that have just been read. It becomes that of the commands by
/// [`Server::take_over`].
#[derive(Debug)]
pub struct FreshConnection(Link);

impl FreshConnection {
    /// Connects. Credentials in a file are read now, and again at each later connection.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn open(settings: &ConnectSettings) -> Result<Self, ConnectError> {
        Link::open(settings, Mode::Once).await.map(Self)
    }
}

/// Returns the next message, and the position of its source; `None` when all have ended. The source after the last one comes
/// first, so that none waits for another.
async fn next_of(sources: &mut [Source], last: usize) -> Option<(usize, Message)> {
    std::future::poll_fn(|cx| {
        let mut all_ended = true;
        for turn in 1..=sources.len() {
            let at = (last + turn) % sources.len();
            let source = &mut sources[at];
            if source.ended {
                continue;
            }
            match source.commands.poll_next_unpin(cx) {
                Poll::Ready(Some(message)) => return Poll::Ready(Some((at, message))),
                Poll::Ready(None) => source.ended = true,
                Poll::Pending => all_ended = false,
            }
        }
        if all_ended {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    })
    .await
}

impl Server {
    /// Subscribes to the commands of a leaf. The connection may be established later, lost and re-established. With a connection it
    /// returns once the server knows the subscriptions, so that whoever then says that it is ready gets the next command.
    ///
    /// # Errors
    /// [`StreamError`] if the connection was closed.
    pub async fn start(bus: &Bus, info: ServiceInfo) -> Result<Self, StreamError> {
        let link = Arc::new(bus.link.clone());
        let commands = Source::open(0, link.clone(), &info.leaf, false).await?;
        let mut discovery = SelectAll::new();
        for name in subject::discovery(SERVICE_NAME, info.id) {
            discovery.push(link.subscribe(name).await?);
        }
        if link.is_connected()
            && let Err(error) = link.flush(KNOWN_WITHIN).await
        {
            tracing::warn!(%error, "the NATS server did not confirm the subscription to commands in time: the first ones may find no responder");
        }
        let leaf = info.leaf.clone();
        Ok(Self {
            link,
            leaf,
            sources: vec![commands],
            last_source: 0,
            next_source: 1,
            overlap: Overlap::default(),
            discovery,
            stats: Arc::new(Stats::new(info)),
            drained_by: None,
        })
    }

    /// Takes the commands of a hub as well, in the account of the connection to it: nothing has to cross to the callers' account.
    ///
    /// # Errors
    /// [`StreamError`] if the connection was closed.
    pub async fn take_from_hub(&mut self, hub: &HubLink) -> Result<(), StreamError> {
        let link = Arc::new(hub.link().clone());
        let source = Source::open(self.number(), link, &self.leaf, true).await?;
        self.sources.push(source);
        Ok(())
    }

    /// Takes the commands of the leaf's own callers over a fresh connection from now on. While both are there,
    /// each command arrives over both and is returned once; those that have arrived over the former one alone, or are in flight
    /// there, are returned and answered over it.
    ///
    /// # Errors
    /// [`StreamError`], if the fresh connection can't be used: then the former one stays.
    pub async fn take_over(&mut self, fresh: FreshConnection) -> Result<(), StreamError> {
        let source = Source::open(self.number(), Arc::new(fresh.0), &self.leaf, false).await?;
        source.link.flush(KNOWN_WITHIN).await?;
        self.overlap.begin(source.number, tokio::time::Instant::now());
        for former in self.sources.iter_mut().filter(|source| !source.from_hub) {
            // What went there alone has arrived after a round trip; a subscription that ends does not wait for it.
            if former.link.is_connected() {
                let _ = former.link.flush(DRAIN).await;
            }
            former.drain().await;
        }
        self.sources.push(source);
        Ok(())
    }

    const fn number(&mut self) -> Connection {
        let number = self.next_source;
        self.next_source += 1;
        number
    }

    /// Forgets sources that have ended, but the last one.
    fn forget_ended(&mut self) {
        if self.sources.iter().any(|source| !source.ended) {
            self.sources.retain(|source| !source.ended);
            self.last_source = 0;
        }
    }

    /// Returns whether a message of a source has not arrived over another one.
    fn is_first(&mut self, source: usize, message: &Message) -> bool {
        let Source { number, from_hub, .. } = self.sources[source];
        let of_callers = self.sources.iter().filter(|source| !source.from_hub).count();
        from_hub
            || self
                .overlap
                .is_first(number, message, of_callers < 2, tokio::time::Instant::now())
    }

    /// Returns the next valid command, or `None` when the server is drained or the connection closed. Answers discovery
    /// requests. No command is lost if the future is dropped.
    pub async fn next(&mut self) -> Option<Incoming> {
        enum Woken {
            Command(Option<(usize, Message)>),
            Discovery(Option<Message>),
            Drained,
        }
        loop {
            if self.sources.iter().any(|source| source.ended) {
                self.forget_ended();
            }
            let (deadline, sources, last) = (self.drained_by, &mut self.sources, self.last_source);
            let woken = tokio::select! {
                biased;
                message = next_of(sources, last) => Woken::Command(message),
                Some(message) = self.discovery.next(), if deadline.is_none() => Woken::Discovery(Some(message)),
                () = wait_until(deadline) => Woken::Drained,
            };
            match woken {
                Woken::Command(Some((source, message))) => {
                    self.last_source = source;
                    if self.is_first(source, &message)
                        && let Some(incoming) = self.check(&self.sources[source], message).await
                    {
                        return Some(incoming);
                    }
                }
                Woken::Discovery(Some(message)) => self.discover(&message).await,
                Woken::Command(None) | Woken::Discovery(None) | Woken::Drained => return None,
            }
        }
    }

    /// Stops receiving commands. [`Server::next`] returns those that have arrived or are in flight, then `None`.
    pub async fn drain(&mut self) {
        if self.drained_by.is_some() {
            return;
        }
        self.drained_by = Some(tokio::time::Instant::now() + DRAIN);
        self.discovery.clear();
        for source in &mut self.sources {
            source.drain().await;
        }
    }

    /// The number of messages that were dropped because their reply subject was not the caller's inbox.
    #[must_use]
    pub fn refused_silently(&self) -> u64 {
        self.stats.silent()
    }

    async fn discover(&self, message: &Message) {
        let Some(reply) = &message.reply else { return };
        let verb = subject::discovery_verb(&message.subject);
        let Some(body) = verb.and_then(|verb| self.stats.discovery(verb)) else {
            return;
        };
        // The sender may be any user, but replies go to inboxes only.
        if !subject::is_inbox(reply) || !self.link.is_connected() {
            return;
        }
        if let Err(error) = self.link.client().publish(reply.clone(), body.into()).await {
            tracing::warn!(%error, subject = %message.subject, "can't answer: raise the server's `max_payload`");
        }
    }

    /// Returns the command, or refuses it and returns `None`.
    async fn check(&self, source: &Source, message: Message) -> Option<Incoming> {
        let parsed = CommandSubject::parse(&message.subject);
        let endpoint = match &parsed {
            Ok(s) => self.stats.endpoint(&s.noun, &s.verb),
            Err(_) => self.stats.other(),
        };
        let caller = match &parsed {
            Ok(subject) => Some(subject.caller.clone()),
            Err(_) => subject::caller_of(&message.subject),
        };
        let reply = match (&caller, &message.reply) {
            // A server's own reply subject leads back into the account of the request, where its caller can't choose another.
            (Some(caller), Some(reply))
                if subject::is_mapped_reply(reply)
                    || (!source.from_hub && subject::is_own_inbox(reply, caller)) =>
            {
                reply.to_string()
            }
            (_, reply) => {
                let reply = reply.as_ref().map(ToString::to_string);
                tracing::warn!(subject = %message.subject, ?reply, "refused: its reply subject is not the caller's own inbox");
                self.stats.refused_silently(endpoint, reply.as_deref());
                return None;
            }
        };
        // A request that crossed from another account has one reply.
        let takes_parts = parts::are_accepted(message.headers.as_ref()) && !subject::is_mapped_reply(&reply);
        let responder = Responder {
            link: source.link.clone(),
            stats: self.stats.clone(),
            endpoint,
            reply,
            parts: takes_parts,
            began: Instant::now(),
            answered: false,
        };
        let headers = message.headers.as_ref();
        let text = |name: &str| {
            headers
                .and_then(|h| h.get(name))
                .map(|value| value.as_str().trim().to_owned())
        };
        // What no leaf accepts is cut, which makes it unreadable.
        let within = |name: &str, bytes: usize| {
            text(name).map(|mut value| {
                value.truncate(value.floor_char_boundary(base64_bytes(bytes) + SIGNATURE_KIND_BYTES + 1));
                value
            })
        };
        let short = |name: &str| text(name).filter(|value| value.len() <= MAX_SESSION_HEADER_BYTES);
        let session = short(session::SESSION_HEADER)
            .zip(short(session::NUMBER_HEADER))
            .zip(short(session::SIGNATURE_HEADER))
            .map(|((session, number), signature)| SessionHeaders {
                session,
                number,
                offset: short(session::OFFSET_HEADER),
                signature,
            });
        let transfer = short(transfer::UPLOAD_HEADER).map(|upload| TransferHeaders {
            upload,
            offset: short(session::OFFSET_HEADER),
        });
        let signed = SignedHeaders {
            text: within(TEXT_HEADER, MAX_TEXT_BYTES),
            signature: within(SIGNATURE_HEADER, MAX_SIGNATURE_BYTES),
        };
        let signed = (signed.text.is_some() || signed.signature.is_some()).then_some(signed);
        let id = text(COMMAND_ID_HEADER)
            .map(|id| CommandId::new(header::decode(&id).into_owned()))
            .transpose();
        let command_id = id.as_ref().ok().cloned().flatten();
        let checked = parsed
            .map_err(|e| subject_problem(&e))
            .and_then(|subject| match message.payload.len() {
                0..=MAX_COMMAND_BYTES => Ok(subject),
                bytes => Err(Problem::new(
                    ProblemCode::TooLarge,
                    format!("the body has {bytes} bytes, at most {MAX_COMMAND_BYTES} are allowed"),
                )),
            })
            .and_then(|subject| match id {
                Ok(_) => Ok(subject),
                Err(e) => Err(Problem::new(
                    ProblemCode::Malformed,
                    format!("the header {COMMAND_ID_HEADER}: {e}"),
                )),
            });
        let mark = text(header::CORRELATION_ID).map(|mark| header::decode(&mark).into_owned());
        let checked = checked.and_then(|subject| match mark {
            Some(mark) if mark.len() > MAX_CORRELATION_BYTES || mark.chars().any(char::is_control) => {
                Err(Problem::new(
                    ProblemCode::Malformed,
                    format!(
                        "the header {} has at most {MAX_CORRELATION_BYTES} bytes and no control characters",
                        header::CORRELATION_ID
                    ),
                ))
            }
            mark => Ok((subject, mark)),
        });
        match checked {
            Ok((subject, _)) if subject.leaf != self.leaf => None,
            Ok((subject, correlation)) => Some(Incoming {
                caller: subject.caller,
                noun: subject.noun,
                verb: subject.verb,
                command_id,
                correlation: correlation.filter(|mark| !mark.is_empty()),
                signed,
                session,
                transfer,
                from_hub: source.from_hub,
                body: message.payload,
                responder,
            }),
            Err(problem) => {
                tracing::info!(subject = %message.subject, problem = %problem, "refused");
                responder.reply(command_id.as_ref(), Err(problem)).await;
                None
            }
        }
    }
}

/// Returns the length of so many bytes in base64.
const fn base64_bytes(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

impl Responder {
    /// Returns the bytes for the body of a reply that is one message.
    #[must_use]
    pub fn room(&self) -> usize {
        parts::room(self.link.client().max_payload())
    }

    /// Sends the reply's body, or a problem with its headers (ADR-32). A body that is larger than the server accepts goes out
    /// in [parts] if its sender takes them, else a problem. Without a connection the reply is dropped; the caller sends the
    /// command again with the same id.
    pub async fn reply(mut self, command_id: Option<&CommandId>, result: Result<Vec<u8>, Problem>) {
        self.answered = true;
        let room = self.room();
        let (sent, problem) = match result {
            Ok(body) if body.len() <= room => {
                let headers = self.headers(command_id);
                (self.send(headers, body.into()).await, None)
            }
            Ok(body) if self.parts => (self.send_in_parts(command_id, body.into(), room).await, None),
            Ok(body) => {
                let problem = self.send_too_large(command_id, body.len(), room).await;
                self.count(Some(&problem));
                return;
            }
            Err(problem) => (self.send_problem(command_id, &problem, room).await, Some(problem)),
        };
        if let Err(error) = sent {
            tracing::warn!(reply = %self.reply, ?error, "can't send a reply");
        }
        self.count(problem.as_ref());
    }

    /// Sends the reply to a request of a session: raw bytes with these headers, or a problem.
    pub async fn reply_session(
        mut self,
        headers: Vec<(&'static str, String)>,
        result: Result<Vec<u8>, Problem>,
    ) {
        self.answered = true;
        let (mut all, body, problem) = match result {
            Ok(body) => (HeaderMap::new(), body, None),
            Err(problem) => {
                let headers = self.headers_of_problem(None, &problem);
                (headers, to_json(&problem), Some(problem))
            }
        };
        for (name, value) in headers {
            all.insert(name, value.as_str());
        }
        if let Err(error) = self.send(all, body.into()).await {
            tracing::debug!(reply = %self.reply, ?error, "can't send a reply of a session");
        }
        self.count(problem.as_ref());
    }

    /// Leaves the request without a reply.
    pub fn forget(mut self) {
        self.answered = true;
    }

    fn count(&self, problem: Option<&Problem>) {
        let problem = problem.map(ToString::to_string);
        self.stats.count(self.endpoint, self.began.elapsed(), problem);
    }

    /// Sends the parts of a body one after the other, all to the same inbox.
    async fn send_in_parts(
        &self,
        command_id: Option<&CommandId>,
        body: Bytes,
        room: usize,
    ) -> Result<(), RequestError> {
        let parts = body.len().div_ceil(room);
        for part in 0..parts {
            let mut headers = self.headers(command_id);
            headers.insert(PARTS_HEADER, parts::name(part + 1, parts));
            let end = body.len().min((part + 1) * room);
            self.send(headers, body.slice(part * room..end)).await?;
        }
        Ok(())
    }

    /// Sends a problem, with a shorter text if the server accepts only small messages: the text is in a header as well.
    async fn send_problem(
        &self,
        command_id: Option<&CommandId>,
        problem: &Problem,
        room: usize,
    ) -> Result<(), RequestError> {
        let mut body = to_json(problem);
        let mut headers = self.headers_of_problem(command_id, problem);
        // JSON may need several bytes for one of the text.
        for share in [4, 16, 64] {
            if body.len() <= room / 2 {
                break;
            }
            let problem = problem.clone().shortened(room / share);
            body = to_json(&problem);
            headers = self.headers_of_problem(command_id, &problem);
        }
        self.send(headers, body.into()).await
    }

    /// Answers that the reply is too large, and returns that problem.
    async fn send_too_large(&self, command_id: Option<&CommandId>, bytes: usize, room: usize) -> Problem {
        let detail = if subject::is_mapped_reply(&self.reply) {
            format!(
                "the reply has {bytes} bytes, and one message of {room} crosses from the leaf to its hub: raise `max_payload` of \
                 both servers, or ask the leaf's own server"
            )
        } else {
            format!(
                "the reply has {bytes} bytes, and the leaf's NATS server accepts {room}: raise its `max_payload`, or ask with the \
                 header `{PARTS_HEADER}: {}`, as leafctl does, which gets the reply in several messages",
                parts::ACCEPTED
            )
        };
        let mut problem = Problem::new(ProblemCode::Failed, detail);
        if let Some(id) = command_id {
            problem = problem.about(id);
        }
        let mut headers = self.headers_of_problem(command_id, &problem);
        headers.insert(REPLY_BYTES_HEADER, bytes.to_string());
        if let Err(error) = self.send(headers, to_json(&problem).into()).await {
            tracing::warn!(reply = %self.reply, ?error, "can't send a reply");
        }
        problem
    }

    fn headers(&self, command_id: Option<&CommandId>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(id) = command_id {
            headers.insert(header::CAUSATION_ID, id.as_str());
        }
        headers.insert(header::CONTENT_TYPE, "application/json");
        headers
    }

    fn headers_of_problem(&self, command_id: Option<&CommandId>, problem: &Problem) -> HeaderMap {
        let mut headers = self.headers(command_id);
        headers.insert(header::CONTENT_TYPE, "application/problem+json");
        headers.insert(ERROR_CODE_HEADER, problem.status.to_string());
        headers.insert(ERROR_HEADER, one_line(&problem.to_string()));
        headers
    }

    async fn send(&self, headers: HeaderMap, body: Bytes) -> Result<(), RequestError> {
        if !self.link.is_connected() {
            return Err(RequestError::Disconnected);
        }
        let sent = self
            .link
            .client()
            .publish_with_headers(self.reply.clone(), headers, body)
            .await;
        sent.map_err(|e| publish_error(&e))
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.answered {
            tracing::warn!(reply = %self.reply, "a command was dropped without a reply");
            let problem = Some("dropped without an answer".to_owned());
            self.stats.count(self.endpoint, self.began.elapsed(), problem);
        }
    }
}

/// Returns the text on one line, as a header needs it.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(512)
        .collect()
}

fn subject_problem(error: &SubjectError) -> Problem {
    let code = match error {
        SubjectError::Version(_) => ProblemCode::UnsupportedVersion,
        SubjectError::Shape(_) | SubjectError::Token(_) => ProblemCode::Malformed,
    };
    Problem::new(code, error.to_string())
}

async fn wait_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
