//! One download: a task that reads NARs of the store, and answers with their bytes.
//!
//! A program of Nix prints them, one after the other. The last bytes are kept, so that a read whose reply was lost is answered again; what
//! is further behind is printed once more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use leaf_bus::serve::Responder;
use leaf_core::problem::{Problem, ProblemCode};
use leaf_core::session;
use leaf_core::transfer::{CHUNK_BYTES, SentPath};
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, ChildStdout};
use tokio::sync::mpsc;

use super::host::Host;

/// The bytes that are kept behind a read: as many as a client has under way.
const KEPT: usize = 8 * CHUNK_BYTES;
/// How often what was printed is printed again, until the download ends.
const MOST_REPEATS: usize = 64;
/// How much of what a program says is in a problem.
const MOST_WORDS: u64 = 1000;
/// How long Nix may print nothing.
const PATIENCE: Duration = Duration::from_secs(120);

/// A read: its offset, the most bytes of the reply, and what sends it.
pub(super) type Read = (u64, usize, Responder);

/// Answers reads until the end was read, or nobody reads any more.
pub(super) async fn serve(host: Arc<Host>, paths: Vec<SentPath>, mut reads: mpsc::Receiver<Read>) {
    let total = paths.iter().map(|sent| sent.nar_size).sum();
    let mut nars = Nars {
        source: Dumps { host, paths },
        total,
        kept: VecDeque::new(),
        begin: 0,
        open: None,
        repeats: 0,
    };
    while let Some((offset, most, responder)) = reads.recv().await {
        let read = nars.read(offset, most).await;
        let ends = read.is_err() || offset >= total;
        let headers = vec![(session::OFFSET_HEADER, offset.to_string())];
        responder.reply_session(headers, read).await;
        if ends {
            return;
        }
    }
}

/// Prints NARs.
trait Source {
    /// What prints one.
    type Open;
    /// Returns the size of the NAR with this number.
    fn size(&self, number: usize) -> Option<u64>;
    /// Begins to print it.
    fn open(&self, number: usize) -> Result<Self::Open, Problem>;
    /// Returns the next bytes, at most so many; none at its end.
    async fn next(&self, open: &mut Self::Open, number: usize, most: usize) -> Result<Vec<u8>, Problem>;
    /// Checks that it has printed all.
    async fn end(&self, open: Self::Open, number: usize) -> Result<(), Problem>;
}

/// A program of Nix for each.
struct Dumps {
    host: Arc<Host>,
    paths: Vec<SentPath>,
}

impl Dumps {
    fn gone(&self, number: usize, why: &str) -> Problem {
        let path = self.paths.get(number).map(|sent| sent.path.as_str());
        let path = path.unwrap_or_default();
        let detail = format!("can't read {path} from the leaf's store: {}", why.trim());
        Problem::new(ProblemCode::NotFound, detail)
    }
}

impl Source for Dumps {
    type Open = (Child, ChildStdout);

    fn size(&self, number: usize) -> Option<u64> {
        self.paths.get(number).map(|sent| sent.nar_size)
    }

    fn open(&self, number: usize) -> Result<Self::Open, Problem> {
        let sent = self
            .paths
            .get(number)
            .ok_or_else(|| self.gone(number, "there is no such number"))?;
        let failed = |why: String| Problem::new(ProblemCode::Failed, format!("can't run Nix: {why}"));
        let mut child = self
            .host
            .nix
            .dump(&sent.path)
            .map_err(|error| failed(error.to_string()))?;
        let output = child
            .stdout
            .take()
            .ok_or_else(|| failed("it has no output".to_owned()))?;
        Ok((child, output))
    }

    async fn next(
        &self,
        (_, output): &mut Self::Open,
        number: usize,
        most: usize,
    ) -> Result<Vec<u8>, Problem> {
        let mut bytes = vec![0; most];
        match tokio::time::timeout(PATIENCE, output.read(&mut bytes)).await {
            Ok(Ok(read)) => {
                bytes.truncate(read);
                Ok(bytes)
            }
            Ok(Err(error)) => Err(self.gone(number, &error.to_string())),
            Err(_) => Err(self.gone(number, "Nix prints nothing")),
        }
    }

