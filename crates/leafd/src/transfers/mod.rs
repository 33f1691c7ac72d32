//! Uploads and downloads: store paths that callers send and get, as `docs/protocol/transfers.md` says.
//!
//! [`Transfers`] has the list of uploads and their bounds. Each [upload](upload::Upload) is a task with its own [files](spool::Spool),
//! so that a slow one holds up no other. [`downloads`] has the same of downloads, each of which is a task, too.

mod asking;
mod download;
mod downloads;
mod host;
mod spool;
mod upload;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use leaf_bus::serve::{Incoming, Responder};
use leaf_core::error::chain;
use leaf_core::id::{Caller, CommandId, StorePath};
use leaf_core::json::to_json;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::transfer::{CHUNK_BYTES, Lacking, NOUN, Received, SentPath, UploadState, tops};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use asking::{Asked, Asking};
use downloads::Downloads;
use host::release;
use spool::{Description, Spool};
use upload::{Status, Told, Upload, answer};

pub use downloads::Wanted;
pub use host::Host;

/// The uploads of one caller that have not ended.
const MOST_OF_A_CALLER: usize = 4;
/// The uploads of all callers that have not ended.
const MOST: usize = 16;
/// How long an upload of a caller must be silent until another one replaces it.
const REPLACED_AFTER: Duration = Duration::from_secs(30);
/// How long an upload is kept to which nobody writes.
const KEPT: Duration = Duration::from_secs(3600);
/// The period in which both are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// The chunks of an upload that wait.
const WAITING_CHUNKS: usize = 8;
/// How many questions what is lacking are looked into at once: of all callers, and of one.
const QUESTIONS: usize = 4;
const QUESTIONS_OF_A_CALLER: usize = 2;
/// The ended uploads of one caller, and of all, whose end is remembered.
const ENDED_OF_A_CALLER: usize = 8;
const ENDED: usize = 128;
/// How long an upload takes bytes at most.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// The room for headers in a message.
const HEADER_ROOM: usize = 1024;

/// Returns whether it is a request of an upload or a download, which is none of the engine's.
#[must_use]
pub fn is_request(incoming: &Incoming) -> bool {
    incoming.noun == NOUN && matches!(incoming.verb.as_str(), "write" | "show" | "read")
}

/// What the task of uploads is told.
#[derive(Debug)]
pub enum Message {
    /// A caller asks what the leaf lacks of these paths.
    Put {
        /// The caller.
        caller: Caller,
        /// The paths, which are checked.
        paths: Vec<SentPath>,
        /// The command's id.
        id: CommandId,
        /// Sends the reply.
        responder: Responder,
    },
    /// A caller asks what the store has of paths.
    Get(Wanted),
    /// These texts name what open jobs are about.
    Jobs(BTreeSet<String>),
}

/// The uploads of a leaf.
pub struct Transfers {
    host: Arc<Host>,
    /// Those that take bytes or are being added.
    all: BTreeMap<Uuid, Entry>,
    /// How the last ones ended, oldest first.
    ended: VecDeque<(Uuid, Caller, Status)>,
    /// How many questions of each caller are looked into.
    asking: Asking,
    uploads: JoinSet<()>,
    questions: JoinSet<Answered>,
    downloads: Downloads,
}

struct Entry {
    description: Description,
    told: mpsc::Sender<Told>,
    status: watch::Receiver<Status>,
    began_at: Instant,
    /// How many bytes had arrived when it was looked at last, and since when no more have.
    seen: u64,
    moved_at: Instant,
}

impl Entry {
    /// Returns for how long nothing has arrived; nothing if Nix is adding it.
    fn silence(&mut self) -> Option<Duration> {
        let status = self.status.borrow().clone();
        let Ok(Received {
            received,
            state: UploadState::Receiving,
        }) = status
        else {
            return None;
        };
        if received > self.seen {
            (self.seen, self.moved_at) = (received, Instant::now());
        }
        Some(self.moved_at.elapsed())
    }

    /// Returns whether it takes bytes or is being added.
    fn is_open(&self) -> bool {
        !matches!(
            *self.status.borrow(),
            Err(_)
                | Ok(Received {
                    state: UploadState::Added,
                    ..
                })
        )
    }

    fn received(&self) -> u64 {
        self.status
            .borrow()
            .as_ref()
            .map_or(0, |received| received.received)
    }

    fn rest(&self) -> u64 {
        self.description.total().saturating_sub(self.received())
    }
}

/// What the store lacks of what a caller means to send.
struct Answered {
    caller: Caller,
    asked: Asked,
    paths: Vec<SentPath>,
    id: CommandId,
    responder: Responder,
    lacks: Result<BTreeSet<StorePath>, Problem>,
}

