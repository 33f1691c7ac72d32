//! Gets store paths of a leaf: the client's side of `docs/protocol/transfers.md`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use leaf_bus::client::CallError;
use leaf_core::command::GetPaths;
use leaf_core::id::StorePath;
use leaf_core::problem::ProblemCode;
use leaf_core::transfer::stored::{Stored, in_order};
use leaf_core::transfer::{CHUNK_BYTES, MOST_PATHS, SentPath, cache, check};
use tokio::time::Instant;
use uuid::Uuid;

use crate::error::Error;
use crate::leaf::Leaf;
use crate::local_nix::{LocalNix, Work};
use crate::progress::TransferBar;
use crate::upload::patiently;

/// The reads that are under way.
const WINDOW: usize = 6;
/// How long a read waits for its reply.
const REPLY_WITHIN: Duration = Duration::from_secs(10);
/// How long a read is asked for.
const PATIENCE: Duration = Duration::from_secs(180);
/// The pause before a read is asked for again.
const PAUSE: Duration = Duration::from_millis(200);
/// How often a download begins anew that the leaf does not know any more.
const MOST_DOWNLOADS: usize = 4;
/// The bytes of NARs that are on this machine's disk before they are added, beside one NAR that is larger.
const BATCH_BYTES: u64 = 512 << 20;

/// How paths are added to this machine's store.
#[derive(Clone, Copy)]
pub(crate) struct Adding<'a> {
    pub(crate) nix: &'a LocalNix,
    /// Whether Nix asks for a signature that it trusts.
    pub(crate) checked: bool,
    /// The program that runs Nix, with its first arguments.
    pub(crate) wrap: Option<&'a [OsString]>,
    /// The directory in which NARs are kept until they are added.
    pub(crate) within: &'a Path,
}

/// What was got.
#[derive(Debug, Default)]
pub(crate) struct Got {
    /// The paths that were added.
    pub(crate) added: Vec<StorePath>,
    /// The bytes of their NARs.
    pub(crate) bytes: u64,
}

/// Which paths are brought.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those that are named, with all that they refer to.
    Closure,
    /// Those that are named alone: what else a leaf says that they refer to, this machine's store must have.
    Named,
}

/// Brings these paths into this machine's store.
pub(crate) async fn bring(
    leaf: &Leaf,
    adding: Adding<'_>,
    paths: &[StorePath],
    scope: Scope,
) -> Result<Got, Error> {
    let mut listed = Vec::new();
    for paths in paths.chunks(MOST_PATHS) {
        let request = GetPaths {
            paths: paths.to_vec(),
            closure: true,
        };
        let stored = patiently(async || leaf.call_slow(&request).await).await?;
        listed.extend(stored.paths);
    }
    if scope == Scope::Named {
        listed.retain(|sent| paths.contains(&sent.path));
    }
    let names: Vec<StorePath> = listed.iter().map(|sent| sent.path.clone()).collect();
    let lacks = adding.nix.lacking(&names).await?;
    let mut wanted: Vec<SentPath> = Vec::new();
    for sent in listed {
        if lacks.contains(&sent.path) && !wanted.iter().any(|other| other.path == sent.path) {
            wanted.push(sent);
        }
    }
    get(leaf, adding, in_order(wanted)).await
}

/// Brings these paths into this machine's store, which must have what they refer to, or get it before.
async fn get(leaf: &Leaf, adding: Adding<'_>, wanted: Vec<SentPath>) -> Result<Got, Error> {
    let mut got = Got::default();
    if wanted.is_empty() {
        return Ok(got);
    }
    let total = wanted
        .iter()
        .map(|sent| sent.nar_size)
        .fold(0, u64::saturating_add);
    let bar = TransferBar::of_download(leaf.is_alone(), total);
    for batch in batches(wanted) {
        // What a leaf says is data.
        check(&batch).map_err(|why| of_leaf(leaf, &why))?;
        let work = Work::make_in(adding.within)?;
        let mut reading = Reading {
            leaf,
            directory: &work.0,
            batch: &batch,
            bar: &bar,
            before: got.bytes,
            whole: 0,
        };
        reading.run().await?;
        let failed = |error: std::io::Error| failed(&work.0, &error);
        fs::write(work.0.join(cache::INFO_NAME), cache::INFO).map_err(failed)?;
        for (number, sent) in batch.iter().enumerate() {
            let name = cache::narinfo_name(&sent.path);
            fs::write(work.0.join(name), cache::narinfo(number, sent)).map_err(failed)?;
        }
        let paths: Vec<StorePath> = batch.iter().map(|sent| sent.path.clone()).collect();
        adding
            .nix
            .add(&work.0, &paths, adding.checked, adding.wrap)
            .await?;
        got.bytes += batch.iter().map(|sent| sent.nar_size).sum::<u64>();
        got.added.extend(paths);
    }
    bar.finish();
    Ok(got)
}

/// Returns paths in batches, none of which has too many or too large ones.
fn batches(wanted: Vec<SentPath>) -> Vec<Vec<SentPath>> {
    let mut batches: Vec<Vec<SentPath>> = Vec::new();
    let mut bytes: u64 = 0;
    for sent in wanted {
        match batches.last_mut() {
            Some(batch) if batch.len() < MOST_PATHS && bytes.saturating_add(sent.nar_size) <= BATCH_BYTES => {
                bytes += sent.nar_size;
                batch.push(sent);
            }
            _ => {
                bytes = sent.nar_size;
                batches.push(vec![sent]);
            }
        }
    }
    batches
}

fn failed(directory: &Path, error: &std::io::Error) -> Error {
    Error::Refused(format!(
        "can't keep what the leaf sends in {}: {error}; TMPDIR names another directory",
        directory.display()
    ))
}

