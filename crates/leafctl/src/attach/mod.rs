//! The client of a session: what the program prints comes here, what is typed goes there, and both survive lost messages.

mod stream;
pub(crate) mod terminal;
mod wire;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
use leaf_bus::client::{CallError, SessionReply};
use leaf_core::command::ShowJob;
use leaf_core::id::JobId;
use leaf_core::job::{Job, ProgramExit};
use leaf_core::problem::ProblemCode;
use leaf_core::session::{Attached, Control, Do, Done, Phase, Read, Reason, State, Written};
use leaf_trust::session_key::SessionKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::Error;
use crate::interrupt;
use crate::leaf::Leaf;
use stream::Arriving;
use terminal::{Keys, RawTerminal, Wish, harmless};
use wire::{Failed, Wire};

/// How long a read waits at the leaf.
const WAIT: Duration = Duration::from_secs(5);
/// The reads that are under way: of a terminal, and of pipes.
const TERMINAL_READS: usize = 3;
const PIPE_READS: usize = 8;
/// How long a gap may stay that reads under way may fill.
const GAP: Duration = Duration::from_millis(200);
/// The pause before a request that was lost is sent again.
const PAUSE: Duration = Duration::from_millis(200);
/// How long a leaf may be away until the client gives up: a session without a client lives as long by default.
const PATIENCE: Duration = Duration::from_secs(600);
/// How much output waits to be passed on until no more is taken.
const MAX_PENDING: usize = 256 * 1024;
/// How much input waits to be sent.
const MAX_INPUT: usize = 64 * 1024;

/// How a session ended for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The program ended, and all of its output is here.
    Exit(ProgramExit),
    /// The client detached, and the program runs on.
    Detached,
    /// Another client has the session.
    Replaced,
    /// The job ended otherwise, or before its output was here.
    Job(Box<Job>),
}

/// What a client begins with.
pub(crate) struct Begin {
    /// The job.
    pub job: JobId,
    /// Its key.
    pub key: SessionKey,
    /// Whether the program has a terminal.
    pub terminal: bool,
    /// Whether the session began before: what it printed is shown again.
    pub is_resumed: bool,
}

/// Returns a client's key.
pub(crate) fn new_key() -> Result<SessionKey, Error> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(SessionKey::new(random))
}

type Answer<T> = LocalBoxFuture<'static, Result<T, Failed>>;

/// Is the client of a session until that ends or is detached.
pub(crate) async fn run(leaf: &Leaf, begin: Begin) -> Result<Ended, Error> {
    let _taken = interrupt::take();
    let raw = if begin.terminal {
        RawTerminal::take()?
    } else {
        None
    };
    let mut client = Client::new(leaf, begin, raw.is_some())?;
    let ended = client.run(leaf).await;
    drop(raw);
    ended
}

struct Client {
    wire: std::rc::Rc<Wire>,
    job: JobId,
    is_terminal: bool,
    is_raw: bool,
    is_resumed: bool,
    attachment: String,
    chunk: usize,
    outputs: [Arriving; 2],
    /// What waits to be printed.
    pending: [Vec<u8>; 2],
    /// What is printed harmlessly: all before this offset.
    shown_again_until: u64,
    state: u64,
    exit: Option<(ProgramExit, [u64; 2])>,
    reads: FuturesUnordered<LocalBoxFuture<'static, (Asked, Result<SessionReply, Failed>)>>,
    /// How many of them take output.
    taking: usize,
    /// Whether the next read asks for all from the gap on, and whether one that did is answered next.
    again: bool,
    gap_since: Option<Instant>,
    input: Vec<u8>,
    /// The offset of the first byte of `input`.
    input_at: u64,
    input_ended: bool,
    writing: Option<Answer<SessionReply>>,
    controls: VecDeque<Do>,
    controlled: u64,
    controlling: Option<Answer<SessionReply>>,
    is_detaching: bool,
    keys: Keys,
    signals: Signals,
}

struct Signals {
    size: Signal,
    interrupt: Signal,
    terminate: Signal,
}

/// What a read asks for.
struct Asked {
    /// All from the gap on.
    again: bool,
    /// Output, and not the state alone.
    take: bool,
}

