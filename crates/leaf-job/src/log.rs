//! A job's log: written in parts, of which the head and the tail are kept, and read by offsets that never change.
//!
//! The head is the part at offset 0 and never changes; the tail consists of a few parts, of which the oldest is removed
//! when a new one begins. Offsets count every byte ever written, so a gap marks left out bytes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use leaf_core::command::LogChunk;

const TAIL_PARTS: u64 = 8;
const BUFFER_BYTES: usize = 64 * 1024;

fn part_path(directory: &Path, offset: u64) -> PathBuf {
    directory.join(format!("log.{offset:020}"))
}

pub(crate) struct LogWriter {
    directory: PathBuf,
    head_max: u64,
    part_max: u64,
    /// The offsets of the tail's parts, oldest first.
    tail: Vec<u64>,
    file: Option<File>,
    begin: u64,
    length: u64,
    buffer: Vec<u8>,
    missing: u64,
    missing_why: String,
}

impl LogWriter {
    pub(crate) fn new(directory: &Path, max_bytes: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            head_max: max_bytes / 2,
            part_max: (max_bytes / 2 / TAIL_PARTS).max(1),
            tail: Vec::new(),
            file: None,
            begin: 0,
            length: 0,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            missing: 0,
            missing_why: String::new(),
        }
    }

    /// Returns the maximum length of a line that is kept whole, in bytes.
    pub(crate) fn max_line(&self) -> usize {
        usize::try_from(self.part_max.min(1024 * 1024)).unwrap_or(1024 * 1024)
    }

    pub(crate) fn has_unwritten(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// Adds a line, given without its end. One that is too long is cut, and ends with `…`.
    pub(crate) fn line(&mut self, text: &str) {
        let room = self.max_line().saturating_sub(1);
        let (mut end, mark) = if text.len() <= room {
            (text.len(), "")
        } else {
            (room.saturating_sub("…".len()), "…")
        };
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let here = self.length + self.buffer.len() as u64;
        let max = if self.begin == 0 {
            self.head_max
        } else {
            self.part_max
        };
        if here > 0 && here + (end + mark.len()) as u64 + 1 > max {
            self.flush();
            self.next_part();
        }
        self.buffer.extend_from_slice(&text.as_bytes()[..end]);
        self.buffer.extend_from_slice(mark.as_bytes());
        self.buffer.push(b'\n');
        if self.buffer.len() >= BUFFER_BYTES {
            self.flush();
        }
    }

    fn next_part(&mut self) {
        if self.length == 0 {
            return;
        }
        self.file = None;
        self.begin += self.length;
        self.length = 0;
        self.tail.push(self.begin);
        if self.tail.len() as u64 > TAIL_PARTS {
            let oldest = self.tail.remove(0);
            let _ = fs::remove_file(part_path(&self.directory, oldest));
        }
    }

    /// Writes the buffered lines. Bytes that can't be written are counted, and a notice follows once writing succeeds
    /// again.
    pub(crate) fn flush(&mut self) {
        if self.buffer.is_empty() && self.missing == 0 {
            return;
        }
        let mut bytes = Vec::new();
        if self.missing > 0 {
            bytes.extend_from_slice(missing_notice(self.missing, &self.missing_why).as_bytes());
        }
        bytes.extend_from_slice(&self.buffer);
        match self.append(&bytes) {
            Ok(()) => {
                self.length += bytes.len() as u64;
                self.missing = 0;
            }
            Err(error) => {
                self.missing += self.buffer.len() as u64;
                self.missing_why = error.to_string();
            }
        }
        self.buffer.clear();
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(
                OpenOptions::new()
                    .create(true)
                    .append(true)
                    .mode(0o644)
                    .open(part_path(&self.directory, self.begin))?,
            ),
        };
        file.write_all(bytes).inspect_err(|_| {
            // An incomplete line would shift every later offset.
            let _ = file.set_len(self.length);
        })
    }

    /// Writes the rest, and returns a notice of the bytes that could not be written, with the reason.
    pub(crate) fn finish(mut self) -> Option<String> {
        self.flush();
        (self.missing > 0).then(|| missing_notice(self.missing, &self.missing_why))
    }
}

fn missing_notice(bytes: u64, why: &str) -> String {
    format!("[… {bytes} bytes could not be written: {why} …]\n")
}

/// Returns a page of the log from an offset, at most `max_bytes`, with a notice where bytes were left out. `ended`:
/// nothing more will be written.
pub(crate) fn read(directory: &Path, offset: u64, max_bytes: usize, ended: bool) -> io::Result<LogChunk> {
    let mut last_error = None;
    // A part may be removed between listing and reading.
    for _ in 0..8 {
        match read_once(directory, offset, max_bytes.max(16), ended) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => last_error = Some(e),
            other => return other,
        }
    }
    Err(last_error.expect("the loop ran"))
}

/// Returns the offset of the present end of the log.
pub(crate) fn end(directory: &Path) -> io::Result<u64> {
    Ok(parts(directory)?
        .last()
        .map_or(0, |(begin, length)| begin + length))
}

