//! What leafd decides about a session: the answers to its client, and the messages to the program's runner.

use std::collections::VecDeque;
use std::time::Duration;

use super::numbers::Numbers;
use super::wire::{FromRunner, Input, Kept, Stream, ToRunner};
use super::{
    Attach, Attached, Control, Do, Done, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES, Phase, Read, Reason, SIGNALS,
    SessionTask, State, VERSION, Written, size,
};
use crate::job::ProgramExit;
use crate::moment::Moment;

/// The reads of an attachment that wait at most.
const MOST_READS: usize = 16;
/// The writes of an attachment that wait at most.
const MOST_WRITES: usize = 4;
/// The longest wait of a read.
const MAX_WAIT: Duration = Duration::from_secs(20);
/// The longest wait of a write.
const WRITE_WAIT: Duration = Duration::from_secs(5);
/// How long a client is silent until it counts as gone.
const SILENCE: Duration = Duration::from_secs(45);
/// The longest step of the clock that counts: a host that was suspended ends nothing.
const LONGEST_STEP: Duration = Duration::from_secs(10);
/// The ended attachments that are remembered.
const REMEMBERED: usize = 8;

/// A request that waits for its reply: the shell knows whose it is.
pub type Ticket = u64;

/// A request of an attachment whose signature is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// For output.
    Read(Read),
    /// Standard input, from this offset on.
    Write {
        /// The offset of the first byte.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A control.
    Control(Control),
}

/// A reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// To an attach.
    Attached(Box<Attached>),
    /// To a read: output, if there is some, and the state, if it is new.
    Output {
        /// The stream, the offset of the first byte, and the bytes.
        output: Option<(Stream, u64, Vec<u8>)>,
        /// The state.
        state: Option<State>,
    },
    /// To a write.
    Written(Written),
    /// To a control.
    Done(Done),
    /// The request can't be used, with the reason.
    Refused(String),
}

/// What the shell does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answer a request.
    Reply(Ticket, Reply),
    /// Send the runner a message with raw bytes.
    Tell(ToRunner, Vec<u8>),
    /// Cancel the job: its client asked for that, or is gone for good.
    Cancel,
}

/// A session of a job.
#[derive(Debug)]
pub struct Session {
    linger: Duration,
    detached: Duration,
    is_terminal: bool,
    size: (u16, u16),
    /// What the next attach must have.
    nonce: String,
    phase: Phase,
    /// The number of the phase.
    state: u64,
    kept: [Kept; 2],
    input: Input,
    /// The offset behind the input that was passed on: what the runner has not taken yet lies between.
    passed: u64,
    attachment: Option<Attachment>,
    past: VecDeque<(String, Reason)>,
    /// How long it has had no client, and whether the last one detached.
    alone: Duration,
    is_detached: bool,
    was_told_to_end: bool,
    last_tick: Moment,
    pulls: u64,
    /// The number and the streams of the pull that the runner has.
    pulled: Option<u64>,
}

#[derive(Debug)]
struct Attachment {
    id: String,
    chunk: usize,
    numbers: Numbers,
    controls: u64,
    /// The offsets of what is sent next; none before the first read.
    next: Option<[u64; 2]>,
    reads: VecDeque<WaitingRead>,
    writes: Vec<WaitingWrite>,
    /// The offset at which the client ended standard input.
    end_input: Option<u64>,
    /// The number of the last state that was sent.
    state: u64,
    heard: Moment,
}

#[derive(Debug)]
struct WaitingRead {
    ticket: Ticket,
    take: bool,
    until: Moment,
}

#[derive(Debug)]
struct WaitingWrite {
    ticket: Ticket,
    offset: u64,
    bytes: Vec<u8>,
    until: Moment,
}