impl Transfers {
    /// Serves uploads for as long as the daemon runs. Without a host it answers that there is no upload.
    ///
    /// # Errors
    /// When the directory of the uploads can't be made.
    pub async fn run(
        host: Option<Host>,
        mut requests: mpsc::Receiver<Incoming>,
        mut messages: mpsc::Receiver<Message>,
    ) -> anyhow::Result<()> {
        let Some(host) = host else {
            while let Some(incoming) = requests.recv().await {
                answer(incoming.responder, &Err(no_upload())).await;
            }
            return std::future::pending().await;
        };
        let mut transfers = Self::new(host);
        transfers.find_earlier().await?;
        // Not at once: what open jobs name is not known yet.
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(message) = messages.recv(), if transfers.questions.len() < QUESTIONS => match message {
                    Message::Put { caller, paths, id, responder } => transfers.ask(caller, paths, id, responder).await,
                    Message::Get(wanted) => transfers.downloads.ask(wanted).await,
                    Message::Jobs(texts) => drop(transfers.host.named.send_replace(texts)),
                },
                Some(incoming) = requests.recv() => transfers.request(incoming).await,
                Some(ended) = transfers.questions.join_next() => match ended {
                    Ok(answered) => transfers.reply(answered).await,
                    Err(error) => tracing::error!(%error, "the search for what a caller lacks ended early: the caller gets no reply"),
                },
                done = transfers.downloads.next() => transfers.downloads.settle(done).await,
                Some(_) = transfers.uploads.join_next() => transfers.settle(),
                _ = look.tick() => transfers.give_up(),
            }
        }
    }

    fn new(host: Host) -> Self {
        let host = Arc::new(host);
        Self {
            downloads: Downloads::new(host.clone()),
            host,
            all: BTreeMap::new(),
            ended: VecDeque::new(),
            asking: Asking::default(),
            uploads: JoinSet::new(),
            questions: JoinSet::new(),
        }
    }

    /// Finds the uploads that an earlier run has left.
    async fn find_earlier(&mut self) -> anyhow::Result<()> {
        let directory = self.host.directory.clone();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("can't create {}", directory.display()))?;
        let found = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let id = entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<Uuid>().ok());
                match id.map(|id| (id, Spool::find(&entry.path()))) {
                    Some((id, Ok(Some((description, spool))))) => found.push((id, description, spool)),
                    _ => drop(fs::remove_dir_all(entry.path())),
                }
            }
            found
        });
        for (id, description, spool) in found.await.context("the search for uploads ended early")? {
            self.start(id, description, spool);
        }
        Ok(())
    }

    fn start(&mut self, id: Uuid, description: Description, spool: Spool) {
        let begin = Received {
            received: spool.received(),
            state: UploadState::Receiving,
        };
        let (status, followed) = watch::channel(Ok(begin));
        let (told, queue) = mpsc::channel(WAITING_CHUNKS);
        let upload = Upload {
            host: self.host.clone(),
            directory: self.host.directory.join(id.to_string()),
            description: description.clone(),
            status,
            told: queue,
        };
        self.uploads.spawn(upload.run(spool));
        let entry = Entry {
            description,
            told,
            status: followed,
            began_at: Instant::now(),
            seen: begin.received,
            moved_at: Instant::now(),
        };
        self.all.insert(id, entry);
    }

    /// Finds out what the store lacks, and holds what it has.
    async fn ask(&mut self, caller: Caller, paths: Vec<SentPath>, id: CommandId, responder: Responder) {
        let Some(asked) = self.asking.begin(&caller, QUESTIONS_OF_A_CALLER) else {
            let problem = Problem::new(
                ProblemCode::Overloaded,
                "the caller has two of these questions open: try again in a moment",
            );
            return responder.reply(Some(&id), Err(problem.about(&id))).await;
        };
        let host = self.host.clone();
        self.questions.spawn(async move {
            let lacks = lacking(&host, &caller, &paths).await;
            Answered {
                caller,
                asked,
                paths,
                id,
                responder,
                lacks,
            }
        });
    }

    async fn reply(&mut self, answered: Answered) {
        let Answered {
            caller,
            asked,
            paths,
            id,
            responder,
            lacks,
        } = answered;
        drop(asked);
        let chunk_bytes = CHUNK_BYTES.min(responder.room().saturating_sub(HEADER_ROOM));
        let reply = lacks.and_then(|lacks| self.lacking(caller, paths, &lacks, chunk_bytes));
        let reply = reply
            .map(|lacking| to_json(&lacking))
            .map_err(|problem| problem.about(&id));
        responder.reply(Some(&id), reply).await;
    }

    /// Returns the upload of what is lacking: the one that there is, or a new one.
    fn lacking(
        &mut self,
        caller: Caller,
        paths: Vec<SentPath>,
        lacks: &BTreeSet<StorePath>,
        chunk_bytes: usize,
    ) -> Result<Lacking, Problem> {
        self.settle();
        if lacks.is_empty() {
            // What it was to bring has come by another way.
            let needless = self
                .all
                .iter_mut()
                .filter(|(_, entry)| entry.description.caller == caller && entry.description.asked == paths);
            let needless = needless.filter_map(|(id, entry)| entry.silence().map(|_| *id));
            for id in needless.collect::<Vec<_>>() {
                self.remove(id);
            }
            return Ok(Lacking {
                lacks: Vec::new(),
                upload: None,
                received: 0,
                chunk_bytes,
            });
        }
        let same = self.all.iter_mut().find(|(_, entry)| {
            entry.is_open() && entry.description.caller == caller && entry.description.asked == paths
        });
        let (id, entry) = match same {
            Some((id, entry)) => (*id, entry),
            None => {
                let lacking = paths.iter().filter(|sent| lacks.contains(&sent.path));
                let lacking = lacking.cloned().collect();
                let id = self.begin(caller, paths, lacking)?;
                let entry = self.all.get_mut(&id).ok_or_else(no_upload)?;
                (id, entry)
            }
        };
        Ok(Lacking {
            lacks: entry
                .description
                .lacks
                .iter()
                .map(|sent| sent.path.clone())
                .collect(),
            upload: Some(id),
            received: entry.received(),
            chunk_bytes,
        })
    }

    /// Begins an upload.
    fn begin(&mut self, caller: Caller, asked: Vec<SentPath>, lacks: Vec<SentPath>) -> Result<Uuid, Problem> {
        let failed = |error: std::io::Error| {
            Problem::new(
                ProblemCode::Failed,
                format!("the leaf can't keep an upload: {error}"),
            )
        };
        let description = Description::new(caller, asked, lacks).map_err(failed)?;
        let (total, most) = (description.total(), self.host.max_upload_bytes);
        if total > most {
            return Err(Problem::new(
                ProblemCode::TooLarge,
                format!("the upload has {total} bytes, and nix.max_upload_bytes allows {most}"),
            ));
        }
        let of_uploads: u64 = self.all.values().map(Entry::rest).sum();
        let of_store: u64 = self.all.values().map(|entry| entry.description.total()).sum();
        self.host
            .has_room(of_uploads.saturating_add(total), of_store.saturating_add(total))?;
        self.make_place(&description.caller)?;
        let id = Uuid::now_v7();
        let directory = self.host.directory.join(id.to_string());
        let spool = Spool::create(&directory, &description).map_err(|error| {
            let _ = fs::remove_dir_all(&directory);
            failed(error)
        })?;
        self.start(id, description, spool);
        Ok(id)
    }

    /// Makes a place for an upload of this caller.
    fn make_place(&mut self, caller: &Caller) -> Result<(), Problem> {
        let own = self
            .all
            .values()
            .filter(|entry| entry.description.caller == *caller)
            .count();
        if own < MOST_OF_A_CALLER && self.all.len() < MOST {
            return Ok(());
        }
        let own = self
            .all
            .iter_mut()
            .filter(|(_, entry)| entry.description.caller == *caller);
        let silent = own.filter_map(|(id, entry)| Some((entry.silence()?, *id)));
        let silent = silent.filter(|(silence, _)| *silence >= REPLACED_AFTER);
        let oldest = silent.max().map(|(_, id)| id);
        match oldest {
            Some(id) => {
                self.remove(id);
                Ok(())
            }
            None => Err(Problem::new(
                ProblemCode::Overloaded,
                format!(
                    "there are as many uploads as the leaf takes at once, {MOST_OF_A_CALLER} of a caller and {MOST} in all: try \
                     again later"
                ),
            )),
        }
    }

    /// Remembers how uploads have ended, and forgets what they were.
    fn settle(&mut self) {
        let ended = self.all.iter().filter(|(_, entry)| !entry.is_open());
        for id in ended.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(entry) = self.all.remove(&id) {
                let status = entry.status.borrow().clone();
                remember(&mut self.ended, (id, entry.description.caller, status));
            }
        }
    }

    fn remove(&mut self, id: Uuid) {
        if let Some(entry) = self.all.remove(&id)
            && entry.told.try_send(Told::Remove).is_err()
        {
            // It has something to do: it is told when it has room for that.
            self.uploads.spawn(async move {
                let _ = entry.told.send(Told::Remove).await;
            });
        }
    }

    /// Handles a request of an upload.
    async fn request(&mut self, incoming: Incoming) {
        if incoming.verb == "read" {
            return self.downloads.read(incoming).await;
        }
        let Incoming {
            caller,
            verb,
            transfer,
            body,
            responder,
            ..
        } = incoming;
        let id = transfer
            .as_ref()
            .and_then(|headers| headers.upload.parse::<Uuid>().ok());
        let ended = self
            .ended
            .iter()
            .find(|(ended, of, _)| Some(*ended) == id && *of == caller);
        if let Some((_, _, status)) = ended {
            return answer(responder, status).await;
        }
        let entry = transfer.as_ref().and_then(|headers| {
            let entry = self.all.get_mut(&id?)?;
            (entry.description.caller == caller).then_some((entry, headers))
        });
        let Some((entry, headers)) = entry else {
            return answer(responder, &Err(no_upload())).await;
        };
        let write = match (verb.as_str(), &headers.offset) {
            ("write", Some(offset)) => match offset.parse::<u64>() {
                Ok(offset) if body.len() <= CHUNK_BYTES => Some((offset, body)),
                _ => {
                    let why = format!("a write has a decimal Leaf-Offset, and at most {CHUNK_BYTES} bytes");
                    return answer(responder, &Err(Problem::new(ProblemCode::Invalid, why))).await;
                }
            },
            ("write", None) => {
                let why = "a write has the header Leaf-Offset";
                return answer(responder, &Err(Problem::new(ProblemCode::Invalid, why))).await;
            }
            _ => None,
        };
        // Nothing but the state is asked for, or it is behind and takes no more.
        let status = entry.status.borrow().clone();
        if write.is_none()
            || !matches!(
                status,
                Ok(Received {
                    state: UploadState::Receiving,
                    ..
                })
            )
        {
            return answer(responder, &status).await;
        }
        if let Err(error) = entry.told.try_send(Told::Ask(write, responder))
            && let Told::Ask(_, responder) = error.into_inner()
        {
            answer(responder, &status).await;
        }
    }

    /// Removes uploads that get no further, and links that no open job needs.
    fn give_up(&mut self) {
        self.downloads.give_up();
        let silent = self.all.iter_mut().filter_map(|(id, entry)| {
            let silence = entry.silence()?;
            (silence >= KEPT || entry.began_at.elapsed() >= LIFE).then_some(*id)
        });
        for id in silent.collect::<Vec<_>>() {
            self.remove(id);
        }
        let host = self.host.clone();
        // A scan of directories.
        drop(tokio::task::spawn_blocking(move || {
            let named = host.named.borrow().clone();
            for of_caller in fs::read_dir(&host.kept).into_iter().flatten().flatten() {
                release(&of_caller.path(), &named, usize::MAX);
            }
        }));
    }
}