enum Event {
    Read(Asked, Result<SessionReply, Failed>),
    Written(Result<SessionReply, Failed>),
    Controlled(Result<SessionReply, Failed>),
    Typed(io::Result<Vec<u8>>),
    Printed(usize, io::Result<usize>),
    Resized,
    Interrupted,
    Terminated,
    Gap,
}

/// What the loop does after an event.
enum Next {
    Go,
    Attach,
    End(Ended),
    /// The leaf has no such session any more.
    Gone,
}

impl Client {
    #[allow(
        clippy::disallowed_methods,
        reason = "leafctl uses nothing of leaf-host; what is lost while this begins, a person sends again"
    )]
    fn new(leaf: &Leaf, begin: Begin, is_raw: bool) -> Result<Self, Error> {
        let wire = Wire::new(leaf.client.clone(), leaf.name.clone(), begin.job, begin.key);
        Ok(Self {
            wire: std::rc::Rc::new(wire),
            job: begin.job,
            is_terminal: begin.terminal,
            is_raw,
            is_resumed: begin.is_resumed,
            attachment: String::new(),
            chunk: 1024,
            outputs: [Arriving::at(0), Arriving::at(0)],
            pending: [Vec::new(), Vec::new()],
            shown_again_until: 0,
            state: 0,
            exit: None,
            reads: FuturesUnordered::new(),
            taking: 0,
            again: false,
            gap_since: None,
            input: Vec::new(),
            input_at: 0,
            input_ended: false,
            writing: None,
            controls: VecDeque::new(),
            controlled: 0,
            controlling: None,
            is_detaching: false,
            keys: Keys::new(),
            signals: Signals {
                size: signal(SignalKind::window_change())?,
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
            },
        })
    }

    async fn run(&mut self, leaf: &Leaf) -> Result<Ended, Error> {
        // The standard library's would keep back a line that is not complete, such as a prompt.
        let (mut stdout, mut stderr) = (unbuffered(&io::stdout())?, unbuffered(&io::stderr())?);
        let ended = self.follow(leaf, &mut stdout, &mut stderr).await?;
        // All that has arrived is printed before the end, whatever that is.
        let [out, err] = &self.pending;
        stdout.write_all(out).await?;
        stdout.flush().await?;
        stderr.write_all(err).await?;
        stderr.flush().await?;
        Ok(ended)
    }

    async fn follow(
        &mut self,
        leaf: &Leaf,
        stdout: &mut tokio::fs::File,
        stderr: &mut tokio::fs::File,
    ) -> Result<Ended, Error> {
        let mut next = Next::Attach;
        let mut stdin = tokio::io::stdin();
        let mut typed = vec![0; 16 * 1024];
        loop {
            match next {
                Next::Go => {}
                Next::Attach => match self.attach(leaf).await? {
                    Some(ended) => return Ok(ended),
                    None => self.again = false,
                },
                Next::End(ended) => return Ok(ended),
                Next::Gone => {
                    if let Some(job) = self.look(leaf).await?.filter(|job| job.phase.is_final()) {
                        return Ok(Ended::Job(Box::new(job)));
                    }
                    sleep(PAUSE).await;
                    next = Next::Attach;
                    continue;
                }
            }
            self.send();
            let event = self.event(&mut stdin, &mut typed, stdout, stderr).await;
            next = self.handle(event)?;
        }
    }

    /// Attaches, as often as it takes. Returns how the session ended, if it has.
    async fn attach(&mut self, leaf: &Leaf) -> Result<Option<Ended>, Error> {
        let size = self.is_terminal.then(terminal::size);
        let began = Instant::now();
        let attached = loop {
            let attached = tokio::select! {
                attached = self.wire.attach(size, WAIT) => attached,
                _ = self.signals.interrupt.recv(), if !self.is_raw => {
                    return Err(Error::Interrupted { note: Some(format!("job {} continues", self.job)) });
                }
            };
            match attached {
                Ok(attached) => break attached,
                Err(Failed::Lost(error)) if began.elapsed() > PATIENCE => return Err(error.into()),
                Err(Failed::Lost(_)) => {}
                Err(Failed::Refused(error)) => {
                    if let Some(job) = self.look(leaf).await?.filter(|job| job.phase.is_final()) {
                        return Ok(Some(Ended::Job(Box::new(job))));
                    }
                    // Until it has its turn, there is no session.
                    if !is_not_found(&error) || began.elapsed() > PATIENCE {
                        return Err(error.into());
                    }
                }
            }
            sleep(PAUSE).await;
        };
        self.begin(attached);
        Ok(None)
    }

    /// Looks at the job; `None` while the leaf does not answer.
    async fn look(&self, leaf: &Leaf) -> Result<Option<Job>, Error> {
        match leaf.call(&ShowJob { id: self.job }).await {
            Ok(report) => Ok(Some(report.job)),
            Err(Error::Problem(problem)) if problem.code == ProblemCode::NotFound => {
                Err(Error::Problem(problem))
            }
            // It is away, starts or stops.
            Err(_) => Ok(None),
        }
    }

    /// Begins an attachment.
    fn begin(&mut self, attached: Attached) {
        let is_first = self.attachment.is_empty();
        self.attachment = attached.attachment;
        self.chunk = attached.chunk_bytes.max(1);
        if is_first {
            self.outputs = [
                Arriving::at(attached.stdout.first),
                Arriving::at(attached.stderr.first),
            ];
            if self.is_resumed {
                self.shown_again_until = attached.stdout.end;
                self.input_at = attached.stdin;
            }
        } else {
            // What has arrived behind a gap comes again.
            self.outputs = [0, 1].map(|at| Arriving::at(self.outputs[at].position()));
        }
        let taken = usize::try_from(attached.stdin.saturating_sub(self.input_at)).unwrap_or(usize::MAX);
        self.input.drain(..taken.min(self.input.len()));
        self.input_at = self.input_at.max(attached.stdin);
        self.forget_reads();
        (self.writing, self.controlling) = (None, None);
        self.controlled = 0;
        self.gap_since = None;
        if self.input_ended {
            self.controls
                .push_back(Do::EndInput(self.input_at + self.input.len() as u64));
        }
        if let Some(state) = attached.state {
            self.learn(state);
        }
    }

    /// Sends what is to be sent.
    fn send(&mut self) {
        let most = if self.is_terminal {
            TERMINAL_READS
        } else {
            PIPE_READS
        };
        // One that takes nothing keeps the attachment, and must not stand in the way of others once output is taken again.
        let take = self.pending.iter().map(Vec::len).sum::<usize>() < MAX_PENDING;
        while (take && self.taking < most) || self.reads.is_empty() {
            let again = std::mem::take(&mut self.again);
            let read = Read {
                stdout: self.outputs[0].position(),
                stderr: self.outputs[1].position(),
                state: self.state,
                take,
                again,
                wait_ms: u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX),
            };
            let answer = self.request("read", None, serde_json::to_vec(&read).unwrap_or_default(), WAIT);
            self.taking += usize::from(take);
            self.reads
                .push(Box::pin(async move { (Asked { again, take }, answer.await) }));
            if self.is_finished() {
                break;
            }
        }
        if self.writing.is_none() && !self.input.is_empty() {
            let part = self.input[..self.input.len().min(self.chunk)].to_vec();
            self.writing = Some(self.request("write", Some(self.input_at), part, WAIT));
        }
        if self.controlling.is_none()
            && let Some(what) = self.controls.front()
        {
            let control = Control {
                number: self.controlled + 1,
                what: what.clone(),
            };
            let body = serde_json::to_vec(&control).unwrap_or_default();
            self.controlling = Some(self.request("control", None, body, WAIT));
        }
    }

    fn forget_reads(&mut self) {
        (self.reads, self.taking) = (FuturesUnordered::new(), 0);
    }

    /// Returns whether all output is here.
    fn is_finished(&self) -> bool {
        let positions = [self.outputs[0].position(), self.outputs[1].position()];
        self.exit.as_ref().is_some_and(|(_, ends)| *ends == positions)
    }

    fn request(
        &self,
        verb: &'static str,
        offset: Option<u64>,
        body: Vec<u8>,
        wait: Duration,
    ) -> Answer<SessionReply> {
        let (wire, attachment) = (self.wire.clone(), self.attachment.clone());
        let timeout = wait + Duration::from_secs(1);
        Box::pin(async move {
            let answer = wire.ask(verb, &attachment, offset, body, timeout).await;
            if matches!(answer, Err(Failed::Lost(_))) {
                sleep(PAUSE).await;
            }
            answer
        })
    }

    async fn event(
        &mut self,
        stdin: &mut tokio::io::Stdin,
        typed: &mut [u8],
        stdout: &mut tokio::fs::File,
        stderr: &mut tokio::fs::File,
    ) -> Event {
        let gap_at = self.gap_since.map(|since| since + GAP);
        let takes_input = !self.input_ended && self.input.len() < MAX_INPUT && !self.is_detaching;
        let [out, err] = &self.pending;
        tokio::select! {
            biased;
            Some((asked, answer)) = self.reads.next() => Event::Read(asked, answer),
            answer = of(&mut self.writing) => Event::Written(answer),
            answer = of(&mut self.controlling) => Event::Controlled(answer),
            // It returns once the bytes are taken, before they are written.
            printed = stdout.write(out), if !out.is_empty() => Event::Printed(0, printed),
            printed = stderr.write(err), if !err.is_empty() => Event::Printed(1, printed),
            read = stdin.read(typed), if takes_input => Event::Typed(read.map(|count| typed[..count].to_vec())),
            _ = self.signals.size.recv(), if self.is_terminal => Event::Resized,
            _ = self.signals.interrupt.recv() => Event::Interrupted,
            _ = self.signals.terminate.recv() => Event::Terminated,
            () = sleep_until(gap_at.unwrap_or_else(Instant::now)), if gap_at.is_some() => Event::Gap,
        }
    }

    fn handle(&mut self, event: Event) -> Result<Next, Error> {
        match event {
            Event::Read(asked, answer) => {
                self.taking -= usize::from(asked.take);
                self.read(asked.again, answer)
            }
            Event::Written(answer) => {
                self.writing = None;
                let Some(reply) = usable(answer) else {
                    return Ok(Next::Go);
                };
                if let Some(next) = self.of_state(&reply) {
                    return Ok(next);
                }
                if let Ok(written) = serde_json::from_slice::<Written>(&reply.body) {
                    let taken = if written.closed {
                        self.input.len() as u64
                    } else {
                        // An end beyond what was sent is no end.
                        written
                            .end
                            .saturating_sub(self.input_at)
                            .min(self.input.len() as u64)
                    };
                    self.input.drain(..usize::try_from(taken).unwrap_or(0));
                    self.input_at += taken;
                }
                Ok(Next::Go)
            }
            Event::Controlled(answer) => {
                self.controlling = None;
                let reply = match answer {
                    Ok(reply) => reply,
                    Err(Failed::Lost(_)) => return Ok(Next::Go),
                    Err(Failed::Refused(error)) if is_not_found(&error) => return Ok(Next::Gone),
                    Err(Failed::Refused(_)) => {
                        self.controls.pop_front();
                        return Ok(Next::Go);
                    }
                };
                if let Some(next) = self.of_state(&reply) {
                    return Ok(next);
                }
                if let Ok(Done { done }) = serde_json::from_slice::<Done>(&reply.body)
                    && done == self.controlled + 1
                {
                    self.controlled = done;
                    let was = self.controls.pop_front();
                    if was == Some(Do::Detach) {
                        return Ok(Next::End(Ended::Detached));
                    }
                }
                Ok(Next::Go)
            }
            Event::Printed(at, printed) => {
                let count = printed?;
                self.pending[at].drain(..count);
                Ok(Next::Go)
            }
            Event::Typed(typed) => {
                self.typed(&typed?);
                Ok(Next::Go)
            }
            Event::Resized => {
                let (columns, rows) = terminal::size();
                // Of several the last one counts; the first may be under way.
                let first = usize::from(self.controlling.is_some());
                let mut at = 0;
                self.controls.retain(|control| {
                    at += 1;
                    at <= first || !matches!(control, Do::Resize(..))
                });
                self.controls.push_back(Do::Resize(columns, rows));
                Ok(Next::Go)
            }
            Event::Interrupted => {
                self.controls.push_back(Do::Signal("INT".to_owned()));
                Ok(Next::Go)
            }
            Event::Terminated => Err(Error::Interrupted {
                note: Some(format!(
                    "job {} continues until its session counts as left",
                    self.job
                )),
            }),
            Event::Gap => {
                self.again = true;
                self.gap_since = None;
                // A read that asks so goes out at once.
                self.forget_reads();
                Ok(Next::Go)
            }
        }
    }

    fn read(&mut self, again: bool, answer: Result<SessionReply, Failed>) -> Result<Next, Error> {
        let reply = match answer {
            Ok(reply) => reply,
            Err(Failed::Lost(_)) => {
                self.again = true;
                return Ok(Next::Go);
            }
            Err(Failed::Refused(error)) if is_not_found(&error) => return Ok(Next::Gone),
            Err(Failed::Refused(error)) => return Err(error.into()),
        };
        if let Some(next) = self.of_state(&reply) {
            return Ok(next);
        }
        let at = match reply.stream.as_deref() {
            Some("stdout") => 0,
            Some("stderr") => 1,
            _ => return Ok(Next::Go),
        };
        let Some(offset) = reply
            .offset
            .as_ref()
            .and_then(|offset| offset.parse::<u64>().ok())
        else {
            return Ok(Next::Go);
        };
        let begin = self.outputs[at].position();
        let mut ready = self.outputs[at].take(offset, reply.body);
        if again && self.outputs[at].has_gap() {
            // It was asked for from the gap on: the leaf has dropped that.
            ready = self.outputs[at].skip_gap();
        }
        if at == 0 && begin < self.shown_again_until && self.is_raw {
            let old = usize::try_from(self.shown_again_until - begin)
                .unwrap_or(usize::MAX)
                .min(ready.len());
            self.pending[at].extend(harmless(&ready[..old]));
            ready.drain(..old);
        }
        self.pending[at].extend(ready);
        let has_gap = self.outputs.iter().any(Arriving::has_gap);
        self.gap_since = has_gap.then(|| self.gap_since.unwrap_or_else(Instant::now));
        if self.is_finished() {
            // The reads under way wait for what will not come: one more says that all is here.
            self.forget_reads();
        }
        Ok(Next::Go)
    }

    /// Reads the state of a reply, and returns what follows from it at once.
    fn of_state(&mut self, reply: &SessionReply) -> Option<Next> {
        let state: State = serde_json::from_str(reply.state.as_deref()?).ok()?;
        if let Phase::Ended { reason, again } = state.phase {
            return Some(match (reason, &self.exit) {
                (_, _) if again => Next::Attach,
                (Reason::Done, Some((exit, _))) => Next::End(Ended::Exit(exit.clone())),
                (Reason::Detached, _) => Next::End(Ended::Detached),
                (Reason::Replaced, _) => Next::End(Ended::Replaced),
                _ => Next::Gone,
            });
        }
        self.learn(state);
        if self.is_finished() {
            self.forget_reads();
        }
        None
    }

    fn learn(&mut self, state: State) {
        if state.number >= self.state {
            self.state = state.number;
            if let Phase::Exited { exit, stdout, stderr } = state.phase {
                self.exit = Some((exit, [stdout, stderr]));
            }
        }
    }

    fn typed(&mut self, typed: &[u8]) {
        if typed.is_empty() {
            self.input_ended = true;
            let end = self.input_at + self.input.len() as u64;
            self.controls.push_back(Do::EndInput(end));
            return;
        }
        if !self.is_raw {
            self.input.extend_from_slice(typed);
            return;
        }
        let (bytes, wish) = self.keys.read(typed);
        self.input.extend(bytes);
        match wish {
            Some(Wish::End) => self.controls.push_back(Do::End),
            Some(Wish::Detach) => {
                self.is_detaching = true;
                self.controls.push_back(Do::Detach);
            }
            None => {}
        }
    }
}

/// Returns a standard output whose bytes go out as they come.
fn unbuffered(standard: &impl AsFd) -> io::Result<tokio::fs::File> {
    let file = std::fs::File::from(standard.as_fd().try_clone_to_owned()?);
    Ok(tokio::fs::File::from_std(file))
}

/// Returns a reply that was not lost; what was lost is sent again.
fn usable(answer: Result<SessionReply, Failed>) -> Option<SessionReply> {
    answer.ok()
}

fn is_not_found(error: &CallError) -> bool {
    matches!(error, CallError::Problem(problem) if problem.code == ProblemCode::NotFound)
}

async fn of(answer: &mut Option<Answer<SessionReply>>) -> Result<SessionReply, Failed> {
    match answer {
        Some(answer) => answer.await,
        None => std::future::pending().await,
    }
}
