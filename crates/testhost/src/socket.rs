//! Lines of JSON over a unix socket, as used by QEMU's machine protocol and its guest agent.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// A connection that sends and receives one JSON value per line.
#[derive(Debug)]
pub(crate) struct JsonSocket {
    stream: UnixStream,
    read: Vec<u8>,
}

impl JsonSocket {
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("can't connect to {}", path.display()))?;
        Ok(Self {
            stream,
            read: Vec::new(),
        })
    }

    /// Sends `before`, a value and the end of its line.
    pub(crate) fn send(&mut self, before: &[u8], value: &Value) -> Result<()> {
        let mut bytes = before.to_vec();
        serde_json::to_writer(&mut bytes, value).context("can't serialize a JSON value")?;
        bytes.push(b'\n');
        self.stream
            .write_all(&bytes)
            .context("can't write to the machine")
    }

    /// Returns the next value; `None` if the deadline comes first. Invalid JSON is skipped.
    pub(crate) fn receive(&mut self, deadline: Instant) -> Result<Option<Value>> {
        loop {
            while let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                // The guest agent marks the answer to a sync with this byte.
                let start = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
                if let Ok(value) = serde_json::from_slice(&line[start..]) {
                    return Ok(Some(value));
                }
            }
            if !self.fill(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Returns whether bytes arrived before the deadline.
    fn fill(&mut self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        self.stream
            .set_read_timeout(Some(left.max(Duration::from_millis(1))))
            .context("can't set a timeout")?;
        let mut bytes = [0; 65536];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("the machine has ended"),
            Ok(count) => {
                self.read.extend_from_slice(&bytes[..count]);
                Ok(true)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(true),
            Err(error) => Err(error).context("can't read from the machine"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_line_by_line_and_invalid_ones_skipped() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut socket = JsonSocket {
            stream: ours,
            read: Vec::new(),
        };
        theirs
            .write_all(b"{\"half\xff{\"return\":1}\nnoise\n{\"return\"")
            .expect("written");
        let soon = || Instant::now() + Duration::from_millis(50);
        assert_eq!(
            socket.receive(soon()).expect("a value"),
            Some(serde_json::json!({"return": 1}))
        );
        assert_eq!(socket.receive(soon()).expect("no value yet"), None);
        theirs.write_all(b":2}\n").expect("written");
        assert_eq!(
            socket.receive(soon()).expect("a value"),
            Some(serde_json::json!({"return": 2}))
        );
        drop(theirs);
        let error = socket.receive(soon()).expect_err("the other end is gone");
        assert!(error.to_string().contains("ended"), "{error}");
    }
}
