//! Reads the systemd journal of a container's unit by `journalctl`, which knows the host's journal files.
//!
//! Its command line consists only of a unit with a validated name, numbers, a time in seconds, and a cursor in the form
//! that journals return.

use std::process::Stdio;
use std::time::Duration;

use leaf_core::command::LogText;
use leaf_core::decide::LogQuery;
use leaf_core::runtime::Runtime;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::{ObserveError, block_on};

const PROGRAM: &str = "journalctl";
/// The time limit of a run.
const LIMIT: Duration = Duration::from_secs(20);
/// The maximum length of an entry as printed by journalctl, which needs up to four bytes per byte.
const MAX_ENTRY_BYTES: u64 = 8 << 20;

/// An entry in the format `--output=json`: systemd.journal-fields(7), and <https://systemd.io/JOURNAL_EXPORT_FORMATS/>.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "__CURSOR")]
    cursor: String,
    /// The time in microseconds since 1970, as text.
    #[serde(rename = "__REALTIME_TIMESTAMP", default)]
    at: String,
    #[serde(rename = "MESSAGE", default)]
    message: Value,
}

/// Reads a page of a container's journal.
pub(crate) fn read(query: &LogQuery, max_bytes: usize) -> Result<LogText, ObserveError> {
    if let Some(cursor) = &query.cursor
        && !is_cursor(cursor)
    {
        return Err(ObserveError::Cursor(cursor.clone()));
    }
    block_on(async {
        tokio::time::timeout(LIMIT, run(query, max_bytes))
            .await
            .unwrap_or(Err(ObserveError::Slow {
                program: PROGRAM,
                limit: LIMIT,
            }))
    })
}

/// Returns whether a text has the form of a journal's cursor: six hexadecimal numbers, each with its letter.
fn is_cursor(text: &str) -> bool {
    let mut parts = text.split(';');
    let all = ["s", "i", "b", "m", "t", "x"].iter().all(|letter| {
        let part = parts.next().and_then(|part| part.split_once('='));
        part.is_some_and(|(found, number)| {
            found == *letter
                && (1..=32).contains(&number.len())
                && number.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
    });
    all && parts.next().is_none()
}

/// Returns the arguments for a query.
fn arguments(query: &LogQuery) -> Vec<String> {
    let fixed = [
        "--system",
        "--quiet",
        "--no-pager",
        "--all",
        "--output=json",
        "--output-fields=MESSAGE",
    ];
    let mut arguments: Vec<_> = fixed.map(str::to_owned).into();
    arguments.push(format!("--unit={}", Runtime::unit(&query.name)));
    match &query.cursor {
        Some(cursor) => arguments.push(format!("--after-cursor={cursor}")),
        None => {
            // Newest first, and one more than requested, which shows whether there are earlier lines.
            arguments.push("--reverse".to_owned());
            arguments.push(format!("--lines={}", query.lines.saturating_add(1)));
            if let Some(micros) = since(query) {
                arguments.push(format!(
                    "--since=@{}.{:06}",
                    micros / 1_000_000,
                    micros % 1_000_000
                ));
            }
        }
    }
    arguments
}

/// Returns the start time, in microseconds since 1970.
fn since(query: &LogQuery) -> Option<u64> {
    let micros = query.since?.as_microsecond();
    Some(u64::try_from(micros).unwrap_or(0))
}

async fn run(query: &LogQuery, max_bytes: usize) -> Result<LogText, ObserveError> {
    let failed = |source| ObserveError::Program {
        program: PROGRAM,
        source,
    };
    let mut child = Command::new(PROGRAM)
        .args(arguments(query))
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let mut output = BufReader::new(child.stdout.take().expect("it was piped"));
    let mut reader = Reader::new(query, max_bytes);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut output)
            .take(MAX_ENTRY_BYTES)
            .read_until(b'\n', &mut line)
            .await
            .map_err(failed)?;
        if length == 0 {
            check_end(&mut child).await?;
            break;
        }
        let entry: Entry = serde_json::from_slice(&line).map_err(|error| ObserveError::Journal {
            program: PROGRAM,
            said: format!("an entry is not as documented: {error}"),
        })?;
        if !reader.take(entry) {
            // Neither the rest of the output nor the exit code is needed.
            child.kill().await.map_err(failed)?;
            break;
        }
    }
    Ok(reader.end())
}