fn parts(directory: &Path) -> io::Result<Vec<(u64, u64)>> {
    let mut parts = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(begin) = name
            .to_str()
            .and_then(|n| n.strip_prefix("log."))
            .and_then(|n| n.parse().ok())
        else {
            continue;
        };
        match entry.metadata() {
            // Other files that a job put there are not its log.
            Ok(metadata) if !metadata.is_file() || metadata.len().checked_add(begin).is_none() => {}
            Ok(metadata) => parts.push((begin, metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    parts.sort_unstable();
    Ok(parts)
}

fn read_once(directory: &Path, offset: u64, max_bytes: usize, ended: bool) -> io::Result<LogChunk> {
    let parts = parts(directory)?;
    let end = parts.last().map_or(0, |(begin, length)| begin + length);
    let mut position = offset;
    let mut text = String::new();
    let mut room = max_bytes;
    for (begin, length) in parts {
        if begin + length <= position || room == 0 {
            continue;
        }
        if begin > position {
            text.push_str(&format!("[… {} bytes left out …]\n", begin - position));
            position = begin;
        }
        let wanted = usize::try_from(begin + length - position)
            .unwrap_or(usize::MAX)
            .min(room);
        let mut bytes = vec![0; wanted];
        crate::directory::open(&part_path(directory, begin))?.read_exact_at(&mut bytes, position - begin)?;
        // A character that would be split belongs to the next page.
        if let Err(error) = std::str::from_utf8(&bytes)
            && error.error_len().is_none()
            && error.valid_up_to() > 0
        {
            bytes.truncate(error.valid_up_to());
            room = bytes.len();
        }
        text.push_str(&String::from_utf8_lossy(&bytes));
        position += bytes.len() as u64;
        room -= bytes.len();
    }
    Ok(LogChunk {
        text,
        next_offset: position,
        complete: ended && position >= end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(directory: &Path, chunk: usize) -> String {
        let mut text = String::new();
        let mut offset = 0;
        loop {
            let part = read(directory, offset, chunk, true).expect("readable");
            text.push_str(&part.text);
            offset = part.next_offset;
            if part.complete {
                return text;
            }
        }
    }

    #[test]
    fn a_short_log_is_kept_whole_and_read_in_chunks_of_any_size() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = LogWriter::new(directory.path(), 64 * 1024);
        for n in 0..100 {
            writer.line(&format!("zeile {n} äöü €"));
        }
        assert_eq!(writer.finish(), None);
        let whole = all(directory.path(), usize::MAX);
        assert_eq!(whole.lines().count(), 100);
        assert_eq!(whole.lines().nth(99), Some("zeile 99 äöü €"));
        assert_eq!(all(directory.path(), 17), whole);
    }

    #[test]
    fn head_and_tail_of_a_long_log_are_kept_and_the_gap_is_marked() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = LogWriter::new(directory.path(), 16 * 1024);
        let mut written = 0;
        for n in 0..10_000 {
            let line = format!("line {n}");
            written += line.len() as u64 + 1;
            writer.line(&line);
        }
        assert_eq!(writer.finish(), None);
        assert_eq!(
            end(directory.path()).expect("readable"),
            written,
            "offsets count left out bytes"
        );
        let kept: u64 = parts(directory.path())
            .expect("readable")
            .iter()
            .map(|(_, length)| length)
            .sum();
        assert!(kept <= 16 * 1024 && kept > 14 * 1024, "{kept}");
        let text = all(directory.path(), 999);
        assert!(text.starts_with("line 0\nline 1\n") && text.ends_with("line 9999\n"));
        let gap = text
            .lines()
            .find(|line| line.contains("left out"))
            .expect("a notice");
        assert_eq!(gap, format!("[… {} bytes left out …]", written - kept));
        let last = read(directory.path(), written - 10, 100, true).expect("readable");
        assert_eq!((last.text.as_str(), last.next_offset), ("line 9999\n", written));
    }

    #[test]
    fn a_line_over_the_limit_is_cut() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = LogWriter::new(directory.path(), 16 * 1024);
        writer.line(&"ä".repeat(5000));
        writer.line("after");
        assert_eq!(writer.finish(), None);
        let text = all(directory.path(), usize::MAX);
        assert!(text.lines().next().expect("a line").len() < 1024);
        assert!(text.ends_with("\nafter\n"));
    }

    #[test]
    fn a_log_that_grows_is_not_complete() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = LogWriter::new(directory.path(), 16 * 1024);
        writer.line("one");
        writer.flush();
        let chunk = read(directory.path(), 0, 100, false).expect("readable");
        assert_eq!((chunk.text.as_str(), chunk.complete), ("one\n", false));
        writer.line("two");
        assert_eq!(writer.finish(), None);
        let chunk = read(directory.path(), chunk.next_offset, 100, true).expect("readable");
        assert_eq!((chunk.text.as_str(), chunk.complete), ("two\n", true));
    }

    #[test]
    fn bytes_that_cannot_be_written_are_counted_and_noted() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut writer = LogWriter::new(&directory.path().join("gone"), 16 * 1024);
        writer.line("lost");
        writer.flush();
        fs::create_dir(directory.path().join("gone")).expect("a directory");
        writer.line("kept");
        assert_eq!(writer.finish(), None);
        let text = all(&directory.path().join("gone"), usize::MAX);
        assert!(
            text.starts_with("[… 5 bytes could not be written: ") && text.ends_with("\nkept\n"),
            "{text}"
        );
    }
}