impl WaitingWrite {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl Session {
    /// Returns a session without a client, whose program does not run yet. `nonce` is random.
    #[must_use]
    pub fn new(task: &SessionTask, nonce: String, now: Moment) -> Self {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        Self {
            linger: seconds(task.linger()),
            detached: seconds(task.detached()),
            is_terminal: task.terminal.is_some(),
            size: task
                .terminal
                .as_ref()
                .map_or((80, 24), |terminal| size(terminal.columns, terminal.rows)),
            nonce,
            phase: Phase::Building,
            state: 1,
            kept: [Kept::default(); 2],
            input: Input::default(),
            passed: 0,
            attachment: None,
            past: VecDeque::new(),
            alone: Duration::ZERO,
            is_detached: false,
            was_told_to_end: false,
            last_tick: now,
            pulls: 0,
            pulled: None,
        }
    }

    /// Returns whether a client is attached.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attachment.is_some()
    }

    /// Returns whether a request with this number may be one that was not taken yet: cheaper than to check its signature.
    #[must_use]
    pub fn may_take(&self, attachment: &str, number: u64) -> bool {
        match &self.attachment {
            Some(current) if current.id == attachment => current.numbers.is_free(number),
            _ => true,
        }
    }

    /// Handles an attach with a right signature: with a nonce that is not the session's it is told the right one. `fresh` are a new id
    /// and a new nonce, both random.
    pub fn attach(
        &mut self,
        ticket: Ticket,
        nonce: &str,
        request: &Attach,
        fresh: (String, String),
        now: Moment,
    ) -> Vec<Action> {
        if !request.versions.contains(&VERSION) {
            let why = format!("this leaf speaks version {VERSION} of sessions, and the client does not");
            return vec![Action::Reply(ticket, Reply::Refused(why))];
        }
        if nonce != self.nonce {
            let attached = Attached {
                nonce: Some(self.nonce.clone()),
                ..Attached::default()
            };
            return vec![Action::Reply(ticket, Reply::Attached(Box::new(attached)))];
        }
        let mut actions = self.leave(Reason::Replaced);
        let (id, nonce) = fresh;
        self.nonce = nonce;
        let chunk = request.chunk_bytes.clamp(MIN_CHUNK_BYTES, MAX_CHUNK_BYTES);
        self.attachment = Some(Attachment {
            id: id.clone(),
            chunk,
            numbers: Numbers::default(),
            controls: 0,
            next: None,
            reads: VecDeque::new(),
            writes: Vec::new(),
            end_input: None,
            state: self.state,
            heard: now,
        });
        (self.alone, self.is_detached) = (Duration::ZERO, false);
        let [stdout, stderr] = self.kept;
        let attached = Attached {
            nonce: None,
            attachment: id,
            version: VERSION,
            stdout,
            stderr,
            stdin: self.input.end,
            chunk_bytes: chunk,
            terminal: self.is_terminal,
            state: Some(self.state_now()),
        };
        actions.push(Action::Reply(ticket, Reply::Attached(Box::new(attached))));
        actions.push(tell(ToRunner::Attached { attached: true }));
        if let (true, Some((columns, rows))) = (self.is_terminal, request.size) {
            let (columns, rows) = size(columns, rows);
            if self.size == (columns, rows) && rows > 1 {
                // Full-screen programs draw anew at a change only.
                actions.push(tell(ToRunner::Resize {
                    columns,
                    rows: rows - 1,
                }));
            }
            self.size = (columns, rows);
            actions.push(tell(ToRunner::Resize { columns, rows }));
        }
        actions
    }

    /// Handles a request with a right signature. One with a number that was taken is not answered.
    pub fn ask(
        &mut self,
        ticket: Ticket,
        attachment: &str,
        number: u64,
        asked: Asked,
        now: Moment,
    ) -> Vec<Action> {
        let Some(current) = self
            .attachment
            .as_mut()
            .filter(|current| current.id == attachment)
        else {
            let past = self.past.iter().find(|(id, _)| id == attachment);
            let reason = past.map_or(Reason::Restarted, |(_, reason)| *reason);
            return vec![ended(ticket, reason)];
        };
        if !current.numbers.take(number) {
            return Vec::new();
        }
        current.heard = now;
        match asked {
            Asked::Read(read) => self.read(ticket, &read, now),
            Asked::Write { offset, bytes } => self.write(ticket, offset, bytes, now),
            Asked::Control(control) => self.control(ticket, &control),
        }
    }

