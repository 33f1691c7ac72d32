//! One upload: a task that takes its bytes, and has Nix add what they are.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use leaf_bus::serve::Responder;
use leaf_core::error::chain;
use leaf_core::json::to_json;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::transfer::{Received, UploadState, tops};
use tokio::sync::{mpsc, watch};

use super::host::Host;
use super::spool::{Description, Spool, SpoolError};

/// The bytes after which the disks are looked at again.
const LOOK_EVERY: u64 = 16 << 20;

/// What an upload is told.
#[derive(Debug)]
pub(super) enum Told {
    /// Take these bytes at this offset, if it is a write; and answer.
    Ask(Option<(u64, Bytes)>, Responder),
    /// It is given up: remove it.
    Remove,
}

/// How far an upload is, or why it has failed.
pub(super) type Status = Result<Received, Problem>;

/// The task of one upload.
pub(super) struct Upload {
    pub(super) host: Arc<Host>,
    pub(super) directory: PathBuf,
    pub(super) description: Description,
    pub(super) status: watch::Sender<Status>,
    pub(super) told: mpsc::Receiver<Told>,
}

impl Upload {
    /// Takes bytes until all are there, and has them added. It ends when it is told to, or with the daemon, which leaves the bytes on
    /// disk.
    pub(super) async fn run(mut self, spool: Spool) {
        let mut spool = Some(spool);
        let mut looked_at = 0;
        loop {
            if spool.as_ref().is_some_and(Spool::is_whole) {
                let whole = spool.take();
                self.tell(UploadState::Adding);
                let ended = self.add(whole).await;
                self.remove_files();
                match ended {
                    Ok(()) => self.tell(UploadState::Added),
                    Err(problem) => self.fail(problem),
                }
                return self.answer_all().await;
            }
            let Some(told) = self.told.recv().await else {
                return;
            };
            match told {
                Told::Remove => return self.remove_files(),
                Told::Ask(write, responder) => {
                    if let (Some((offset, bytes)), Some(taking)) = (write, spool.take()) {
                        match self.write(taking, offset, bytes, &mut looked_at).await {
                            Ok(taken) => spool = Some(taken),
                            Err(problem) => {
                                self.remove_files();
                                self.fail(problem);
                            }
                        }
                    }
                    let status = self.status.borrow().clone();
                    answer(responder, &status).await;
                    if status.is_err() {
                        return self.answer_all().await;
                    }
                }
            }
        }
    }

    /// Answers those that still wait: it has ended.
    async fn answer_all(mut self) {
        self.told.close();
        let status = self.status.borrow().clone();
        while let Some(told) = self.told.recv().await {
            if let Told::Ask(_, responder) = told {
                answer(responder, &status).await;
            }
        }
    }

    async fn write(
        &self,
        mut spool: Spool,
        offset: u64,
        bytes: Bytes,
        looked_at: &mut u64,
    ) -> Result<Spool, Problem> {
        let looks = spool.received() >= *looked_at + LOOK_EVERY;
        if looks {
            *looked_at = spool.received();
            self.host.has_room(0, 0)?;
        }
        let written = tokio::task::spawn_blocking(move || spool.write(offset, &bytes).map(|()| spool));
        let spool = written.await.map_err(|error| failed(&error.to_string()))?;
        let spool = spool.map_err(|error| {
            let code = match &error {
                SpoolError::Hash { .. } => ProblemCode::Invalid,
                SpoolError::Disk { source, .. } if is_full(source) => ProblemCode::DiskFull,
                SpoolError::Disk { .. } => ProblemCode::Failed,
            };
            Problem::new(code, chain(&error))
        })?;
        let _ = self.status.send_replace(Ok(Received {
            received: spool.received(),
            state: UploadState::Receiving,
        }));
        Ok(spool)
    }

    /// Has Nix add the paths, and holds them.
    async fn add(&self, spool: Option<Spool>) -> Result<(), Problem> {
        let Some(mut spool) = spool else { return Ok(()) };
        spool.finish().map_err(|error| match is_full(&error) {
            true => Problem::new(ProblemCode::DiskFull, format!("can't finish the upload: {error}")),
            false => failed(&error.to_string()),
        })?;
        let lacks = &self.description.lacks;
        let added = self.host.nix.add_from(&self.directory, lacks).await;
        added.map_err(|error| {
            let why = chain(&error);
            let is_full = why.contains("No space left") || self.host.has_room(0, 0).is_err();
            let code = if is_full {
                ProblemCode::DiskFull
            } else {
                ProblemCode::Invalid
            };
            Problem::new(code, why)
        })?;
        let asked = &self.description.asked;
        let held = self
            .host
            .hold(&self.description.caller, asked, &tops(asked))
            .await;
        held.map_err(|error| failed(&chain(&error)))
    }

    fn tell(&self, state: UploadState) {
        let received = self.description.total();
        let _ = self.status.send_replace(Ok(Received { received, state }));
    }

    fn fail(&self, problem: Problem) {
        tracing::info!(%problem, directory = %self.directory.display(), "an upload has failed");
        let _ = self.status.send_replace(Err(problem));
    }

    fn remove_files(&self) {
        if let Err(error) = std::fs::remove_dir_all(&self.directory)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, directory = %self.directory.display(), "can't remove an upload");
        }
    }
}

fn failed(why: &str) -> Problem {
    Problem::new(ProblemCode::Failed, format!("the upload can't be kept: {why}"))
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded
    )
}

/// Answers with how far an upload is.
pub(super) async fn answer(responder: Responder, status: &Status) {
    let reply = status.as_ref().map(to_json).map_err(Clone::clone);
    responder.reply_session(Vec::new(), reply).await;
}
