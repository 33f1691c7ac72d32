//! Sends store paths to a leaf: the client's side of `docs/protocol/transfers.md`.

use std::collections::VecDeque;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use leaf_bus::client::CallError;
use leaf_core::command::PutPaths;
use leaf_core::id::StorePath;
use leaf_core::problem::ProblemCode;
use leaf_core::transfer::{Received, SentPath, UploadState};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout};
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::Error;
use crate::leaf::Leaf;
use crate::local_nix::LocalNix;
use crate::progress::TransferBar;

/// The writes that are under way.
const WINDOW: usize = 6;
/// How long a write waits for its reply.
const REPLY_WITHIN: Duration = Duration::from_secs(10);
/// How long nothing may arrive at the leaf until the upload is given up.
const PATIENCE: Duration = Duration::from_secs(180);
/// The pause before a lost write is sent again.
const PAUSE: Duration = Duration::from_millis(500);
/// The pauses between two questions whether the paths are added.
const LEAST_PAUSE: Duration = Duration::from_millis(20);
const MOST_PAUSE: Duration = Duration::from_secs(1);
/// How often an upload begins anew that the leaf does not know any more.
const MOST_UPLOADS: usize = 4;
/// The room for headers in a message.
const HEADER_ROOM: usize = 1024;

/// Bytes of an upload: the data of an `Arc`, so that sending them again copies nothing.
type Chunk = (u64, bytes::Bytes);

/// Sends what the leaf lacks of these paths, and returns once they are in its store.
pub(crate) async fn send(leaf: &Leaf, nix: &LocalNix, paths: &[SentPath]) -> Result<(), Error> {
    for _ in 0..MOST_UPLOADS {
        let request = PutPaths {
            paths: paths.to_vec(),
        };
        let lacking = patiently(async || leaf.call_slow(&request).await).await?;
        let Some(upload) = lacking.upload else {
            return Ok(());
        };
        let lacks: Vec<(StorePath, u64)> = paths
            .iter()
            .filter(|sent| lacking.lacks.contains(&sent.path))
            .map(|sent| (sent.path.clone(), sent.nar_size))
            .collect();
        let room = leaf.client.max_payload().saturating_sub(HEADER_ROOM);
        let total = lacks.iter().map(|(_, bytes)| bytes).sum();
        let mut sending = Sending {
            leaf,
            upload,
            total,
            chunk_bytes: lacking.chunk_bytes.min(room).max(1),
            bar: TransferBar::of_upload(leaf.is_alone(), total),
            received: lacking.received,
            moved_at: Instant::now(),
        };
        match sending.run(Nars::from(nix, lacks, lacking.received)).await {
            // It was removed, or leafd was started again after it was added.
            Err(Error::Problem(problem)) if problem.code == ProblemCode::NotFound => {}
            ended => return ended,
        }
    }
    Err(Error::Refused(format!(
        "leaf {} gave up the upload several times: see its log",
        leaf.name
    )))
}

/// An upload.
struct Sending<'a> {
    leaf: &'a Leaf,
    upload: Uuid,
    total: u64,
    chunk_bytes: usize,
    bar: TransferBar,
    /// How many bytes the leaf has.
    received: u64,
    /// When that became more.
    moved_at: Instant,
}