    fn read(&mut self, ticket: Ticket, read: &Read, now: Moment) -> Vec<Action> {
        let Some(current) = &mut self.attachment else {
            return Vec::new();
        };
        let received = [read.stdout, read.stderr];
        let next = current.next.get_or_insert(received);
        if received
            .iter()
            .zip(*next)
            .any(|(received, next)| *received > next)
        {
            let why = "more was received than was sent".to_owned();
            return vec![Action::Reply(ticket, Reply::Refused(why))];
        }
        if read.again {
            *next = received;
            current.state = current.state.min(read.state);
            self.pulled = None;
        }
        let mut actions = vec![tell(ToRunner::Free {
            stdout: read.stdout,
            stderr: read.stderr,
        })];
        if let Phase::Exited { stdout, stderr, .. } = self.phase
            && received == [stdout, stderr]
            && read.state == self.state
        {
            actions.extend(self.leave(Reason::Done));
            actions.push(ended(ticket, Reason::Done));
            actions.push(tell(ToRunner::Finish));
            return actions;
        }
        current.reads.push_back(WaitingRead {
            ticket,
            take: read.take,
            until: now.after(Duration::from_millis(read.wait_ms).min(MAX_WAIT)),
        });
        if current.reads.len() > MOST_READS
            && let Some(oldest) = current.reads.pop_front()
        {
            actions.push(nothing(oldest.ticket));
        }
        actions.extend(self.serve());
        actions
    }

    /// Answers a read with a new state, and asks the runner for output.
    fn serve(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let state = self.state_now();
        let Some(current) = &mut self.attachment else {
            return actions;
        };
        if current.state < self.state
            && let Some(read) = current.reads.pop_front()
        {
            current.state = self.state;
            let reply = Reply::Output {
                output: None,
                state: Some(state),
            };
            actions.push(Action::Reply(read.ticket, reply));
        }
        let Some([stdout, stderr]) = current.next else {
            return actions;
        };
        if self.pulled.is_none() && current.reads.iter().any(|read| read.take) {
            self.pulls += 1;
            self.pulled = Some(self.pulls);
            actions.push(tell(ToRunner::Pull {
                stdout: Some(stdout),
                stderr: Some(stderr).filter(|_| !self.is_terminal),
                max: current.chunk,
                number: self.pulls,
            }));
        }
        actions
    }

    fn write(&mut self, ticket: Ticket, offset: u64, bytes: Vec<u8>, now: Moment) -> Vec<Action> {
        let written = self.written();
        let Some(current) = &mut self.attachment else {
            return Vec::new();
        };
        if bytes.len() > current.chunk {
            let why = format!("a write has at most {} bytes", current.chunk);
            return vec![Action::Reply(ticket, Reply::Refused(why))];
        }
        let write = WaitingWrite {
            ticket,
            offset,
            bytes,
            until: now.after(WRITE_WAIT),
        };
        if current.writes.len() >= MOST_WRITES {
            return vec![Action::Reply(ticket, Reply::Written(written))];
        }
        current.writes.push(write);
        self.pass_input()
    }

    /// Passes input on as far as there is room, and answers the writes that were taken.
    fn pass_input(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        let Some(current) = &mut self.attachment else {
            return actions;
        };
        loop {
            let end = self.input.end;
            let is_over = self.input.closed
                || current.end_input.is_some_and(|at| end >= at)
                || matches!(self.phase, Phase::Exited { .. });
            current.writes.retain(|write| {
                let is_taken = is_over || write.end() <= end;
                if is_taken {
                    let written = Written { end, closed: is_over };
                    actions.push(Action::Reply(write.ticket, Reply::Written(written)));
                }
                !is_taken
            });
            let passed = self.passed;
            let next = current
                .writes
                .iter()
                .find(|write| write.offset <= passed && write.end() > passed);
            let Some(write) = next.filter(|_| self.phase == Phase::Running) else {
                return actions;
            };
            let rest = write
                .bytes
                .get(usize::try_from(passed - write.offset).unwrap_or(usize::MAX)..);
            let rest = rest.unwrap_or_default();
            let room = self.input.room.saturating_sub(passed - end);
            let mut count = (rest.len() as u64).min(room);
            if let Some(at) = current.end_input {
                count = count.min(at.saturating_sub(passed));
            }
            let part = &rest[..usize::try_from(count).unwrap_or(0)];
            if part.is_empty() {
                return actions;
            }
            actions.push(Action::Tell(ToRunner::Input { offset: passed }, part.to_vec()));
            self.passed += count;
        }
    }

