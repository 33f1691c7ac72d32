//! Sessions: takes the requests of their clients, has [`Session`] decide, and speaks to the runners of the programs.
//!
//! Requests come here from the task that takes commands, before anything else is judged, so a key that is typed waits neither for the
//! main loop nor for a person's signature. `docs/protocol/sessions.md` is the contract.

mod runner;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use leaf_bus::connect::Bus;
use leaf_bus::serve::{Incoming, Responder};
use leaf_core::id::{Caller, JobId, LeafName};
use leaf_core::job::Job;
use leaf_core::json::to_json;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::session::numbers::MAX_NUMBER;
use leaf_core::session::text::{Signed, signed_text};
use leaf_core::session::wire::{FromRunner, Stream};
use leaf_core::session::{
    Action, Asked, NOUN, OFFSET_HEADER, REPLY_CHARACTERS, REPLY_HEADER, Reason, Reply, STATE_HEADER,
    STREAM_HEADER, Session, Ticket,
};
use leaf_trust::session_key::is_signed_by;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::clock::Clock;
use runner::Runner;

/// The period in which sessions look at the clock, while there are some.
const TICK: Duration = Duration::from_secs(1);
/// The verbs of the requests of a client.
const VERBS: [&str; 4] = ["attach", "read", "write", "control"];
/// The wrong signatures of a caller, over one way, that are checked in a second.
const MOST_WRONG: u32 = 200;

/// Returns whether it is a request of a session's client, which is none of the engine's.
#[must_use]
pub fn is_request(incoming: &Incoming) -> bool {
    incoming.noun == NOUN && VERBS.contains(&incoming.verb.as_str())
}

/// What happens to the job of a session.
#[derive(Debug)]
pub enum News {
    /// It runs, or was found running.
    Began {
        /// The job.
        job: Box<Job>,
        /// Cancels it.
        cancel: watch::Sender<bool>,
    },
    /// Its program's runner is about to listen there.
    RunsProgram(JobId, PathBuf),
    /// Its session is that of the client with this key.
    Taken(JobId, String),
    /// It has ended.
    Ended(JobId),
}

/// The sessions of a leaf.
pub struct Sessions {
    leaf: LeafName,
    bus: Bus,
    clock: Clock,
    all: BTreeMap<JobId, Entry>,
    tickets: Ticket,
    waiting: BTreeMap<Ticket, Waiting>,
    /// The wrong signatures of this second, by caller and way.
    wrong: BTreeMap<(Caller, bool), u32>,
    wrong_since: Instant,
    heard: mpsc::Sender<(JobId, FromRunner, Vec<u8>)>,
}

struct Entry {
    session: Session,
    owner: Caller,
    key: Vec<u8>,
    cancel: watch::Sender<bool>,
    runner: Option<Runner>,
}

struct Waiting {
    responder: Responder,
    tag: String,
}

