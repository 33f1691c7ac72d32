//! Divides what a server sends into its messages.

use std::io;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};

/// The longest line that a server may send, in bytes: an `INFO` that lists many servers.
const LONGEST_LINE: usize = 1 << 20;
/// The longest message that a server may send, in bytes: the most that `max_payload` can be set to, and its headers.
const LONGEST_MESSAGE: usize = 128 << 20;

/// What a server sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    /// `INFO`: the server's information, as JSON after the first blank.
    Info,
    /// `MSG` or `HMSG`, with its headers and payload.
    Message,
    /// Another line: `PING`, `PONG`, `+OK`, `-ERR`.
    Line,
}

/// Reads a server's messages.
pub(crate) struct Frames<R> {
    reader: BufReader<R>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self {
            reader: BufReader::with_capacity(32 * 1024, reader),
        }
    }

    /// Whether bytes were read that no frame has returned yet.
    pub(crate) fn has_more(&self) -> bool {
        !self.reader.buffer().is_empty()
    }

    pub(crate) fn into_inner(self) -> R {
        self.reader.into_inner()
    }

    /// Appends the bytes of the next frame, and returns its kind; `None` at the end of the connection.
    pub(crate) async fn next(&mut self, into: &mut Vec<u8>) -> io::Result<Option<Frame>> {
        let start = into.len();
        let limit = LONGEST_LINE as u64;
        let read = (&mut self.reader).take(limit).read_until(b'\n', into).await?;
        if read == 0 {
            return Ok(None);
        }
        let line = &into[start..];
        if line.last() != Some(&b'\n') {
            return Err(if read < LONGEST_LINE {
                io::ErrorKind::UnexpectedEof.into()
            } else {
                invalid("the server sent a line that is too long")
            });
        }
        let verb = line.split(u8::is_ascii_whitespace).next().unwrap_or_default();
        if verb.eq_ignore_ascii_case(b"INFO") {
            return Ok(Some(Frame::Info));
        }
        if !(verb.eq_ignore_ascii_case(b"MSG") || verb.eq_ignore_ascii_case(b"HMSG")) {
            return Ok(Some(Frame::Line));
        }
        let size = line
            .trim_ascii_end()
            .rsplit(u8::is_ascii_whitespace)
            .next()
            .and_then(|size| std::str::from_utf8(size).ok()?.parse::<usize>().ok())
            .filter(|size| *size <= LONGEST_MESSAGE)
            .ok_or_else(|| invalid("the server sent a message without a valid size"))?;
        let body = into.len();
        // The payload ends with a line break, which its size does not count.
        into.resize(body + size + 2, 0);
        self.reader.read_exact(&mut into[body..]).await?;
        Ok(Some(Frame::Message))
    }
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
        let sent = b"INFO {\"a\":1}\r\nPING\r\nMSG s 1 12\r\nINFO {}\r\nabc\r\nHMSG s 1 r 12 14\r\nNATS/1.0\r\n\r\nhi\r\n-ERR 'x'\r\n";
        let found = frames(sent).await.expect("whole frames");
        let kinds: Vec<Frame> = found.iter().map(|(frame, _)| *frame).collect();
        assert_eq!(
            kinds,
            [
                Frame::Info,
                Frame::Line,
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