    fn control(&mut self, ticket: Ticket, control: &Control) -> Vec<Action> {
        let Some(current) = &mut self.attachment else {
            return Vec::new();
        };
        if control.number != current.controls + 1 {
            let done = Done {
                done: current.controls,
            };
            return vec![Action::Reply(ticket, Reply::Done(done))];
        }
        let mut actions = Vec::new();
        let done = Action::Reply(ticket, Reply::Done(Done { done: control.number }));
        match &control.what {
            Do::Signal(name) if !SIGNALS.contains(&name.as_str()) => {
                let why = format!("a signal is one of {}", SIGNALS.join(", "));
                return vec![Action::Reply(ticket, Reply::Refused(why))];
            }
            Do::Signal(name) => actions.push(tell(ToRunner::Signal { name: name.clone() })),
            Do::EndInput(at) => {
                if current.end_input.is_none() && !self.is_terminal {
                    let at = (*at).max(self.passed);
                    current.end_input = Some(at);
                    actions.push(tell(ToRunner::EndInput { at }));
                }
            }
            Do::Resize(columns, rows) => {
                self.size = size(*columns, *rows);
                let (columns, rows) = self.size;
                actions.push(tell(ToRunner::Resize { columns, rows }));
            }
            Do::Detach => {
                self.is_detached = true;
                actions.push(done);
                actions.extend(self.leave(Reason::Detached));
                return actions;
            }
            Do::End => {
                self.was_told_to_end = true;
                actions.push(Action::Cancel);
            }
        }
        current.controls = control.number;
        actions.push(done);
        actions
    }

    /// Handles a message of the runner.
    pub fn hear(&mut self, message: FromRunner, bytes: Vec<u8>) -> Vec<Action> {
        match message {
            FromRunner::Hello {
                version: _,
                stdout,
                stderr,
                input,
                exit,
            } => {
                self.kept = [stdout, stderr];
                self.input = input;
                self.passed = input.end;
                self.pulled = None;
                match exit {
                    Some(exit) => self.exited(exit, stdout.end, stderr.end),
                    None if self.phase == Phase::Building => {
                        self.phase = Phase::Running;
                        self.state += 1;
                    }
                    None => {}
                }
                let mut actions = vec![tell(ToRunner::Attached {
                    attached: self.attachment.is_some(),
                })];
                if let Some(at) = self.attachment.as_ref().and_then(|current| current.end_input) {
                    actions.push(tell(ToRunner::EndInput { at }));
                }
                if self.is_terminal && self.attachment.is_some() {
                    let (columns, rows) = self.size;
                    actions.push(tell(ToRunner::Resize { columns, rows }));
                }
                actions.extend(self.pass_input());
                actions.extend(self.serve());
                actions
            }
            FromRunner::Output {
                stream,
                offset,
                number,
            } => self.output(stream, offset, number, bytes),
            FromRunner::Taken(input) => {
                self.input = input;
                self.passed = self.passed.max(input.end);
                self.pass_input()
            }
            FromRunner::Exited { exit, stdout, stderr } => {
                self.exited(exit, stdout, stderr);
                let mut actions = self.pass_input();
                actions.extend(self.serve());
                actions
            }
        }
    }

    fn exited(&mut self, exit: ProgramExit, stdout: u64, stderr: u64) {
        let [out, err] = &mut self.kept;
        (out.end, err.end) = (stdout, stderr);
        if !matches!(self.phase, Phase::Exited { .. }) {
            self.phase = Phase::Exited { exit, stdout, stderr };
            self.state += 1;
        }
    }

