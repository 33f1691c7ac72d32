//! A container's console log: bounded, in two files, with the last lines in memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};
use crate::files::Directory;

/// The maximum size of each file, in bytes.
const MAX_FILE_BYTES: u64 = 4 << 20;
/// The number of last lines in memory, and their maximum length in bytes.
const TAIL_LINES: usize = 20;
const TAIL_LINE_BYTES: usize = 500;

/// The writer of a container's console log.
#[derive(Debug)]
pub(crate) struct Console {
    directory: Directory,
    file: File,
    written: u64,
    max_file_bytes: u64,
    tail: VecDeque<Vec<u8>>,
    line: Vec<u8>,
}

impl Console {
    /// Opens the log in a container's directory, for appending.
    pub(crate) fn open(directory: Directory, group: Option<u32>) -> Result<Self> {
        let file = open(&directory)?;
        if let Some(group) = group {
            rustix::fs::fchown(&file, None, Some(rustix::fs::Gid::from_raw(group)))
                .map_err(Error::io("set the group of the console log"))?;
        }
        let written = file
            .metadata()
            .map_err(Error::io("read the metadata of the console log"))?
            .len();
        Ok(Self {
            directory,
            file,
            written,
            max_file_bytes: MAX_FILE_BYTES,
            tail: VecDeque::new(),
            line: Vec::new(),
        })
    }

    /// Writes console output. CR LF becomes LF.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let plain: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != b'\r').collect();
        for &byte in &plain {
            match byte {
                b'\n' => self.end_line(),
                _ if self.line.len() < TAIL_LINE_BYTES => self.line.push(byte),
                _ => {}
            }
        }
        for chunk in plain.chunks(64 << 10) {
            if self.written + chunk.len() as u64 > self.max_file_bytes {
                self.rotate()?;
            }
            self.file
                .write_all(chunk)
                .map_err(Error::io("write the console log"))?;
            self.written += chunk.len() as u64;
        }
        Ok(())
    }

    /// Returns the last lines since the log was opened.
    pub(crate) fn tail(&self) -> String {
        let lines = self
            .tail
            .iter()
            .chain((!self.line.is_empty()).then_some(&self.line));
        let lines: Vec<_> = lines.map(|line| String::from_utf8_lossy(line)).collect();
        lines.join("\n")
    }

    fn end_line(&mut self) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(std::mem::take(&mut self.line));
    }

    fn rotate(&mut self) -> Result<()> {
        self.directory.rename("log", "log.1")?;
        self.file = open(&self.directory)?;
        self.written = 0;
        Ok(())
    }
}

fn open(directory: &Directory) -> Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = || Error::io(format!("open {}/log", directory.path().display()));
    let mode = Mode::from_raw_mode(crate::container::directories::SHOWN);
    let log = rustix::fs::openat(directory.as_fd(), "log", flags, mode).map_err(failed())?;
    directory.show(&log).map_err(failed())?;
    Ok(File::from(log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_the_last_lines_are_in_memory() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = Directory::make_root(place.path(), 0o755).expect("a directory");
        let mut console = Console::open(directory, None).expect("a log");
        console.max_file_bytes = 1000;
        for n in 0..500 {
            console
                .write(format!("line {n}\r\n").as_bytes())
                .expect("written");
        }
        console.write(b"and no end").expect("written");
        let log = std::fs::read_to_string(place.path().join("log")).expect("a log");
        let before = std::fs::read_to_string(place.path().join("log.1")).expect("the log before");
        assert!(
            log.len() <= 1000 && before.len() <= 1000,
            "{} {}",
            log.len(),
            before.len()
        );
        assert!((before + &log).ends_with("line 498\nline 499\nand no end"));
        let tail = console.tail();
        assert!(
            tail.starts_with("line 480\n") && tail.ends_with("line 499\nand no end"),
            "{tail}"
        );
    }
}
