//! Divides what a server sends into its messages.

use std::io;

use memchr::memchr;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// The longest line that a server may send, in bytes: an `INFO` that lists many servers.
const LONGEST_LINE: usize = 1 << 20;
/// The longest message that a server may send, in bytes: the most that `max_payload` can be set to, and its headers.
const LONGEST_MESSAGE: usize = 128 << 20;
/// How many bytes are read at once, unless [`Frames::read_at_once`] says otherwise.
const AT_ONCE: usize = 32 * 1024;
/// How many times the room that is needed is kept after a large message.
const KEPT: usize = 8;

/// What a server sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// `INFO`: the server's information, as JSON after the first blank.
    Info,
    /// `MSG` or `HMSG`, with its headers and payload; `LMSG` from a leaf-node port.
    Message,
    /// Another line: `PING`, `PONG`, `+OK`, `-ERR`.
    Line,
}

/// Reads a server's messages.
pub(crate) struct Frames<R> {
    reader: R,
    /// What was read, from `start` to `end`; the rest is room.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    at_once: usize,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            at_once: AT_ONCE,
        }
    }

    /// Sets how many bytes are read at once.
    pub(crate) fn read_at_once(&mut self, bytes: usize) {
        self.at_once = bytes;
    }

    /// Whether bytes were read that no frame has returned yet.
    pub(crate) fn has_more(&self) -> bool {
        self.start < self.end
    }

    pub(crate) fn into_inner(self) -> R {
        self.reader
    }

    /// Appends the bytes of the next frame, and returns its kind; `None` at the end of the connection. No bytes are lost where
    /// it is dropped before its end.
    pub(crate) async fn next(&mut self, into: &mut Vec<u8>) -> io::Result<Option<Frame>> {
        loop {
            if let Some((frame, bytes)) = self.peek()? {
                let length = bytes.len();
                into.extend_from_slice(bytes);
                self.skip(length);
                return Ok(Some(frame));
            }
            if !self.read_more().await? {
                return Ok(None);
            }
        }
    }

    /// Returns the next frame if all of it was read. [`Self::skip`] goes on to the one behind it.
    pub(crate) fn peek(&self) -> io::Result<Option<(Frame, &[u8])>> {
        let read = &self.buffer[self.start..self.end];
        Ok(match parse(read)? {
            Parsed::Whole(frame, length) => Some((frame, &read[..length])),
            Parsed::Needs(_) => None,
        })
    }

    /// Skips these bytes of what was read.
    pub(crate) fn skip(&mut self, bytes: usize) {
        self.start = self.end.min(self.start + bytes);
    }

    /// Reads more bytes, once [`Self::peek`] has none; returns `false` at the end of the connection.
    pub(crate) async fn read_more(&mut self) -> io::Result<bool> {
        let needed = match parse(&self.buffer[self.start..self.end])? {
            Parsed::Needs(room) => room,
            Parsed::Whole(_, length) => length + 1,
        };
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let room = needed.max(self.at_once);
        if self.buffer.len() < room {
            self.buffer.resize(room, 0);
        } else if self.buffer.len() > KEPT * room {
            self.buffer.truncate(room);
            self.buffer.shrink_to_fit();
        }
        let read = self.reader.read(&mut self.buffer[self.end..]).await?;
        if read == 0 && self.end > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.end += read;
        Ok(read > 0)
    }
}

/// The beginning of what a server sent.
enum Parsed {
    /// A frame of this length.
    Whole(Frame, usize),
    /// A frame whose end is not there yet, and the room to read it in, in bytes.
    Needs(usize),
}

fn parse(bytes: &[u8]) -> io::Result<Parsed> {
    let Some(end_of_line) = memchr(b'\n', bytes) else {
        return if bytes.len() < LONGEST_LINE {
            Ok(Parsed::Needs(2 * bytes.len() + 1))
        } else {
            Err(invalid("the server sent a line that is too long"))
        };
    };
    let line = &bytes[..=end_of_line];
    let verb = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
    if verb.eq_ignore_ascii_case(b"INFO") {
        return Ok(Parsed::Whole(Frame::Info, line.len()));
    }
    if ![&b"MSG"[..], b"HMSG", b"LMSG"]
        .iter()
        .any(|message| verb.eq_ignore_ascii_case(message))
    {
        return Ok(Parsed::Whole(Frame::Line, line.len()));
    }
    let size = line
        .trim_ascii_end()
        .rsplit(u8::is_ascii_whitespace)
        .next()
        .and_then(|size| std::str::from_utf8(size).ok()?.parse::<usize>().ok())
        .filter(|size| *size <= LONGEST_MESSAGE)
        .ok_or_else(|| invalid("the server sent a message without a valid size"))?;
    // The payload ends with a line break, which its size does not count.
    let length = line.len() + size + 2;
    Ok(if length <= bytes.len() {
        Parsed::Whole(Frame::Message, length)
    } else {
        Parsed::Needs(length)
    })
}

pub(crate) fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn frames(sent: &[u8]) -> io::Result<Vec<(Frame, String)>> {
        let mut frames = Frames::new(sent);
        let mut found = Vec::new();
        loop {
            let mut bytes = Vec::new();
            match frames.next(&mut bytes).await? {
                Some(frame) => found.push((frame, String::from_utf8_lossy(&bytes).into_owned())),
                None => return Ok(found),
            }
        }
    }

    #[tokio::test]
    async fn a_payload_is_no_line_whatever_it_says() {
        let sent = b"INFO {\"a\":1}\r\nPING\r\nMSG s 1 12\r\nINFO {}\r\nabc\r\nHMSG s 1 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n\
            LMSG s | q 6\r\nPING\r\n\r\n-ERR 'x'\r\n";
        let found = frames(sent).await.expect("whole frames");
        let kinds: Vec<Frame> = found.iter().map(|(frame, _)| *frame).collect();
        assert_eq!(
            kinds,
            [
                Frame::Info,
                Frame::Line,
                Frame::Message,
                Frame::Message,
                Frame::Message,
                Frame::Line
            ]
        );
        let all: String = found.into_iter().map(|(_, text)| text).collect();
        assert_eq!(all.as_bytes(), sent);
    }

    #[tokio::test]
    async fn what_is_cut_off_or_has_no_size_is_an_error() {
        for sent in [
            &b"PIN"[..],
            b"MSG s 1 5\r\nab",
            b"MSG s 1 x\r\n",
            b"MSG s 1 999999999999\r\n",
        ] {
            assert!(frames(sent).await.is_err(), "{sent:?}");
        }
    }
}
