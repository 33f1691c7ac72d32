//! The downloads of a leaf, and their bounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use leaf_bus::serve::{Incoming, Responder};
use leaf_core::error::chain;
use leaf_core::id::{Caller, CommandId, StorePath};
use leaf_core::json::to_json;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::transfer::stored::{MOST_OF_CLOSURE, Stored, in_order};
use leaf_core::transfer::{CHUNK_BYTES, SentPath, tops};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use super::asking::{Asked, Asking};
use super::download::{self, Read};
use super::host::Host;

/// The downloads of one caller, and of all.
const MOST_OF_A_CALLER: usize = 8;
const MOST: usize = 32;
/// How long a download of a caller must be silent until another one replaces it.
const REPLACED_AFTER: Duration = Duration::from_secs(30);
/// How long a download is kept that nobody reads.
const KEPT: Duration = Duration::from_secs(600);
/// The reads of a download that wait.
const WAITING_READS: usize = 8;
/// How many questions what is there are looked into at once: of all callers, and of one.
const QUESTIONS: usize = 8;
const QUESTIONS_OF_A_CALLER: usize = 4;
/// The room for headers in a message.
const HEADER_ROOM: usize = 1024;

/// A caller's question what the store has.
#[derive(Debug)]
pub struct Wanted {
    /// The caller.
    pub caller: Caller,
    /// The paths, which are checked.
    pub paths: Vec<StorePath>,
    /// Whether their closure is listed.
    pub closure: bool,
    /// The command's id.
    pub id: CommandId,
    /// Sends the reply.
    pub responder: Responder,
}

/// The downloads of a leaf.
pub(super) struct Downloads {
    host: Arc<Host>,
    all: BTreeMap<Uuid, Entry>,
    asking: Asking,
    tasks: JoinSet<Uuid>,
    questions: JoinSet<Answered>,
}

struct Entry {
    caller: Caller,
    reads: mpsc::Sender<Read>,
    read_at: Instant,
}

/// What the store has of what a caller wants.
pub(super) struct Answered {
    asked: Asked,
    caller: Caller,
    closure: bool,
    id: CommandId,
    responder: Responder,
    paths: Result<Vec<SentPath>, Problem>,
}

/// What has ended.
pub(super) enum Done {
    /// The store was asked.
    Answered(Box<Answered>),
    /// A download was read to its end, or is given up.
    Ended(Option<Uuid>),
}

impl Downloads {
    pub(super) fn new(host: Arc<Host>) -> Self {
        Self {
            host,
            all: BTreeMap::new(),
            asking: Asking::default(),
            tasks: JoinSet::new(),
            questions: JoinSet::new(),
        }
    }

    /// Waits for an answer or the end of a download; while there is nothing to do, for ever. Nothing is lost if the future is dropped.
    pub(super) async fn next(&mut self) -> Done {
        tokio::select! {
            Some(ended) = self.questions.join_next() => match ended {
                Ok(answered) => Done::Answered(Box::new(answered)),
                Err(error) => {
                    tracing::error!(%error, "the search for what a caller gets ended early: the caller gets no reply");
                    Done::Ended(None)
                }
            },
            Some(ended) = self.tasks.join_next() => Done::Ended(ended.ok()),
            else => std::future::pending().await,
        }
    }

    /// Does what follows.
    pub(super) async fn settle(&mut self, done: Done) {
        match done {
            Done::Answered(answered) => self.reply(*answered).await,
            Done::Ended(id) => {
                if let Some(id) = id {
                    self.all.remove(&id);
                }
            }
        }
    }

    /// Finds out what the store has.
    pub(super) async fn ask(&mut self, wanted: Wanted) {
        let Wanted {
            caller,
            paths,
            closure,
            id,
            responder,
        } = wanted;
        let asked = match self.questions.len() < QUESTIONS {
            true => self.asking.begin(&caller, QUESTIONS_OF_A_CALLER),
            false => None,
        };
        let Some(asked) = asked else {
            let why =
                "as many of these questions are open as the leaf looks into at once: try again in a moment";
            let problem = Problem::new(ProblemCode::Overloaded, why).about(&id);
            return responder.reply(Some(&id), Err(problem)).await;
        };
        let host = self.host.clone();
        self.questions.spawn(async move {
            let paths = stored(&host, &caller, &paths, closure).await;
            Answered {
                asked,
                caller,
                closure,
                id,
                responder,
                paths,
            }
        });
    }

    async fn reply(&mut self, answered: Answered) {
        let Answered {
            asked,
            caller,
            closure,
            id,
            responder,
            paths,
        } = answered;
        drop(asked);
        let chunk_bytes = chunk_bytes(&responder);
        let stored = paths.and_then(|paths| {
            let download = match closure {
                true => None,
                false => Some(self.begin(caller, paths.clone())?),
            };
            Ok(Stored {
                paths,
                download,
                chunk_bytes,
            })
        });
        let reply = stored
            .map(|stored| to_json(&stored))
            .map_err(|problem| problem.about(&id));
        responder.reply(Some(&id), reply).await;
    }

