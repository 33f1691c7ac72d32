//! A unix socket with a maximum length of received messages.

use std::os::fd::AsFd;

use tokio::net::UnixStream;
use zlink::Result;
use zlink::connection::PassedCredentials;
use zlink::connection::socket::{self, ReadResult, Socket};
use zlink::tokio::unix::Stream;

/// The maximum length of a message, in bytes; credentials are the largest part.
const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The socket.
#[derive(Debug)]
pub(crate) struct Bounded(Stream);

impl Bounded {
    pub(crate) fn new(stream: UnixStream) -> Result<Self> {
        Stream::try_from(stream).map(Self)
    }
}

impl Socket for Bounded {
    type ReadHalf = ReadHalf;
    type WriteHalf = WriteHalf;

    const CAN_TRANSFER_FDS: bool = true;

    fn split(self) -> (ReadHalf, WriteHalf) {
        let (read, write) = self.0.split();
        (
            ReadHalf {
                inner: read,
                length: 0,
            },
            WriteHalf(write),
        )
    }
}

/// The reading half.
#[derive(Debug)]
pub(crate) struct ReadHalf {
    inner: <Stream as Socket>::ReadHalf,
    /// The length of the message read so far, without its terminator.
    length: usize,
}

impl socket::ReadHalf for ReadHalf {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<ReadResult> {
        let read = self.inner.read(buffer).await?;
        // A message ends with a NUL.
        let bytes = &buffer[..read.bytes_read()];
        self.length = match bytes.iter().rposition(|byte| *byte == 0) {
            Some(end) => bytes.len() - end - 1,
            None => self.length + bytes.len(),
        };
        if self.length > MAX_MESSAGE_BYTES {
            return Err(zlink::Error::BufferOverflow);
        }
        Ok(read)
    }
}

/// The writing half.
#[derive(Debug)]
pub(crate) struct WriteHalf(<Stream as Socket>::WriteHalf);

impl socket::WriteHalf for WriteHalf {
    async fn write(
        &mut self,
        bytes: &[u8],
        fds: &[impl AsFd],
        credentials: Option<&PassedCredentials>,
    ) -> Result<()> {
        self.0.write(bytes, fds, credentials).await
    }
}