    fn output(&mut self, stream: Stream, offset: u64, number: u64, bytes: Vec<u8>) -> Vec<Action> {
        if self.pulled != Some(number) {
            return Vec::new();
        }
        self.pulled = None;
        let at = usize::from(stream == Stream::Stderr);
        let end = offset + bytes.len() as u64;
        self.kept[at].end = self.kept[at].end.max(end);
        let mut actions = Vec::new();
        if let Some(current) = &mut self.attachment
            && let Some(next) = &mut current.next
            // A runner is not trusted: it sends no more than was asked for, and from there on.
            && bytes.len() <= current.chunk
            && offset >= next[at]
            && let Some(read) = current.reads.iter().position(|read| read.take)
            && let Some(read) = current.reads.remove(read)
        {
            next[at] = end;
            let reply = Reply::Output {
                output: Some((stream, offset, bytes)),
                state: None,
            };
            actions.push(Action::Reply(read.ticket, reply));
        }
        actions.extend(self.serve());
        actions
    }

    /// Passes time. `counts` is false while the client could not be heard: without a connection to NATS.
    pub fn tick(&mut self, now: Moment, counts: bool) -> Vec<Action> {
        let step = now.since(self.last_tick).min(LONGEST_STEP);
        self.last_tick = now;
        let mut actions = Vec::new();
        let written = self.written();
        if let Some(current) = &mut self.attachment {
            if !counts {
                current.heard = current.heard.after(step).min(now);
            }
            while let Some(read) = current.reads.front()
                && read.until <= now
            {
                actions.push(nothing(read.ticket));
                current.reads.pop_front();
            }
            // Those behind one that waits longer.
            current.reads.retain(|read| {
                let is_over = read.until <= now;
                if is_over {
                    actions.push(nothing(read.ticket));
                }
                !is_over
            });
            current.writes.retain(|write| {
                let is_over = write.until <= now;
                if is_over {
                    actions.push(Action::Reply(write.ticket, Reply::Written(written)));
                }
                !is_over
            });
            if now.since(current.heard) > SILENCE {
                actions.extend(self.leave(Reason::Lost));
            }
            return actions;
        }
        if counts {
            self.alone += step;
        }
        let lives = if self.is_detached {
            self.detached
        } else {
            self.linger
        };
        if self.alone >= lives && !self.was_told_to_end {
            self.was_told_to_end = true;
            // A program that has ended has an outcome: the runner writes it, and ends.
            actions.push(match self.phase {
                Phase::Exited { .. } => tell(ToRunner::Finish),
                _ => Action::Cancel,
            });
        }
        actions
    }

    /// Ends the attachment, since the job has ended, or leafd ends.
    pub fn end(&mut self, reason: Reason) -> Vec<Action> {
        self.leave(reason)
    }

    /// Ends the attachment: what waits is answered.
    fn leave(&mut self, reason: Reason) -> Vec<Action> {
        let Some(current) = self.attachment.take() else {
            return Vec::new();
        };
        let written = self.written();
        let mut actions: Vec<Action> = current
            .reads
            .iter()
            .map(|read| ended(read.ticket, reason))
            .collect();
        actions.extend(
            current
                .writes
                .iter()
                .map(|write| Action::Reply(write.ticket, Reply::Written(written))),
        );
        self.past.push_back((current.id, reason));
        if self.past.len() > REMEMBERED {
            self.past.pop_front();
        }
        (self.alone, self.pulled) = (Duration::ZERO, None);
        actions.push(tell(ToRunner::Attached { attached: false }));
        actions
    }

    fn written(&self) -> Written {
        Written {
            end: self.input.end,
            closed: self.input.closed,
        }
    }

    fn state_now(&self) -> State {
        State {
            number: self.state,
            phase: self.phase.clone(),
        }
    }
}

fn tell(message: ToRunner) -> Action {
    Action::Tell(message, Vec::new())
}

fn nothing(ticket: Ticket) -> Action {
    Action::Reply(
        ticket,
        Reply::Output {
            output: None,
            state: None,
        },
    )
}

/// Returns the reply to a request of an attachment that has ended.
fn ended(ticket: Ticket, reason: Reason) -> Action {
    Action::Reply(
        ticket,
        Reply::Output {
            output: None,
            state: Some(State {
                number: 0,
                phase: reason.phase(),
            }),
        },
    )
}
