//! Waits for changes of one file or directory (inotify(7)).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use leaf_host::process::async_fd;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The changes of one file or directory.
#[derive(Debug)]
pub(crate) struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    /// Returns the changes of a file or directory from now on.
    pub(crate) fn of(path: &Path, events: WatchFlags) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, path, events)?;
        async_fd(fd).map(Self)
    }

    /// Waits for a change that was not [taken](Self::take) yet. Cancel-safe.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    /// Takes all changes so far.
    pub(crate) fn take(&self) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        // The error means that it is empty, and makes the next wait block.
        let _ = self.0.try_io(Interest::READABLE, |fd| -> io::Result<()> {
            let mut reader = inotify::Reader::new(fd, &mut buffer);
            loop {
                reader.next()?;
            }
        });
    }
}