/// Remembers how an upload ended; the oldest of too many is forgotten.
fn remember(ended: &mut VecDeque<(Uuid, Caller, Status)>, end: (Uuid, Caller, Status)) {
    let caller = end.1.clone();
    ended.push_back(end);
    let own = |(_, of, _): &(Uuid, Caller, Status)| *of == caller;
    if ended.iter().filter(|end| own(end)).count() > ENDED_OF_A_CALLER
        && let Some(oldest) = ended.iter().position(own)
    {
        ended.remove(oldest);
    }
    if ended.len() > ENDED {
        ended.pop_front();
    }
}

fn no_upload() -> Problem {
    let why = "the caller has no such upload: nix.put says what is lacking, and begins one";
    Problem::new(ProblemCode::NotFound, why)
}

/// Returns what the store lacks, and holds what it has.
async fn lacking(host: &Host, caller: &Caller, paths: &[SentPath]) -> Result<BTreeSet<StorePath>, Problem> {
    let failed = |error: leaf_nix::NixError| Problem::new(ProblemCode::Failed, chain(&error));
    let mut lacks = host
        .nix
        .lacking(paths.iter().map(|sent| &sent.path))
        .await
        .map_err(failed)?;
    // What is held now may have been collected just before.
    for _ in 0..2 {
        let there: Vec<SentPath> = paths
            .iter()
            .filter(|sent| !lacks.contains(&sent.path))
            .cloned()
            .collect();
        if there.is_empty() {
            return Ok(lacks);
        }
        match host.hold(caller, paths, &tops(&there)).await {
            Ok(()) => return Ok(lacks),
            Err(error) => tracing::info!(error = chain(&error), "a path can't be held"),
        }
        lacks = host
            .nix
            .lacking(paths.iter().map(|sent| &sent.path))
            .await
            .map_err(failed)?;
    }
    Err(Problem::new(
        ProblemCode::Failed,
        "the leaf can't hold the paths that it has: see its log",
    ))
}

#[cfg(test)]
mod tests;
