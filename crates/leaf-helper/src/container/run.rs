//! What a supervisor leaves on the host while it lives, as others see it: its lock, its status, and the leftovers of
//! one that was killed.

use std::fs::File;
use std::time::Duration;

use leaf_host::lock;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use leaf_host::contract::RunStatus;

use crate::error::{Error, Result};
use crate::files::Folder;
use crate::nspawn::cgroup::SupervisedCgroup;
use crate::{Helper, network};

/// The mode of what the observers' group may read.
pub(crate) const SHOWN: u32 = 0o640;
/// The mode of folders that the observers' group may read.
pub(crate) const SHOWN_FOLDER: u32 = 0o750;

/// The lock of a container, held.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: File,
}

impl Helper {
    /// Returns the lock of a container, or nothing if its supervisor lives.
    pub(crate) async fn acquire(&self, name: &ContainerName) -> Result<Option<RunLock>> {
        let file = self.lock_file(name, OFlags::RDWR)?;
        // Who looks whether it is held holds it shared for a moment.
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
        let run = self.run_folder(name)?;
        let flags = access | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let failed = || Error::io(format!("open {}", self.paths.lock(name).display()));
        let lock =
            rustix::fs::openat(run.as_fd(), "lock", flags, Mode::from_raw_mode(SHOWN)).map_err(failed())?;
        run.show(&lock).map_err(failed())?;
        Ok(File::from(lock))
    }

    /// Opens the folder of what does not survive a reboot, and makes it where it is missing.
    pub(crate) fn run_folder(&self, name: &ContainerName) -> Result<Folder> {
        let all = Folder::make_root(&self.paths.run, SHOWN_FOLDER)?;
        let own = all.make(name.as_str(), SHOWN_FOLDER)?;
        self.show(&all)?;
        self.show(&own)?;
        Ok(own)
    }

    /// Opens the folder of what survives a reboot, and makes it where it is missing.
    pub(crate) fn state_folder(&self, name: &ContainerName) -> Result<Folder> {
        let all = Folder::make_root(&self.paths.state, SHOWN_FOLDER)?;
        let own = all.make(name.as_str(), SHOWN_FOLDER)?;
        self.show(&all)?;
        self.show(&own)?;
        Ok(own)
    }

    fn show(&self, folder: &Folder) -> Result<()> {
        self.settings
            .observers
            .map_or(Ok(()), |group| folder.give_to_group(group))
    }

    /// Returns what a container's supervisor is to run, if the container was created.
    pub(crate) fn spec(&self, name: &ContainerName) -> Result<Option<RunSpec>> {
        let Some(all) = Folder::open_root(&self.paths.state)? else {
            return Ok(None);
        };
        let Some(text) = all
            .open(name.as_str())?
            .map(|own| own.read("spec.json"))
            .transpose()?
            .flatten()
        else {
            return Ok(None);
        };
        let what = || format!("{}/{name}/spec.json", self.paths.state.display());
        let spec: RunSpec = serde_json::from_str(&text)
            .map_err(|e| Error::Failed(format!("{} is not a supervisor's spec: {e}", what())))?;
        if spec.leaf != self.leaf || spec.name != *name {
            return Err(Error::Refused(format!(
                "{} is for container {} of leaf {}",
                what(),
                spec.name,
                spec.leaf
            )));
        }
        Ok(Some(spec))
    }

    /// Returns what a container's supervisor says, if it says something.
    pub(crate) fn status(&self, run: &Folder) -> Result<Option<RunStatus>> {
        run.read("status.json")?
            .map(|text| {
                serde_json::from_str(&text).map_err(|e| {
                    Error::Failed(format!(
                        "{}/status.json is not a status: {e}",
                        run.path().display()
                    ))
                })
            })
            .transpose()
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

    /// Removes what a container has on the host however it runs: link, mounts, elements of the rules.
    pub(crate) async fn sweep_common(&self, name: &ContainerName) -> Result<()> {
        network::remove_link(name).await?;
        // An nspawn that was killed leaves this mount, and the next start would fail on it.
        let exported = format!("/run/systemd/nspawn/unix-export/{name}");
        // Not tried in vain: whoever may not unmount could not even try.
        if std::path::Path::new(&exported).exists() {
            match rustix::mount::unmount(&exported, rustix::mount::UnmountFlags::DETACH) {
                Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
                Err(e) => return Err(Error::io(format!("unmount {exported}"))(e)),
            }
        }
        for folder in ["unix-export", "propagate"] {
            if let Some(folder) = Folder::open_root(format!("/run/systemd/nspawn/{folder}").as_ref())? {
                folder.remove_if_empty(name.as_str())?;
            }
        }
        self.expel(name).await
    }
}