impl Sessions {
    /// Serves sessions for as long as the daemon runs.
    ///
    /// # Errors
    /// When the channels are closed unexpectedly, or the system has no random bytes.
    pub async fn run(
        leaf: LeafName,
        bus: Bus,
        clock: Clock,
        mut requests: mpsc::Receiver<Incoming>,
        mut news: mpsc::Receiver<News>,
    ) -> anyhow::Result<()> {
        let (heard, mut from_runners) = mpsc::channel(64);
        let mut sessions = Self {
            leaf,
            bus,
            clock,
            all: BTreeMap::new(),
            tickets: 0,
            waiting: BTreeMap::new(),
            wrong: BTreeMap::new(),
            wrong_since: Instant::now(),
            heard,
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                Some(news) = news.recv() => sessions.hear_of(news).await,
                Some((job, message, bytes)) = from_runners.recv() => {
                    let Some(entry) = sessions.all.get_mut(&job) else { continue };
                    let actions = entry.session.hear(message, bytes);
                    sessions.carry_out(job, actions).await;
                }
                Some(incoming) = requests.recv() => sessions.request(incoming).await?,
                _ = tick.tick(), if !sessions.all.is_empty() => sessions.tick().await,
                else => return std::future::pending().await,
            }
        }
    }

    async fn hear_of(&mut self, news: News) {
        match news {
            News::Began { job, cancel } => {
                let Some(task) = job.task.session() else {
                    return;
                };
                let entry = Entry {
                    session: Session::new(task, random_text(), self.clock.now()),
                    owner: job.owner.clone(),
                    // It was checked.
                    key: BASE64.decode(task.key.as_bytes()).unwrap_or_default(),
                    cancel,
                    runner: None,
                };
                self.all.insert(job.id, entry);
            }
            News::RunsProgram(job, socket) => {
                if let Some(entry) = self.all.get_mut(&job) {
                    entry.runner = Some(Runner::start(job, socket, self.heard.clone()));
                }
            }
            News::Taken(job, key) => {
                if let Some(entry) = self.all.get_mut(&job) {
                    entry.key = BASE64.decode(key.as_bytes()).unwrap_or_default();
                    let actions = entry.session.end(Reason::Replaced);
                    self.carry_out(job, actions).await;
                }
            }
            News::Ended(job) => {
                if let Some(entry) = self.all.get_mut(&job) {
                    let actions = entry.session.end(Reason::JobEnded);
                    self.carry_out(job, actions).await;
                }
                self.all.remove(&job);
            }
        }
    }

    async fn tick(&mut self) {
        let (now, counts) = (self.clock.now(), self.bus.status().borrow().is_connected());
        let jobs: Vec<JobId> = self.all.keys().copied().collect();
        for job in jobs {
            if let Some(entry) = self.all.get_mut(&job) {
                let actions = entry.session.tick(now, counts);
                self.carry_out(job, actions).await;
            }
        }
    }

    /// Handles a request.
    async fn request(&mut self, incoming: Incoming) -> anyhow::Result<()> {
        let Incoming {
            caller,
            verb,
            session,
            from_hub,
            body,
            responder,
            ..
        } = incoming;
        let Some((headers, job, attachment)) = session.as_ref().and_then(|headers| {
            let (job, attachment) = headers.session.split_once('/')?;
            Some((headers, job.parse::<JobId>().ok()?, attachment))
        }) else {
            let why = "a request of a session is signed by its client's key: see docs/protocol/sessions.md";
            refuse(responder, ProblemCode::SignatureRequired, why).await;
            return Ok(());
        };
        let tag: String = headers.signature.chars().take(REPLY_CHARACTERS).collect();
        let Some(entry) = self.all.get_mut(&job).filter(|entry| entry.owner == caller) else {
            let problem = Problem::new(
                ProblemCode::NotFound,
                format!("{caller} has no session of job {job} that runs: job.show says how it ended"),
            );
            let answer = vec![(REPLY_HEADER, tag)];
            responder.reply_session(answer, Err(problem)).await;
            return Ok(());
        };
        let number = number(&headers.number);
        let offset = headers.offset.as_deref().map(self::number);
        let (Some(number), false) = (number, offset == Some(None)) else {
            responder.forget();
            return Ok(());
        };
        let offset = offset.flatten();
        let way = (caller.clone(), from_hub);
        if self.wrong_since.elapsed() >= Duration::from_secs(1) {
            self.wrong.clear();
            self.wrong_since = Instant::now();
        }
        let is_checked = entry.session.may_take(attachment, number)
            && self.wrong.get(&way).is_none_or(|wrong| *wrong < MOST_WRONG);
        if !is_checked {
            responder.forget();
            return Ok(());
        }
        let text = signed_text(&Signed {
            leaf: &self.leaf,
            caller: &caller,
            verb: &verb,
            session: &headers.session,
            number,
            offset,
            body: &body,
        });
        let signature = BASE64.decode(headers.signature.as_bytes()).unwrap_or_default();
        if !is_signed_by(&entry.key, &text, &signature) {
            *self.wrong.entry(way).or_default() += 1;
            responder.forget();
            return Ok(());
        }
        self.tickets += 1;
        let ticket = self.tickets;
        self.waiting.insert(ticket, Waiting { responder, tag });
        let now = self.clock.now();
        let actions = match (verb.as_str(), offset) {
            ("attach", None) if number == 0 => parsed(ticket, &body, |attach| {
                let fresh = (Uuid::now_v7().to_string(), random_text());
                entry.session.attach(ticket, attachment, &attach, fresh, now)
            }),
            ("read", None) => parsed(ticket, &body, |read| {
                entry
                    .session
                    .ask(ticket, attachment, number, Asked::Read(read), now)
            }),
            ("control", None) => parsed(ticket, &body, |control| {
                entry
                    .session
                    .ask(ticket, attachment, number, Asked::Control(control), now)
            }),
            ("write", Some(offset)) => {
                let asked = Asked::Write {
                    offset,
                    bytes: body.to_vec(),
                };
                entry.session.ask(ticket, attachment, number, asked, now)
            }
            _ => vec![Action::Reply(
                ticket,
                Reply::Refused(format!("session.{verb} is no request of a session in this form")),
            )],
        };
        self.carry_out(job, actions).await;
        Ok(())
    }

    async fn carry_out(&mut self, job: JobId, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Reply(ticket, reply) => {
                    if let Some(waiting) = self.waiting.remove(&ticket) {
                        answer(waiting, reply).await;
                    }
                }
                Action::Tell(message, bytes) => {
                    if let Some(runner) = self.all.get(&job).and_then(|entry| entry.runner.as_ref()) {
                        runner.tell(message, bytes);
                    }
                }
                Action::Cancel => {
                    if let Some(entry) = self.all.get(&job) {
                        entry.cancel.send_replace(true);
                    }
                }
            }
        }
    }
}

