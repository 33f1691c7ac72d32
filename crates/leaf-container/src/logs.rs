//! The end of a container's console log.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use leaf_core::command::LogText;
use leaf_core::decide::LogQuery;

use crate::{Containers, LookError};

impl Containers {
    /// Returns the last lines of a container's console: at most so many, and at most so many bytes. Nothing is an
    /// empty text.
    ///
    /// # Errors
    /// [`LookError`] when a log that is there can't be read.
    pub fn logs(&self, query: &LogQuery, max_bytes: usize) -> Result<LogText, LookError> {
        let lines = usize::try_from(query.lines).unwrap_or(usize::MAX);
        let log = self.paths.log(&query.name);
        let mut before = log.clone().into_os_string();
        before.push(".1");
        let (mut bytes, mut truncated) = tail(&log, max_bytes)?;
        if !truncated && bytes.len() < max_bytes {
            let (mut older, cut) = tail(&PathBuf::from(before), max_bytes - bytes.len())?;
            older.append(&mut bytes);
            (bytes, truncated) = (older, cut);
        }
        if truncated {
            // Half a line is none.
            let whole = bytes
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(bytes.len(), |end| end + 1);
            bytes.drain(..whole);
        }
        let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let ends = || body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n');
        let start = match lines.checked_sub(1) {
            None => bytes.len(),
            Some(before) => ends().nth(before).map_or(0, |(end, _)| end + 1),
        };
        Ok(LogText {
            cursor: None,
            text: String::from_utf8_lossy(&bytes[start..]).into_owned(),
            truncated: truncated || start > 0,
        })
    }
}

/// Returns the last bytes of a file, and whether there are more before them.
fn tail(path: &Path, max_bytes: usize) -> Result<(Vec<u8>, bool), LookError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((Vec::new(), false)),
        Err(e) => return Err(LookError::read(path)(e)),
    };
    let mut read = || -> std::io::Result<(Vec<u8>, bool)> {
        let length = file.metadata()?.len();
        let start = length.saturating_sub(max_bytes as u64);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        // By the length of that moment: it grows meanwhile.
        (&mut file).take(length - start).read_to_end(&mut bytes)?;
        Ok((bytes, start > 0))
    };
    read().map_err(LookError::read(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use leaf_core::host_op::HostPaths;
    use leaf_core::id::LeafName;

    fn logs(log: &str, before: Option<&str>, lines: usize, max_bytes: usize) -> LogText {
        let place = tempfile::tempdir().expect("a folder");
        let leaf = LeafName::new("edge").expect("a leaf");
        let paths = HostPaths {
            state: place.path().to_owned(),
            ..HostPaths::new(&leaf)
        };
        let name = ContainerName::new("web").expect("a name");
        std::fs::create_dir(place.path().join("web")).expect("a folder");
        std::fs::write(paths.log(&name), log).expect("a log");
        if let Some(before) = before {
            std::fs::write(place.path().join("web/log.1"), before).expect("a log");
        }
        Containers::new(leaf, paths)
            .logs(&name, lines, max_bytes)
            .expect("a text")
    }

    #[test]
    fn the_last_lines_come_whole_and_from_both_files() {
        let text = |log: LogText| (log.text, log.truncated);
        assert_eq!(text(logs("a\nb\nc\n", None, 2, 100)), ("b\nc\n".into(), true));
        assert_eq!(text(logs("a\nb\nc", None, 2, 100)), ("b\nc".into(), true));
        assert_eq!(text(logs("a\nb\nc\n", None, 3, 100)), ("a\nb\nc\n".into(), false));
        assert_eq!(text(logs("a\nb\nc\n", None, 0, 100)), (String::new(), true));
        assert_eq!(
            text(logs("c\nd\n", Some("a\nb\n"), 3, 100)),
            ("b\nc\nd\n".into(), true)
        );
        assert_eq!(
            text(logs("c\nd\n", Some("aaaa\nb\n"), 9, 7)),
            ("b\nc\nd\n".into(), true)
        );
        assert_eq!(text(logs("cccccc\n", None, 9, 3)), (String::new(), true));
        assert_eq!(text(logs("", None, 9, 100)), (String::new(), false));
        assert_eq!(text(logs("\n\n\n", None, 2, 100)), ("\n\n".into(), true));
    }
}