impl Sending<'_> {
    async fn run(&mut self, mut nars: Nars<'_>) -> Result<(), Error> {
        // What was read and has not arrived, and how much of that is under way.
        let mut open: VecDeque<Chunk> = VecDeque::new();
        let mut sent = 0;
        let mut waits = FuturesUnordered::new();
        let mut is_behind = false;
        while self.received < self.total {
            while !is_behind && waits.len() < WINDOW {
                if sent == open.len() {
                    match nars.next(self.chunk_bytes).await? {
                        Some(chunk) => open.push_back(chunk),
                        None => break,
                    }
                }
                let (offset, bytes) = open[sent].clone();
                sent += 1;
                let end = offset + bytes.len() as u64;
                let reply = self.ask("write", Some(offset), bytes);
                waits.push(async move { (end, reply.await) });
            }
            match waits.next().await {
                Some((end, Ok(reply))) => {
                    self.arrived(&reply);
                    // It was dropped: the leaf is behind, or lacks bytes before it.
                    is_behind |= reply.received < end;
                }
                Some((_, Err(error))) => {
                    self.may_go_on(error)?;
                    is_behind = true;
                }
                // All that was sent is answered, and some of it is to be sent again.
                None => {
                    let is_stuck = self.moved_at.elapsed() > PAUSE;
                    tokio::time::sleep(if is_stuck { PAUSE } else { LEAST_PAUSE }).await;
                    (sent, is_behind) = (0, false);
                }
            }
            while let Some((offset, bytes)) = open.front()
                && offset + bytes.len() as u64 <= self.received
            {
                open.pop_front();
                sent = sent.saturating_sub(1);
            }
        }
        self.bar.finish();
        drop(waits);
        self.is_added().await
    }

    /// Waits until the leaf has added the paths to its store.
    async fn is_added(&mut self) -> Result<(), Error> {
        let mut pause = LEAST_PAUSE;
        loop {
            match self.ask("show", None, bytes::Bytes::new()).await {
                Ok(Received {
                    state: UploadState::Added,
                    ..
                }) => return Ok(()),
                // As long as it says so, Nix works on it.
                Ok(_) => self.moved_at = Instant::now(),
                Err(error) => self.may_go_on(error)?,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MOST_PAUSE);
        }
    }

    fn ask(
        &self,
        verb: &'static str,
        offset: Option<u64>,
        bytes: bytes::Bytes,
    ) -> impl Future<Output = Result<Received, CallError>> + use<> {
        let (client, leaf, upload) = (self.leaf.client.clone(), self.leaf.name.clone(), self.upload);
        async move {
            client
                .upload_request(&leaf, verb, upload, (offset, bytes), REPLY_WITHIN)
                .await
        }
    }

    fn arrived(&mut self, reply: &Received) {
        if reply.received > self.received {
            self.received = reply.received;
            self.moved_at = Instant::now();
            self.bar.at(self.received);
        }
    }

    /// Returns the error, unless the request can be sent again.
    fn may_go_on(&self, error: CallError) -> Result<(), Error> {
        match error {
            CallError::NoLeaf(_) | CallError::TimedOut { .. } | CallError::Disconnected
                if self.moved_at.elapsed() < PATIENCE =>
            {
                Ok(())
            }
            error => Err(error.into()),
        }
    }
}

/// Asks until the leaf takes the question: it looks into a few of a caller at once.
pub(crate) async fn patiently<T>(ask: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    let began = Instant::now();
    let mut pause = LEAST_PAUSE;
    loop {
        match ask().await {
            Err(Error::Problem(problem))
                if problem.code == ProblemCode::Overloaded && began.elapsed() < PATIENCE => {}
            answer => return answer,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MOST_PAUSE);
    }
}

/// The NARs of store paths of this machine, one after the other.
struct Nars<'a> {
    nix: &'a LocalNix,
    paths: VecDeque<(StorePath, u64)>,
    /// The offset of the next byte.
    offset: u64,
    /// The bytes of the first path that are left out.
    skipped: u64,
    /// The program that prints the first path, and the bytes that it has yet to print.
    open: Option<(Child, ChildStdout, u64)>,
}

impl<'a> Nars<'a> {
    /// Returns the NARs from an offset of all together on.
    fn from(nix: &'a LocalNix, paths: Vec<(StorePath, u64)>, offset: u64) -> Self {
        let mut paths = VecDeque::from(paths);
        let mut skipped = offset;
        while let Some((_, bytes)) = paths.front()
            && *bytes <= skipped
        {
            skipped -= bytes;
            paths.pop_front();
        }
        Self {
            nix,
            paths,
            offset,
            skipped,
            open: None,
        }
    }

    /// Returns the next bytes, at most so many; `None` behind the last.
    async fn next(&mut self, most: usize) -> Result<Option<Chunk>, Error> {
        let Some((path, bytes)) = self.paths.front().cloned() else {
            return Ok(None);
        };
        let failed =
            |why: String| Error::Refused(format!("can't read {path} from this machine's store: {why}"));
        let (mut child, mut output, left) = match self.open.take() {
            Some(open) => open,
            None => {
                let mut child = self
                    .nix
                    .dump(&path)
                    .map_err(|error| failed(format!("can't run nix: {error}")))?;
                let mut output = child
                    .stdout
                    .take()
                    .ok_or_else(|| failed("it has no output".to_owned()))?;
                let skipped = std::mem::take(&mut self.skipped);
                let mut dropped = (&mut output).take(skipped);
                tokio::io::copy(&mut dropped, &mut tokio::io::sink())
                    .await
                    .map_err(|error| failed(error.to_string()))?;
                (child, output, bytes - skipped)
            }
        };
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(most);
        let mut chunk = vec![0; wanted];
        let read = output.read_exact(&mut chunk).await;
        let left = left - wanted as u64;
        if read.is_err() || left == 0 {
            // Whatever it has yet to print, it must not wait for a reader.
            drop(output);
            let mut said = String::new();
            if let Some(mut errors) = child.stderr.take() {
                let _ = (&mut errors).take(2000).read_to_string(&mut said).await;
            }
            let ended = child.wait().await.map_err(|error| failed(error.to_string()))?;
            if !ended.success() || read.is_err() {
                return Err(failed(said.trim().to_owned()));
            }
            self.paths.pop_front();
        } else {
            self.open = Some((child, output, left));
        }
        let offset = self.offset;
        self.offset += wanted as u64;
        Ok(Some((offset, chunk.into())))
    }
}