/// Returns what follows from a body that is JSON.
fn parsed<T: DeserializeOwned>(
    ticket: Ticket,
    body: &[u8],
    then: impl FnOnce(T) -> Vec<Action>,
) -> Vec<Action> {
    match serde_json::from_slice(body) {
        Ok(value) => then(value),
        Err(error) => vec![Action::Reply(
            ticket,
            Reply::Refused(format!("its body: {error}")),
        )],
    }
}

/// Returns a decimal number without sign or leading zeros.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number <= MAX_NUMBER && number.to_string() == text).then_some(number)
}

/// Returns a text that nobody can guess.
fn random_text() -> String {
    let mut random = [0; 16];
    // Without random bytes there is nothing to guess from either: the daemon began with some.
    if getrandom::fill(&mut random).is_err() {
        return Uuid::now_v7().to_string();
    }
    HEXLOWER.encode(&random)
}

async fn refuse(responder: Responder, code: ProblemCode, why: &str) {
    responder
        .reply_session(Vec::new(), Err(Problem::new(code, why)))
        .await;
}

/// Sends a reply.
async fn answer(Waiting { responder, tag }: Waiting, reply: Reply) {
    let mut headers = vec![(REPLY_HEADER, tag)];
    let body = match reply {
        Reply::Attached(attached) => Ok(to_json(&*attached)),
        Reply::Written(written) => Ok(to_json(&written)),
        Reply::Done(done) => Ok(to_json(&done)),
        Reply::Refused(why) => Err(Problem::new(ProblemCode::Invalid, why)),
        Reply::Output { output, state } => {
            if let Some(state) = state {
                headers.push((
                    STATE_HEADER,
                    String::from_utf8_lossy(&to_json(&state)).into_owned(),
                ));
            }
            Ok(match output {
                Some((stream, offset, bytes)) => {
                    let name = match stream {
                        Stream::Stdout => "stdout",
                        Stream::Stderr => "stderr",
                    };
                    headers.push((STREAM_HEADER, name.to_owned()));
                    headers.push((OFFSET_HEADER, offset.to_string()));
                    bytes
                }
                None => Vec::new(),
            })
        }
    };
    responder.reply_session(headers, body).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for (text, is) in [
            ("0", Some(0)),
            ("17", Some(17)),
            ("017", None),
            ("+1", None),
            ("", None),
        ] {
            assert_eq!(number(text), is, "{text}");
        }
        assert_eq!(number("9007199254740992"), None);
    }
}
