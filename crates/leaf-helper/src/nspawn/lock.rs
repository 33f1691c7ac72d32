//! The lock of a supervisor, and the cleanup after one that was killed.

use std::fs::File;
use std::time::Duration;

use leaf_core::id::ContainerName;
use leaf_host::lock;
use rustix::fs::{Mode, OFlags};

use crate::Helper;
use crate::container::directories::SHOWN;
use crate::error::{Error, Result};
use crate::nspawn::cgroup::SupervisedCgroup;

/// The held lock of a container.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl Helper {
    /// Takes the lock of a container; returns `None` if its supervisor is running.
    pub(crate) async fn acquire(&self, name: &ContainerName) -> Result<Option<RunLock>> {
        let file = self.lock_file(name, OFlags::RDWR)?;
        // An observer may hold it shared for a moment.
        for _ in 0..50 {
            if lock::try_exclusive(&file).map_err(self.lock_failed(name))? {
                return Ok(Some(RunLock { _file: file }));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(None)
    }

    /// Returns whether a container's supervisor is running.
    pub(crate) fn is_supervised(&self, name: &ContainerName) -> Result<bool> {
        // Opened read-only, so that watchers are not woken.
        let file = self.lock_file(name, OFlags::RDONLY)?;
        lock::is_held(&file).map_err(self.lock_failed(name))
    }

    /// Waits until a container's supervisor has ended; returns false after the time limit.
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

    /// Removes what a container without a supervisor has on the host apart from files: processes, cgroup, veth, mounts,
    /// elements of the rules.
    pub(crate) async fn sweep(&self, name: &ContainerName) -> Result<()> {
        let cgroup = SupervisedCgroup::of(&self.leaf, name)?;
        cgroup.kill_all().await?;
        cgroup.remove()?;
        self.release_inputs(name)?;
        self.sweep_common(name).await
    }
}