async fn check_end(child: &mut Child) -> Result<(), ObserveError> {
    let mut said = Vec::new();
    if let Some(errors) = child.stderr.take() {
        // Its last message counts; a failed read counts as no message.
        let _ = errors.take(4096).read_to_end(&mut said).await;
    }
    let status = child.wait().await.map_err(|source| ObserveError::Program {
        program: PROGRAM,
        source,
    })?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    Err(ObserveError::Journal {
        program: PROGRAM,
        said: format!("{status}: {}", said.trim()),
    })
}

/// Collects entries until it has enough.
#[derive(Debug)]
struct Reader {
    reverse: bool,
    since: u64,
    lines: usize,
    room: usize,
    texts: Vec<String>,
    cursor: Option<String>,
    truncated: bool,
}

impl Reader {
    fn new(query: &LogQuery, max_bytes: usize) -> Self {
        Self {
            reverse: query.cursor.is_none(),
            since: since(query).unwrap_or(0),
            lines: usize::try_from(query.lines).unwrap_or(usize::MAX),
            room: max_bytes,
            texts: Vec::new(),
            cursor: query.cursor.clone(),
            truncated: false,
        }
    }

    /// Returns whether more entries are needed.
    fn take(&mut self, entry: Entry) -> bool {
        // The next page begins after the newest entry, whether there is room for it or not.
        if self.reverse && self.cursor.is_none() {
            self.cursor = Some(entry.cursor.clone());
        }
        if entry.at.parse::<u64>().is_ok_and(|at| at < self.since) {
            if !self.reverse {
                self.cursor = Some(entry.cursor);
            }
            return true;
        }
        if self.texts.len() >= self.lines {
            self.truncated |= self.reverse;
            return false;
        }
        let mut text = text_of(&entry.message);
        text.push('\n');
        if text.len() > self.room {
            if !self.texts.is_empty() {
                self.truncated |= self.reverse;
                return false;
            }
            // Not even one entry fits: returning its beginning avoids an endless sequence of empty pages.
            text.truncate(text.floor_char_boundary(self.room));
            self.truncated = true;
        }
        self.room -= text.len();
        self.texts.push(text);
        if !self.reverse {
            self.cursor = Some(entry.cursor);
        }
        true
    }

    fn end(mut self) -> LogText {
        if self.reverse {
            self.texts.reverse();
        }
        LogText {
            text: self.texts.concat(),
            truncated: self.truncated,
            cursor: self.cursor,
        }
    }
}