fn of_leaf(leaf: &Leaf, why: &str) -> Error {
    Error::Refused(format!(
        "leaf {} says of its store what can't be: {why}",
        leaf.name
    ))
}

/// The NARs of a batch on their way into a directory.
struct Reading<'a> {
    leaf: &'a Leaf,
    directory: &'a Path,
    batch: &'a [SentPath],
    bar: &'a TransferBar,
    /// The bytes of earlier batches.
    before: u64,
    /// The number of NARs that are whole.
    whole: usize,
}

impl Reading<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        for _ in 0..MOST_DOWNLOADS {
            let wanted = &self.batch[self.whole..];
            let request = GetPaths {
                paths: wanted.iter().map(|sent| sent.path.clone()).collect(),
                closure: false,
            };
            let stored = patiently(async || self.leaf.call_slow(&request).await).await?;
            // The store has them still, as it had them.
            if stored.paths.len() != wanted.len()
                || stored
                    .paths
                    .iter()
                    .zip(wanted)
                    .any(|(now, before)| (&now.path, &now.nar_hash) != (&before.path, &before.nar_hash))
            {
                return Err(of_leaf(self.leaf, "a path is not what it was a moment ago"));
            }
            match self.read(&stored).await {
                // It was replaced, or leafd was started again.
                Err(Error::Problem(problem)) if problem.code == ProblemCode::NotFound => {}
                ended => return ended,
            }
        }
        Err(Error::Refused(format!(
            "leaf {} gave up the download several times: see its log",
            self.leaf.name
        )))
    }

    /// Reads the NARs that are not whole.
    async fn read(&mut self, stored: &Stored) -> Result<(), Error> {
        let download = stored
            .download
            .ok_or_else(|| of_leaf(self.leaf, "there is no download"))?;
        if !(1..=CHUNK_BYTES).contains(&stored.chunk_bytes) {
            return Err(of_leaf(self.leaf, "a read has no bytes, or too many"));
        }
        let chunk = stored.chunk_bytes as u64;
        let rest = &self.batch[self.whole..];
        let total: u64 = rest.iter().map(|sent| sent.nar_size).sum();
        let before = self.before
            + self.batch[..self.whole]
                .iter()
                .map(|sent| sent.nar_size)
                .sum::<u64>();
        let failed = |error: std::io::Error| failed(self.directory, &error);
        let create = |number: usize| File::create(self.directory.join(cache::nar_name(number)));
        let mut file = create(self.whole).map_err(failed)?;
        let mut left = rest.first().map_or(0, |sent| sent.nar_size);
        let (mut asked, mut written) = (0, 0);
        let mut reads = FuturesOrdered::new();
        while written < total {
            while asked < total && reads.len() < WINDOW {
                let bytes = chunk.min(total - asked);
                reads.push_back(self.chunk(download, asked, bytes));
                asked += bytes;
            }
            let bytes = match reads.next().await {
                Some(bytes) => bytes?,
                None => break,
            };
            written += bytes.len() as u64;
            let mut bytes = bytes.as_slice();
            while !bytes.is_empty() {
                let now = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                file.write_all(&bytes[..now]).map_err(failed)?;
                left -= now as u64;
                bytes = &bytes[now..];
                if left == 0 {
                    self.whole += 1;
                    if let Some(next) = self.batch.get(self.whole) {
                        file = create(self.whole).map_err(failed)?;
                        left = next.nar_size;
                    }
                }
            }
            self.bar.at(before + written);
        }
        // Its place is free for another one sooner.
        let client = &self.leaf.client;
        let _ = client
            .download_request(&self.leaf.name, download, total, REPLY_WITHIN)
            .await;
        Ok(())
    }

    /// Returns the bytes at an offset.
    fn chunk(
        &self,
        download: Uuid,
        offset: u64,
        bytes: u64,
    ) -> impl Future<Output = Result<Vec<u8>, Error>> + use<> {
        let (client, leaf) = (self.leaf.client.clone(), self.leaf.name.clone());
        async move {
            let began = Instant::now();
            loop {
                let answer = client
                    .download_request(&leaf, download, offset, REPLY_WITHIN)
                    .await;
                match answer {
                    Ok(read) if read.len() as u64 == bytes => return Ok(read),
                    Ok(read) => {
                        let got = read.len();
                        return Err(Error::Refused(format!(
                            "leaf {leaf} has sent {got} bytes of a NAR at {offset} in the place of {bytes}"
                        )));
                    }
                    Err(
                        CallError::NoLeaf(_)
                        | CallError::TimedOut { .. }
                        | CallError::Disconnected
                        | CallError::Other(_),
                    ) if began.elapsed() < PATIENCE => tokio::time::sleep(PAUSE).await,
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_at_most_so_many_paths_and_bytes_but_for_one_that_is_larger() {
        let sent = |number: usize, nar_size: u64| SentPath {
            path: StorePath::new(format!("/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-{number}"))
                .expect("a path"),
            nar_hash: String::new(),
            nar_size,
            references: Vec::new(),
            content_address: None,
            signatures: Vec::new(),
            deriver: None,
        };
        let sizes = |wanted: Vec<SentPath>| -> Vec<usize> { batches(wanted).iter().map(Vec::len).collect() };
        assert_eq!(
            sizes((0..1100).map(|number| sent(number, 1)).collect()),
            [512, 512, 76]
        );
        let half = BATCH_BYTES / 2;
        let wanted = [half, half, 1, u64::MAX, 1].into_iter().enumerate();
        assert_eq!(
            sizes(wanted.map(|(number, size)| sent(number, size)).collect()),
            [2, 1, 1, 1]
        );
        assert!(sizes(Vec::new()).is_empty());
    }
}