    fn begin(&mut self, caller: Caller, paths: Vec<SentPath>) -> Result<Uuid, Problem> {
        self.make_place(&caller)?;
        let id = Uuid::now_v7();
        let (reads, queue) = mpsc::channel(WAITING_READS);
        let host = self.host.clone();
        self.tasks.spawn(async move {
            download::serve(host, paths, queue).await;
            id
        });
        let read_at = Instant::now();
        self.all.insert(
            id,
            Entry {
                caller,
                reads,
                read_at,
            },
        );
        Ok(id)
    }

    /// Makes a place for a download of this caller.
    fn make_place(&mut self, caller: &Caller) -> Result<(), Problem> {
        let own = || self.all.iter().filter(|(_, entry)| entry.caller == *caller);
        if own().count() < MOST_OF_A_CALLER && self.all.len() < MOST {
            return Ok(());
        }
        let silent = own().filter(|(_, entry)| entry.read_at.elapsed() >= REPLACED_AFTER);
        let oldest = silent.min_by_key(|(_, entry)| entry.read_at).map(|(id, _)| *id);
        match oldest {
            Some(id) => {
                // Its task ends with its queue.
                self.all.remove(&id);
                Ok(())
            }
            None => Err(Problem::new(
                ProblemCode::Overloaded,
                format!(
                    "there are as many downloads as the leaf has at once, {MOST_OF_A_CALLER} of a caller and {MOST} in all: try \
                     again later"
                ),
            )),
        }
    }

    /// Handles a read.
    pub(super) async fn read(&mut self, incoming: Incoming) {
        let Incoming {
            caller,
            transfer,
            responder,
            ..
        } = incoming;
        let headers = transfer.as_ref();
        let id = headers.and_then(|headers| headers.upload.parse::<Uuid>().ok());
        let entry = id.and_then(|id| self.all.get_mut(&id));
        let Some(entry) = entry.filter(|entry| entry.caller == caller) else {
            return refuse(responder, no_download()).await;
        };
        let offset = headers.and_then(|headers| headers.offset.as_ref()?.parse::<u64>().ok());
        let Some(offset) = offset else {
            let why = "a read has a decimal Leaf-Offset";
            return refuse(responder, Problem::new(ProblemCode::Invalid, why)).await;
        };
        entry.read_at = Instant::now();
        let most = chunk_bytes(&responder);
        if let Err(error) = entry.reads.try_send((offset, most, responder)) {
            match error {
                // It is asked again.
                mpsc::error::TrySendError::Full((_, _, responder)) => responder.forget(),
                mpsc::error::TrySendError::Closed((_, _, responder)) => {
                    refuse(responder, no_download()).await;
                }
            }
        }
    }

    /// Ends downloads that nobody reads.
    pub(super) fn give_up(&mut self) {
        self.all.retain(|_, entry| entry.read_at.elapsed() < KEPT);
    }
}

fn chunk_bytes(responder: &Responder) -> usize {
    CHUNK_BYTES.min(responder.room().saturating_sub(HEADER_ROOM))
}

async fn refuse(responder: Responder, problem: Problem) {
    responder.reply_session(Vec::new(), Err(problem)).await;
}

fn no_download() -> Problem {
    let why = "the caller has no such download: it was read to its end, was replaced, or leafd was started again; nix.get begins one";
    Problem::new(ProblemCode::NotFound, why)
}

/// Returns what the store has of paths, and holds them; or what it has of their closure.
async fn stored(
    host: &Host,
    caller: &Caller,
    paths: &[StorePath],
    closure: bool,
) -> Result<Vec<SentPath>, Problem> {
    let failed = |error: leaf_nix::NixError| Problem::new(ProblemCode::Failed, chain(&error));
    let lacks = host.nix.lacking(paths).await.map_err(failed)?;
    if !lacks.is_empty() {
        let some: Vec<&str> = lacks.iter().take(3).map(StorePath::as_str).collect();
        let detail = format!(
            "{} of the paths {} not in the leaf's store: {}",
            lacks.len(),
            if lacks.len() == 1 { "is" } else { "are" },
            some.join(", ")
        );
        return Err(Problem::new(ProblemCode::NotFound, detail));
    }
    let listed = host.nix.stored(paths, closure).await.map_err(failed)?;
    if listed.len() > MOST_OF_CLOSURE {
        let detail = format!(
            "the closure has {} paths, and a leaf lists {MOST_OF_CLOSURE}",
            listed.len()
        );
        return Err(Problem::new(ProblemCode::TooLarge, detail));
    }
    let mut by_path: BTreeMap<StorePath, SentPath> = listed
        .iter()
        .map(|sent| (sent.path.clone(), sent.clone()))
        .collect();
    let asked: Vec<SentPath> = paths.iter().filter_map(|path| by_path.remove(path)).collect();
    if asked.len() < paths.len() {
        return Err(Problem::new(
            ProblemCode::Failed,
            "Nix has not listed all of the paths",
        ));
    }
    host.hold(caller, &asked, &tops(&asked)).await.map_err(failed)?;
    Ok(if closure { in_order(listed) } else { asked })
}
