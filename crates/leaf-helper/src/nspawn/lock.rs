//! What a supervisor leaves on the host while it lives, as others see it: its lock, and the leftovers of one that was killed.

use std::fs::File;
use std::time::Duration;

use leaf_core::id::ContainerName;
use leaf_host::lock;
use rustix::fs::{Mode, OFlags};

use crate::Helper;
use crate::container::directories::SHOWN;
use crate::error::{Error, Result};
use crate::nspawn::cgroup::SupervisedCgroup;

/// The lock of a container, held.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl Helper {
    /// Returns the lock of a container, or nothing if its supervisor lives.
    pub(crate) async fn acquire(&self, name: &ContainerName) -> Result<Option<RunLock>> {
        let file = self.lock_file(name, OFlags::RDWR)?;
        // An observer holds it shared for a moment.
        for _ in 0..50 {
            if lock::try_exclusive(&file).map_err(self.lock_failed(name))? {
                return Ok(Some(RunLock { _file: file }));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(None)
    }

    /// Returns whether a container's supervisor lives.
    pub(crate) fn is_supervised(&self, name: &ContainerName) -> Result<bool> {
        // Only read: a look is no change for those who watch.
        let file = self.lock_file(name, OFlags::RDONLY)?;
        lock::is_held(&file).map_err(self.lock_failed(name))
    }

    /// Waits until a container's supervisor is gone, and returns whether it is.
    pub(crate) async fn wait_unsupervised(&self, name: &ContainerName, limit: Duration) -> Result<bool> {
        let deadline = tokio::time::Instant::now() + limit;
        while self.is_supervised(name)? {
            if tokio::time::Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(true)
    }

    fn lock_failed(&self, name: &ContainerName) -> impl FnOnce(std::io::Error) -> Error {
        let path = self.paths.lock(name);
        move |source| Error::Lock {
            path,
            source: source.into(),
        }
    }

    fn lock_file(&self, name: &ContainerName, access: OFlags) -> Result<File> {
        let run = self.run_directory(name)?;
        let flags = access | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = || Error::io(format!("open {}", self.paths.lock(name).display()));
        let lock =
            rustix::fs::openat(run.as_fd(), "lock", flags, Mode::from_raw_mode(SHOWN)).map_err(failed())?;
        run.show(&lock).map_err(failed())?;
        Ok(File::from(lock))
    }

    /// Removes what a running container has on the host beside files: processes, cgroup, link, mounts, elements of
    /// the rules. Nothing supervises it.
    pub(crate) async fn sweep(&self, name: &ContainerName) -> Result<()> {
        let cgroup = SupervisedCgroup::of(&self.leaf, name)?;
        cgroup.kill_all().await?;
        cgroup.remove()?;
        self.release_inputs(name)?;
        self.sweep_common(name).await
    }
}
