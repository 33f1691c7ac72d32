//! Uploads: store paths that callers send, as `docs/protocol/transfers.md` says.
//!
//! [`Transfers`] has the list of uploads and their bounds. Each [upload](upload::Upload) is a task with its own [files](spool::Spool),
//! so that a slow one holds up no other.

mod host;
mod spool;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

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

use host::kept_directory;
use spool::{Description, Spool};
use upload::{Status, Told, Upload, answer};

pub use host::Host;

/// The uploads of one caller that have not ended.
const MOST_OF_A_CALLER: usize = 4;
/// The uploads of all callers that have not ended.
const MOST: usize = 16;
/// How long an upload of a caller must be silent until another one replaces it.
const REPLACED_AFTER: Duration = Duration::from_secs(30);
/// How long an upload is kept to which nobody writes.
const KEPT: Duration = Duration::from_secs(3600);
/// How long paths are held after the last command that named them.
const HELD: Duration = Duration::from_secs(24 * 3600);
/// How many commands' paths are held.
const MOST_HELD: usize = 256;
/// The period in which both are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// The chunks of an upload that wait.
const WAITING_CHUNKS: usize = 8;
/// The room for headers in a message.
const HEADER_ROOM: usize = 1024;

/// Returns whether it is a request of an upload, which is none of the engine's.
#[must_use]
pub fn is_request(incoming: &Incoming) -> bool {
    incoming.noun == NOUN && matches!(incoming.verb.as_str(), "write" | "show")
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
    /// These texts name what open jobs are about.
    Jobs(BTreeSet<String>),
}

/// The uploads of a leaf.
pub struct Transfers {
    host: Arc<Host>,
    all: BTreeMap<Uuid, Entry>,
    uploads: JoinSet<()>,
    questions: JoinSet<Answered>,
}

struct Entry {
    description: Description,
    told: mpsc::Sender<Told>,
    status: watch::Receiver<Status>,
    heard_at: Instant,
}