    async fn end(&self, (mut child, output): Self::Open, number: usize) -> Result<(), Problem> {
        drop(output);
        let mut said = String::new();
        if let Some(errors) = child.stderr.take() {
            let _ = errors.take(MOST_WORDS).read_to_string(&mut said).await;
        }
        match tokio::time::timeout(PATIENCE, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(_)) => Err(self.gone(number, &said)),
            Ok(Err(error)) => Err(self.gone(number, &error.to_string())),
            Err(_) => Err(self.gone(number, "Nix doesn't end")),
        }
    }
}

/// NARs one after the other, of which the last bytes are kept.
struct Nars<S: Source> {
    source: S,
    total: u64,
    kept: VecDeque<u8>,
    /// The offset of the first byte that is kept.
    begin: u64,
    /// What is printed, by number, and the bytes of it that are to come.
    open: Option<(S::Open, usize, u64)>,
    repeats: usize,
}

impl<S: Source> Nars<S> {
    /// Returns the bytes from an offset on, at most so many; none at the end.
    async fn read(&mut self, offset: u64, most: usize) -> Result<Vec<u8>, Problem> {
        let offset = offset.min(self.total);
        let end = self.total.min(offset.saturating_add(most as u64));
        if offset < self.begin || offset > self.reached().saturating_add(KEPT as u64) {
            self.seek(offset)?;
        }
        while self.reached() < end {
            self.print().await?;
            let beyond = self.kept.len().saturating_sub(KEPT);
            let beyond = beyond.min(usize::try_from(offset.saturating_sub(self.begin)).unwrap_or(usize::MAX));
            self.kept.drain(..beyond);
            self.begin += beyond as u64;
        }
        let within = |at: u64| usize::try_from(at - self.begin).unwrap_or(usize::MAX);
        Ok(self.kept.range(within(offset)..within(end)).copied().collect())
    }

    /// Returns the offset behind the last byte that is kept.
    fn reached(&self) -> u64 {
        self.begin + self.kept.len() as u64
    }

    /// Begins with the NAR that has this offset.
    fn seek(&mut self, offset: u64) -> Result<(), Problem> {
        self.repeats += usize::from(offset < self.begin);
        if self.repeats > MOST_REPEATS {
            let why = "the download was begun again too often: ask with nix.get for another one";
            return Err(Problem::new(ProblemCode::NotFound, why));
        }
        let (mut number, mut at) = (0, 0);
        while let Some(size) = self.source.size(number)
            && at + size <= offset
        {
            (number, at) = (number + 1, at + size);
        }
        // What is there already, and comes sooner.
        if let Some((_, open, _)) = &self.open
            && *open == number
            && offset >= self.begin
        {
            return Ok(());
        }
        self.kept.clear();
        self.begin = at;
        self.open = match self.source.size(number) {
            Some(size) => Some((self.source.open(number)?, number, size)),
            None => None,
        };
        Ok(())
    }

    /// Takes the next bytes that are printed.
    async fn print(&mut self) -> Result<(), Problem> {
        let (mut open, number, left) = match self.open.take() {
            Some(open) => open,
            None => {
                // Only the first, since the end of each begins the next one.
                let size = self.source.size(0).unwrap_or_default();
                (self.source.open(0)?, 0, size)
            }
        };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let bytes = self.source.next(&mut open, number, most).await?;
        let left = left - bytes.len() as u64;
        if bytes.is_empty() || left == 0 {
            let more = match left {
                0 => self.source.next(&mut open, number, 1).await?,
                _ => Vec::new(),
            };
            if !more.is_empty() {
                return Err(damaged("more bytes"));
            }
            self.source.end(open, number).await?;
            if left > 0 {
                return Err(damaged("fewer bytes"));
            }
            if let Some(size) = self.source.size(number + 1) {
                self.open = Some((self.source.open(number + 1)?, number + 1, size));
            }
        } else {
            self.open = Some((open, number, left));
        }
        self.kept.extend(bytes);
        Ok(())
    }
}