/// Returns the text of a field: a text, or its bytes if it is not a text, or a list if there are several of its name.
fn text_of(message: &Value) -> String {
    match message {
        Value::String(text) => text.replace('\r', ""),
        Value::Array(parts) if parts.iter().all(Value::is_number) => {
            let bytes = parts.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok());
            let bytes: Vec<_> = bytes.filter(|byte| *byte != b'\r').collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        Value::Array(parts) => parts.iter().map(text_of).collect::<Vec<_>>().join("\n"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use leaf_core::id::ContainerName;

    use super::*;

    const CURSOR: &str = "s=2a9b36d1e6a84b0fa7b0ff6ed2b4d3c1;i=1f;b=9d1f0f6c9ad54c1c8a4ce1a2b3c4d5e6;m=4b1c9;t=5f0e1d2c3b4a5;x=8f1e2d3c4b5a6978";

    fn query(lines: u32, since: Option<Timestamp>, cursor: Option<&str>) -> LogQuery {
        LogQuery {
            name: ContainerName::new("web").expect("a name"),
            lines,
            since,
            cursor: cursor.map(str::to_owned),
        }
    }

    #[test]
    fn only_cursors_of_journals_are_accepted() {
        assert!(is_cursor(CURSOR));
        let longer = format!("{CURSOR};y=1");
        let flag = format!("{CURSOR} --directory=/");
        for garbage in [
            "",
            "--help",
            "s=1",
            &CURSOR[..20],
            &longer,
            &flag,
            &CURSOR.replace("i=", "j="),
        ] {
            assert!(!is_cursor(garbage), "{garbage:?}");
            let error = read(&query(5, None, Some(garbage)), 100).expect_err("no cursor");
            assert!(matches!(error, ObserveError::Cursor(_)), "{garbage:?}: {error}");
        }
    }

    #[test]
    fn a_query_becomes_fixed_arguments() {
        let since = Timestamp::from_microsecond(1_700_000_000_000_042).expect("a time");
        let arguments = |query| arguments(&query)[6..].join(" ");
        assert_eq!(
            arguments(query(5, Some(since), None)),
            "--unit=container@web.service --reverse --lines=6 --since=@1700000000.000042"
        );
        assert_eq!(
            arguments(query(u32::MAX, Timestamp::from_second(-5).ok(), None)),
            format!(
                "--unit=container@web.service --reverse --lines={} --since=@0.000000",
                u32::MAX
            )
        );
        assert_eq!(
            arguments(query(5, Some(since), Some(CURSOR))),
            format!("--unit=container@web.service --after-cursor={CURSOR}")
        );
    }

    fn entry(number: u64, message: &str) -> Entry {
        let text =
            format!(r#"{{"__CURSOR":"c{number}","__REALTIME_TIMESTAMP":"{number}","MESSAGE":{message}}}"#);
        serde_json::from_str(&text).expect("an entry")
    }

    fn read_all(reader: &mut Reader, numbers: &[u64]) -> usize {
        let mut taken = numbers.iter().take_while(|number| {
            let message = format!("\"line {number}\"");
            reader.take(entry(**number, &message))
        });
        taken.by_ref().count()
    }

    #[test]
    fn the_last_lines_are_in_order_and_the_next_page_begins_after_the_newest() {
        let mut reader = Reader::new(&query(2, None, None), 100);
        read_all(&mut reader, &[9, 8, 7]);
        let log = reader.end();
        assert_eq!(log.text, "line 8\nline 9\n");
        assert_eq!((log.truncated, log.cursor.as_deref()), (true, Some("c9")));
        // No line is requested, only the position; there are none.
        let mut reader = Reader::new(&query(0, None, None), 100);
        read_all(&mut reader, &[9]);
        let log = reader.end();
        assert_eq!(
            (log.text.as_str(), log.truncated, log.cursor.as_deref()),
            ("", true, Some("c9"))
        );
        let log = Reader::new(&query(2, None, None), 100).end();
        assert_eq!((log.text.as_str(), log.truncated, log.cursor), ("", false, None));
    }

    #[test]
    fn a_page_after_a_cursor_is_cut_at_the_limit_and_continued_there() {
        let mut reader = Reader::new(&query(9, None, Some(CURSOR)), 15);
        assert_eq!(read_all(&mut reader, &[1, 2, 3]), 2);
        let log = reader.end();
        assert_eq!(log.text, "line 1\nline 2\n");
        assert_eq!((log.truncated, log.cursor.as_deref()), (false, Some("c2")));
        let log = Reader::new(&query(9, None, Some(CURSOR)), 15).end();
        assert_eq!(log.cursor.as_deref(), Some(CURSOR));
        // A line that never fits is cut, so that paging makes progress.
        let mut reader = Reader::new(&query(9, None, Some(CURSOR)), 4);
        read_all(&mut reader, &[1, 2]);
        let log = reader.end();
        assert_eq!((log.text.as_str(), log.cursor.as_deref()), ("line", Some("c1")));
        // Entries older than requested are skipped.
        let since = Timestamp::from_microsecond(2).expect("a time");
        let mut reader = Reader::new(&query(9, Some(since), Some(CURSOR)), 100);
        read_all(&mut reader, &[1, 2, 3]);
        assert_eq!(reader.end().text, "line 2\nline 3\n");
    }

    #[test]
    fn a_message_may_be_text_bytes_or_several() {
        assert_eq!(text_of(&entry(1, r#""a\rb""#).message), "ab");
        assert_eq!(text_of(&entry(1, "[104,105,27,255]").message), "hi\u{1b}\u{fffd}");
        assert_eq!(text_of(&entry(1, r#"["a",[98]]"#).message), "a\nb");
        assert_eq!(text_of(&entry(1, "null").message), "");
        assert_eq!(text_of(&entry(1, "[]").message), "");
    }
}