impl Entry {
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
        let mut transfers = Self {
            host: Arc::new(host),
            all: BTreeMap::new(),
            uploads: JoinSet::new(),
            questions: JoinSet::new(),
        };
        transfers.find_earlier().await?;
        let mut named = BTreeSet::new();
        // Not at once: what open jobs name is not known yet.
        let mut look = tokio::time::interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(message) = messages.recv() => match message {
                    Message::Put { caller, paths, id, responder } => transfers.ask(caller, paths, id, responder),
                    Message::Jobs(texts) => named = texts,
                },
                Some(incoming) = requests.recv() => transfers.request(incoming).await,
                Some(Ok(answered)) = transfers.questions.join_next() => transfers.reply(answered).await,
                Some(_) = transfers.uploads.join_next() => {}
                _ = look.tick() => transfers.give_up(&named),
                else => return std::future::pending().await,
            }
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
            heard_at: Instant::now(),
        };
        self.all.insert(id, entry);
    }

    /// Finds out what the store lacks, and holds what it has.
    fn ask(&mut self, caller: Caller, paths: Vec<SentPath>, id: CommandId, responder: Responder) {
        let host = self.host.clone();
        self.questions.spawn(async move {
            let lacks = lacking(&host, &paths).await;
            Answered {
                caller,
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
            paths,
            id,
            responder,
            lacks,
        } = answered;
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
        if lacks.is_empty() {
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
        entry.heard_at = Instant::now();
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
        self.make_place(&description.caller)?;
        let open = || self.all.values().filter(|entry| entry.is_open());
        let of_uploads: u64 = open().map(Entry::rest).sum();
        let of_store: u64 = open().map(|entry| entry.description.total()).sum();
        self.host
            .has_room(of_uploads.saturating_add(total), of_store.saturating_add(total))?;
        let id = Uuid::now_v7();
        let directory = self.host.directory.join(id.to_string());
        let spool = Spool::create(&directory, &description).map_err(failed)?;
        self.start(id, description, spool);
        Ok(id)
    }

    /// Makes a place for an upload of this caller.
    fn make_place(&mut self, caller: &Caller) -> Result<(), Problem> {
        let open = self.all.iter().filter(|(_, entry)| entry.is_open());
        let own = open
            .clone()
            .filter(|(_, entry)| entry.description.caller == *caller);
        let too_many = own.clone().count() >= MOST_OF_A_CALLER || open.count() >= MOST;
        if !too_many {
            return Ok(());
        }
        let silent = own.filter(|(_, entry)| entry.heard_at.elapsed() >= REPLACED_AFTER);
        let oldest = silent.min_by_key(|(_, entry)| entry.heard_at).map(|(id, _)| *id);
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
        let Incoming {
            caller,
            verb,
            transfer,
            body,
            responder,
            ..
        } = incoming;
        let entry = transfer.as_ref().and_then(|headers| {
            let entry = self.all.get_mut(&headers.upload.parse::<Uuid>().ok()?)?;
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
        entry.heard_at = Instant::now();
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

    /// Removes uploads to which nobody writes, and links that no open job needs.
    fn give_up(&mut self, named: &BTreeSet<String>) {
        let silent = self
            .all
            .iter()
            .filter(|(_, entry)| entry.heard_at.elapsed() >= KEPT);
        let silent: Vec<Uuid> = silent.map(|(id, _)| *id).collect();
        for id in silent {
            self.remove(id);
        }
        for directory in released(kept(&self.host.kept, named), SystemTime::now()) {
            if let Err(error) = fs::remove_dir_all(&directory) {
                tracing::warn!(%error, directory = %directory.display(), "can't give up paths that callers sent");
            }
        }
    }
}

fn no_upload() -> Problem {
    let why = "the caller has no such upload: nix.put says what is lacking, and begins one";
    Problem::new(ProblemCode::NotFound, why)
}

/// Returns what the store lacks, and holds what it has.
async fn lacking(host: &Host, paths: &[SentPath]) -> Result<BTreeSet<StorePath>, Problem> {
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
        match host
            .nix
            .hold(&kept_directory(&host.kept, paths), &tops(&there))
            .await
        {
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

/// Links that hold what callers sent.
#[derive(Debug)]
struct Kept {
    directory: PathBuf,
    /// When they were last made.
    used: SystemTime,
    /// Whether an open job names one of the paths.
    is_needed: bool,
}

fn kept(directory: &Path, named: &BTreeSet<String>) -> Vec<Kept> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let kept = entries.filter_map(|entry| {
        let directory = entry.path();
        let links = fs::read_dir(&directory).into_iter().flatten().flatten();
        let is_needed = links
            .filter_map(|link| fs::read_link(link.path()).ok())
            .any(|path| named.iter().any(|text| text.contains(&*path.to_string_lossy())));
        Some(Kept {
            used: entry.metadata().ok()?.modified().ok()?,
            directory,
            is_needed,
        })
    });
    kept.collect()
}

/// Returns the directories of what is held no longer.
fn released(mut kept: Vec<Kept>, now: SystemTime) -> Vec<PathBuf> {
    kept.retain(|kept| !kept.is_needed);
    kept.sort_by_key(|kept| std::cmp::Reverse(kept.used));
    let is_old = |kept: &Kept| now.duration_since(kept.used).is_ok_and(|age| age > HELD);
    let released = kept.into_iter().enumerate();
    let released = released.filter(|(place, kept)| *place >= MOST_HELD || is_old(kept));
    released.map(|(_, kept)| kept.directory).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_held_for_a_day_and_as_long_as_an_open_job_names_them() {
        let now = SystemTime::now();
        let kept = |name: &str, hours: u64, is_needed| Kept {
            directory: name.into(),
            used: now - Duration::from_secs(hours * 3600),
            is_needed,
        };
        let all = vec![
            kept("new", 1, false),
            kept("old", 25, false),
            kept("needed", 25, true),
            kept("of tomorrow", 0, false),
        ];
        assert_eq!(released(all, now), [PathBuf::from("old")]);
        let many = (0..300).map(|number| kept(&number.to_string(), number / 100, false));
        let released = released(many.collect(), now);
        assert_eq!(released.len(), 300 - MOST_HELD);
        assert!(
            released.iter().all(|path| path.as_os_str().len() == 3),
            "{released:?}"
        );
    }

    #[test]
    fn a_link_is_needed_if_a_job_names_its_path() {
        let place = tempfile::tempdir().expect("a directory");
        let path = "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-source";
        fs::create_dir(place.path().join("x")).expect("a directory");
        std::os::unix::fs::symlink(path, place.path().join("x/path")).expect("a link");
        let named = [format!("path:{path}?narHash=x#hello")].into();
        assert!(kept(place.path(), &named)[0].is_needed);
        assert!(!kept(place.path(), &BTreeSet::new())[0].is_needed);
    }
}