fn damaged(what: &str) -> Problem {
    let why = format!("a NAR has {what} than Nix knows of: the leaf's store is damaged");
    Problem::new(ProblemCode::Failed, why)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// NARs in memory, which come in pieces of this many bytes.
    struct Memory {
        nars: Vec<Vec<u8>>,
        piece: usize,
        opened: Cell<usize>,
    }

    impl Source for Memory {
        type Open = usize;

        fn size(&self, number: usize) -> Option<u64> {
            self.nars.get(number).map(|nar| nar.len() as u64)
        }

        fn open(&self, _: usize) -> Result<usize, Problem> {
            self.opened.set(self.opened.get() + 1);
            Ok(0)
        }

        async fn next(&self, at: &mut usize, number: usize, most: usize) -> Result<Vec<u8>, Problem> {
            let nar = &self.nars[number];
            let end = nar.len().min(*at + most.min(self.piece));
            let bytes = nar[*at..end].to_vec();
            *at = end;
            Ok(bytes)
        }

        async fn end(&self, at: usize, number: usize) -> Result<(), Problem> {
            assert_eq!(at, self.nars[number].len());
            Ok(())
        }
    }

    fn nars(sizes: &[usize], piece: usize) -> (Vec<u8>, Nars<Memory>) {
        let mut counted = 0_u32;
        let mut bytes = |size: usize| -> Vec<u8> {
            (0..size)
                .map(|_| {
                    counted = counted.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    counted.to_be_bytes()[0]
                })
                .collect()
        };
        let nars: Vec<Vec<u8>> = sizes.iter().map(|size| bytes(*size)).collect();
        let all = nars.concat();
        let source = Memory {
            nars,
            piece,
            opened: Cell::new(0),
        };
        let nars = Nars {
            source,
            total: all.len() as u64,
            kept: VecDeque::new(),
            begin: 0,
            open: None,
            repeats: 0,
        };
        (all, nars)
    }

    #[tokio::test]
    async fn each_read_gets_the_bytes_at_its_offset_whatever_was_read_before() {
        let sizes = [5, CHUNK_BYTES, 3 * CHUNK_BYTES + 17, 1, 20 * CHUNK_BYTES];
        let (all, mut nars) = nars(&sizes, 50_000);
        let mut offset = 0_usize;
        for turn in 0..200_usize {
            // Forwards, with reads again, far ahead, and from the beginning now and then.
            offset = match turn % 11 {
                3 => offset.saturating_sub(CHUNK_BYTES),
                7 if turn % 33 == 7 => 0,
                9 => offset + 9 * CHUNK_BYTES,
                _ => offset + CHUNK_BYTES,
            } % (all.len() + 1);
            let read = nars.read(offset as u64, CHUNK_BYTES).await.expect("there");
            let end = all.len().min(offset + CHUNK_BYTES);
            assert!(read == all[offset..end], "at {offset} in turn {turn}");
            assert!(nars.kept.len() <= KEPT + 2 * CHUNK_BYTES, "{}", nars.kept.len());
            if nars.repeats > MOST_REPEATS - 2 {
                nars.repeats = 0;
            }
        }
        assert_eq!(nars.read(u64::MAX, CHUNK_BYTES).await, Ok(Vec::new()));
    }

    #[tokio::test]
    async fn reads_in_order_print_each_nar_once_and_many_repeats_end_it() {
        let sizes = [CHUNK_BYTES; 30];
        let (all, mut nars) = nars(&sizes, 70_000);
        for offset in (0..all.len()).step_by(CHUNK_BYTES) {
            nars.read(offset as u64, CHUNK_BYTES).await.expect("there");
            let again = offset.saturating_sub(6 * CHUNK_BYTES);
            nars.read(again as u64, CHUNK_BYTES).await.expect("kept");
        }
        assert_eq!(nars.source.opened.get(), sizes.len());
        let mut ended = None;
        for _ in 0..=MOST_REPEATS {
            for offset in [0, all.len() - 1] {
                ended = nars.read(offset as u64, 1).await.err().or(ended);
            }
        }
        assert_eq!(ended.map(|problem| problem.code), Some(ProblemCode::NotFound));
    }

    #[tokio::test]
    async fn a_nar_that_is_shorter_or_longer_than_nix_says_is_an_error() {
        let (_, mut shorter) = nars(&[100], 70);
        shorter.source.nars[0].truncate(60);
        shorter.open = Some((0, 0, 100));
        let problem = shorter.read(0, CHUNK_BYTES).await.expect_err("short");
        assert!(problem.detail.contains("fewer bytes"), "{problem}");
        let (_, mut longer) = nars(&[100], 70);
        longer.open = Some((0, 0, 90));
        longer.total = 90;
        let problem = longer.read(0, CHUNK_BYTES).await.expect_err("long");
        assert!(problem.detail.contains("more bytes"), "{problem}");
    }
}
