//! The connection to the runner of a program.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use leaf_core::id::JobId;
use leaf_core::session::wire::{FromRunner, ToRunner};
use leaf_job::program::frame::{take_frame, write_frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// The pause before a runner that does not listen yet, or is gone, is tried again.
const PAUSE: Duration = Duration::from_millis(20);
/// The messages to a runner that wait at most. It asks for nothing, and answers a pull by one chunk: more are not needed.
const MOST_WAITING: usize = 256;

/// The connection to a runner; dropped, it is closed.
pub(super) struct Runner {
    messages: mpsc::Sender<(ToRunner, Vec<u8>)>,
    _task: JoinSet<()>,
}

impl Runner {
    /// Connects, now and whenever the connection was lost. What the runner says is sent to `heard`.
    pub(super) fn start(
        job: JobId,
        socket: PathBuf,
        heard: mpsc::Sender<(JobId, FromRunner, Vec<u8>)>,
    ) -> Self {
        let (messages, mut waiting) = mpsc::channel(MOST_WAITING);
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                if let Ok(stream) = UnixStream::connect(&socket).await {
                    // What was meant for the connection before: the runner begins anew.
                    while waiting.try_recv().is_ok() {}
                    if let Err(error) = speak(job, stream, &mut waiting, &heard).await {
                        tracing::debug!(%job, %error, "the connection to a program's runner has ended");
                    }
                }
                tokio::time::sleep(PAUSE).await;
            }
        });
        Self {
            messages,
            _task: task,
        }
    }

    /// Sends a message. Without a connection it is dropped: the runner says all that counts when there is one.
    pub(super) fn tell(&self, message: ToRunner, bytes: Vec<u8>) {
        if self.messages.try_send((message, bytes)).is_err() {
            tracing::warn!("a program's runner takes no messages");
        }
    }
}

async fn speak(
    job: JobId,
    mut stream: UnixStream,
    waiting: &mut mpsc::Receiver<(ToRunner, Vec<u8>)>,
    heard: &mpsc::Sender<(JobId, FromRunner, Vec<u8>)>,
) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let mut incoming = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut frames = Vec::new();
    loop {
        tokio::select! {
            read = reader.read(&mut buffer) => {
                let count = read?;
                if count == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                incoming.extend_from_slice(&buffer[..count]);
                while let Some((message, bytes)) = take_frame(&mut incoming)? {
                    if heard.send((job, message, bytes)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            message = waiting.recv() => {
                let Some((message, bytes)) = message else { return Ok(()) };
                frames.clear();
                write_frame(&mut frames, &message, &bytes);
                writer.write_all(&frames).await?;
            }
        }
    }
}
