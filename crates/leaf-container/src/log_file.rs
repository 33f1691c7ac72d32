//! The console log written by a supervisor: a file, which is renamed to `log.1` when it is full.
//!
//! A cursor identifies the file by its inode and the position in it, so it stays valid when the file becomes `log.1`.

use std::fmt;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use leaf_core::command::LogText;
use leaf_core::decide::LogQuery;
use leaf_host::files;

use crate::ObserveError;

/// The identity of a file, independent of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Generation {
    inode: u64,
    /// The creation time in nanoseconds, since inode numbers are reused; 0 if the file system doesn't record it.
    born: u128,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cursor {
    generation: Generation,
    offset: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Generation { inode, born } = self.generation;
        write!(f, "{inode:x}-{born:x}-{:x}", self.offset)
    }
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-');
        let hex = |part: Option<&str>| {
            let part = part?;
            let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            u128::from_str_radix(part, 16).ok().filter(|_| plain)
        };
        let cursor = Self {
            generation: Generation {
                inode: u64::try_from(hex(parts.next())?).ok()?,
                born: hex(parts.next())?,
            },
            offset: u64::try_from(hex(parts.next())?).ok()?,
        };
        parts.next().is_none().then_some(cursor)
    }
}

/// An open file of the log.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    generation: Generation,
    /// The length when it was opened; it may grow in the meantime.
    length: u64,
}

/// Reads a page of a log.
pub(crate) fn read(path: &Path, query: &LogQuery, max_bytes: usize) -> Result<LogText, ObserveError> {
    let lines = usize::try_from(query.lines).unwrap_or(usize::MAX);
    let cursor = match &query.cursor {
        Some(text) => Some(Cursor::parse(text).ok_or_else(|| ObserveError::Cursor(text.clone()))?),
        None => None,
    };
    let logs = open(path)?;
    match cursor {
        None => last(logs, lines, max_bytes),
        Some(cursor) => following(logs, cursor, lines, max_bytes),
    }
}

/// Opens both files, older first.
fn open(path: &Path) -> Result<Vec<Log>, ObserveError> {
    let mut before = path.as_os_str().to_owned();
    before.push(".1");
    let before = PathBuf::from(before);
    loop {
        let (new, old) = (Log::open(path)?, Log::open(&before)?);
        match (&old, &new) {
            // It has just been renamed to `log.1`.
            (Some(old), Some(new)) if old.generation == new.generation => {}
            _ => return Ok(old.into_iter().chain(new).collect()),
        }
    }
}

impl Log {
    fn open(path: &Path) -> Result<Option<Self>, ObserveError> {
        let file = match files::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(ObserveError::read(path)(e)),
        };
        let meta = file.metadata().map_err(ObserveError::read(path))?;
        let born = meta.created().ok();
        let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Ok(Some(Self {
            path: path.to_owned(),
            generation: Generation {
                inode: meta.ino(),
                born: born.map_or(0, |born| born.as_nanos()),
            },
            length: meta.len(),
            file,
        }))
    }

    fn end(&self) -> Cursor {
        Cursor {
            generation: self.generation,
            offset: self.length,
        }
    }

    /// Returns the bytes between two positions.
    fn part(&mut self, from: u64, to: u64) -> Result<Vec<u8>, ObserveError> {
        let mut bytes = Vec::new();
        self.file
            .seek(SeekFrom::Start(from))
            .and_then(|_| (&mut self.file).take(to - from).read_to_end(&mut bytes))
            .map_err(ObserveError::read(&self.path))?;
        Ok(bytes)
    }
}

