//! The runner's side of a session: the socket on which leafd speaks to it, and standard input.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use leaf_core::session::wire::{FromRunner, Input, ToRunner};
use rustix::io::Errno;
use serde::Serialize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;

use super::SOCKET;
use super::frame::{take_frame, write_frame};
use crate::directory::ORDER;

/// The most bytes of standard input that wait for the program.
const MAX_INPUT: u64 = 64 * 1024;
/// What waits for leafd at most: it asks for no more than one chunk of output at a time.
const MAX_OUTGOING: usize = 1 << 20;
/// How long a runner waits for a leafd that speaks to it.
pub(super) const WITHOUT_LEAFD: Duration = Duration::from_secs(24 * 3600);

/// A session, as the runner of its program sees it.
pub(super) struct Side {
    listener: UnixListener,
    /// The user that wrote the order: leafd's.
    owner: u32,
    leafd: Option<Connection>,
    /// When leafd was last there.
    pub(super) heard: Instant,
    /// The pull that waits for output.
    pub(super) pull: Option<ToRunner>,
    pub(super) is_attached: bool,
    pub(super) is_finished: bool,
    stdin: Option<AsyncFd<OwnedFd>>,
    input: VecDeque<u8>,
    /// The number of bytes that were taken.
    end: u64,
    end_at: Option<u64>,
}

struct Connection {
    stream: UnixStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

/// What happened at the socket or at standard input.
pub(super) enum Happened {
    Connected,
    Heard(Vec<(ToRunner, Vec<u8>)>),
    Gone,
    InputMoved,
}

impl Side {
    /// Listens in the program's directory.
    pub(super) fn open(directory: &Path, stdin: AsyncFd<OwnedFd>) -> io::Result<Self> {
        let path = directory.join(SOCKET);
        let owner = fs::symlink_metadata(directory.join(ORDER))?.uid();
        let listener = UnixListener::bind(&path)?;
        // leafd has another user. The directory lets nobody else in, and who connects is asked.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        Ok(Self {
            listener,
            owner,
            leafd: None,
            heard: Instant::now(),
            pull: None,
            is_attached: false,
            is_finished: false,
            stdin: Some(stdin),
            input: VecDeque::new(),
            end: 0,
            end_at: None,
        })
    }

    pub(super) fn input(&self) -> Input {
        Input {
            end: self.end,
            room: MAX_INPUT.saturating_sub(self.input.len() as u64),
            closed: self.stdin.is_none(),
        }
    }

    /// Sends leafd a message.
    pub(super) fn tell(&mut self, message: &impl Serialize, bytes: &[u8]) {
        if let Some(leafd) = &mut self.leafd {
            if leafd.outgoing.len() > MAX_OUTGOING {
                self.leafd = None;
                return;
            }
            write_frame(&mut leafd.outgoing, message, bytes);
        }
    }

    /// Takes input of the client, from this offset on.
    pub(super) fn take_input(&mut self, offset: u64, bytes: &[u8]) {
        if offset == self.end && self.stdin.is_some() && self.input().room >= bytes.len() as u64 {
            self.input.extend(bytes);
            self.end += bytes.len() as u64;
        }
        self.end_if_due();
    }

    /// Notes where standard input ends.
    pub(super) fn end_input(&mut self, at: u64) {
        self.end_at.get_or_insert(at);
        self.end_if_due();
    }

    /// The program takes no more.
    pub(super) fn close_input(&mut self) {
        self.stdin = None;
        self.input.clear();
    }

    fn end_if_due(&mut self) {
        if self.input.is_empty() && self.end_at.is_some_and(|at| self.end >= at) {
            self.close_input();
        }
    }

    /// Waits until something happens. Cancel-safe.
    pub(super) async fn next(&mut self) -> Happened {
        let Self {
            listener,
            leafd,
            stdin,
            input,
            ..
        } = self;
        let has_input = !input.is_empty();
        let socket = async {
            match leafd {
                Some(leafd) => leafd.ready().await,
                None => std::future::pending().await,
            }
        };
        let writable = async {
            match stdin {
                Some(stdin) if has_input => stdin.writable().await.map(|mut ready| {
                    let (front, _) = input.as_slices();
                    ready.try_io(|file| Ok(rustix::io::write(file, front)?))
                }),
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == self.owner) => {
                    self.leafd = Some(Connection { stream, incoming: Vec::new(), outgoing: Vec::new() });
                    self.heard = Instant::now();
                    Happened::Connected
                }
                _ => Happened::Heard(Vec::new()),
            },
            ready = socket => match ready {
                Ok(frames) => {
                    self.heard = Instant::now();
                    Happened::Heard(frames)
                }
                Err(_) => {
                    self.leafd = None;
                    Happened::Gone
                }
            },
            written = writable => {
                match written {
                    Ok(Ok(Ok(count))) => {
                        self.input.drain(..count);
                        self.end_if_due();
                    }
                    Ok(Ok(Err(error))) if Errno::from_io_error(&error) == Some(Errno::INTR) => {}
                    // It was not writable after all.
                    Ok(Err(_)) => {}
                    Ok(Ok(Err(_))) | Err(_) => self.close_input(),
                }
                Happened::InputMoved
            }
        }
    }
}

impl Connection {
    /// Reads and writes what can be, and returns the frames that have arrived. Cancel-safe.
    async fn ready(&mut self) -> io::Result<Vec<(ToRunner, Vec<u8>)>> {
        let interest = if self.outgoing.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        let ready = self.stream.ready(interest).await?;
        if ready.is_writable() && !self.outgoing.is_empty() {
            match self.stream.try_write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        let mut frames = Vec::new();
        if ready.is_readable() {
            let mut buffer = vec![0; 64 * 1024];
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.incoming.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            while let Some(frame) = take_frame(&mut self.incoming)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }
}

/// Returns the first message of a runner.
pub(super) fn hello(
    side: &Side,
    kept: [leaf_core::session::wire::Kept; 2],
    exit: Option<leaf_core::job::ProgramExit>,
) -> FromRunner {
    let [stdout, stderr] = kept;
    FromRunner::Hello {
        version: leaf_core::session::wire::VERSION,
        stdout,
        stderr,
        input: side.input(),
        exit,
    }
}