/// Returns the last lines.
fn last(mut logs: Vec<Log>, lines: usize, max_bytes: usize) -> Result<LogText, ObserveError> {
    let cursor = logs.last().map(|log| log.end().to_string());
    let mut bytes = Vec::new();
    let mut truncated = false;
    for log in logs.iter_mut().rev() {
        let room = (max_bytes - bytes.len()) as u64;
        let from = log.length.saturating_sub(room);
        let mut part = log.part(from, log.length)?;
        truncated = from > 0;
        part.append(&mut bytes);
        bytes = part;
        if truncated {
            break;
        }
    }
    if truncated {
        // An incomplete line is left out.
        let whole = line_ends(&bytes).next().unwrap_or(bytes.len());
        bytes.drain(..whole);
    }
    let starts = line_ends(bytes.strip_suffix(b"\n").unwrap_or(&bytes));
    let mut starts: Vec<_> = std::iter::once(0).chain(starts).collect();
    starts.reverse();
    let start = match lines.checked_sub(1) {
        None => bytes.len(),
        Some(before) => starts.get(before).copied().unwrap_or(0),
    };
    Ok(LogText {
        text: String::from_utf8_lossy(&bytes[start..]).into_owned(),
        truncated: truncated || start > 0,
        cursor,
    })
}

/// Returns the first lines after a cursor.
fn following(
    mut logs: Vec<Log>,
    cursor: Cursor,
    lines: usize,
    max_bytes: usize,
) -> Result<LogText, ObserveError> {
    let at = logs.iter().position(|log| log.generation == cursor.generation);
    let gone = at.is_none() && !logs.is_empty();
    let mut from = match at {
        Some(at) => {
            logs.drain(..at);
            cursor.offset
        }
        // Its file no longer exists: the present files follow it, and the part between is lost.
        None => 0,
    };
    let mut text = Vec::new();
    let mut end = cursor;
    for log in &mut logs {
        if from > log.length {
            return Err(ObserveError::Cursor(cursor.to_string()));
        }
        let room = (max_bytes - text.len()) as u64;
        let to = log.length.min(from.saturating_add(room));
        let part = log.part(from, to)?;
        let done = line_ends(&text).count();
        let wanted = match (lines - done).checked_sub(1) {
            None => 0,
            Some(last) => line_ends(&part).nth(last).unwrap_or(part.len()),
        };
        // A line that is incomplete only because of the limit comes with the next page.
        let whole = match line_ends(&part[..wanted]).last() {
            Some(whole) if wanted == part.len() && to < log.length => whole,
            None if wanted == part.len() && to < log.length && !text.is_empty() => 0,
            _ => wanted,
        };
        text.extend_from_slice(&part[..whole]);
        end = Cursor {
            generation: log.generation,
            offset: from + whole as u64,
        };
        if end.offset < log.length {
            break;
        }
        from = 0;
    }
    Ok(LogText {
        text: String::from_utf8_lossy(&text).into_owned(),
        truncated: gone,
        cursor: Some(end.to_string()),
    })
}

/// Returns the position after each line.
fn line_ends(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    ends.map(|(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use leaf_core::id::ContainerName;

    use super::*;

    fn query(lines: u32, cursor: Option<String>) -> LogQuery {
        LogQuery {
            name: ContainerName::new("web").expect("a name"),
            lines,
            since: None,
            cursor,
        }
    }

    fn last_of(log: &str, before: Option<&str>, lines: u32, max_bytes: usize) -> (String, bool) {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("log");
        if let Some(before) = before {
            std::fs::write(place.path().join("log.1"), before).expect("a log");
        }
        std::fs::write(&path, log).expect("a log");
        let log = read(&path, &query(lines, None), max_bytes).expect("a text");
        (log.text, log.truncated)
    }

    #[test]
    fn the_last_lines_are_complete_and_from_both_files() {
        assert_eq!(last_of("a\nb\nc\n", None, 2, 100), ("b\nc\n".into(), true));
        assert_eq!(last_of("a\nb\nc", None, 2, 100), ("b\nc".into(), true));
        assert_eq!(last_of("a\nb\nc\n", None, 3, 100), ("a\nb\nc\n".into(), false));
        assert_eq!(last_of("a\nb\nc\n", None, 0, 100), (String::new(), true));
        assert_eq!(
            last_of("c\nd\n", Some("a\nb\n"), 3, 100),
            ("b\nc\nd\n".into(), true)
        );
        assert_eq!(
            last_of("c\nd\n", Some("aaaa\nb\n"), 9, 7),
            ("b\nc\nd\n".into(), true)
        );
        assert_eq!(last_of("cccccc\n", None, 9, 3), (String::new(), true));
        assert_eq!(last_of("", None, 9, 100), (String::new(), false));
        assert_eq!(last_of("\n\n\n", None, 2, 100), ("\n\n".into(), true));
    }

    struct Follower {
        path: PathBuf,
        cursor: Option<String>,
    }

    impl Follower {
        fn next(&mut self, lines: u32, max_bytes: usize) -> (String, bool) {
            let log = read(&self.path, &query(lines, self.cursor.clone()), max_bytes).expect("a text");
            self.cursor = log.cursor;
            (log.text, log.truncated)
        }
    }

    #[test]
    fn a_cursor_continues_line_by_line_and_across_a_rotation() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("log");
        let write = |text: &str| {
            use std::io::Write as _;
            let mut options = std::fs::OpenOptions::new();
            let mut file = options.create(true).append(true).open(&path).expect("a log");
            file.write_all(text.as_bytes()).expect("written");
        };
        let rotate = || std::fs::rename(&path, place.path().join("log.1")).expect("renamed");
        let mut follower = Follower {
            path: path.clone(),
            cursor: None,
        };
        assert_eq!(follower.next(5, 100), (String::new(), false));
        assert_eq!(follower.cursor, None);
        write("a\nb\n");
        assert_eq!(follower.next(1, 100), ("b\n".into(), true));
        assert_eq!(follower.next(5, 100), (String::new(), false));
        write("c\nd\ne\n");
        assert_eq!(follower.next(2, 100), ("c\nd\n".into(), false));
        assert_eq!(follower.next(0, 100), (String::new(), false));
        write("f\n");
        rotate();
        write("g\nh");
        assert_eq!(follower.next(3, 100), ("e\nf\ng\n".into(), false));
        assert_eq!(follower.next(3, 100), ("h".into(), false));
        write("hh\nlong line\n");
        // Lines beyond the limit come with the next page; a line is cut only if not even one fits.
        assert_eq!(follower.next(9, 6), ("hh\n".into(), false));
        assert_eq!(follower.next(9, 6), ("long l".into(), false));
        assert_eq!(follower.next(9, 6), ("ine\n".into(), false));
        write("i\n");
        rotate();
        write("j\n");
        rotate();
        write("k\n");
        // The file with the `i` is gone.
        assert_eq!(follower.next(9, 100), ("j\nk\n".into(), true));
        assert_eq!(follower.next(9, 100), (String::new(), false));
        // Just between two files.
        rotate();
        assert_eq!(follower.next(9, 100), (String::new(), false));
        write("l\n");
        assert_eq!(follower.next(9, 100), ("l\n".into(), false));
    }

    #[test]
    fn invalid_cursors_are_refused() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("log");
        std::fs::write(&path, "a\n").expect("a log");
        for garbage in [
            "",
            "-",
            "--",
            "1-2",
            "1-2-3-4",
            "x-1-1",
            "+1-1-1",
            " 1-1-1",
            "--since=1-1",
            "1-1--1",
            "s=1;i=2",
            "1-1-fffffffffffffffff",
        ] {
            let error = read(&path, &query(5, Some(garbage.into())), 100).expect_err("no cursor");
            assert!(matches!(error, ObserveError::Cursor(_)), "{garbage:?}: {error}");
        }
        // After the end of the file that it identifies.
        let end = Log::open(&path).expect("readable").expect("there").end();
        let behind = Cursor {
            offset: end.offset + 1,
            ..end
        };
        let error = read(&path, &query(5, Some(behind.to_string())), 100).expect_err("no place");
        assert!(matches!(error, ObserveError::Cursor(_)), "{error}");
        assert_eq!(Cursor::parse(&end.to_string()), Some(end));
    }
}
