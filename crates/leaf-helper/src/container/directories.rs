//! The directories of a container on the host, its spec, and the cleanup after a run.

use std::path::Path;

use leaf_core::host_op::RunSpec;
use leaf_core::id::ContainerName;
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::files::Directory;
use crate::{Helper, network};

/// The mode of files that the observers' group may read.
pub(crate) const SHOWN: u32 = 0o640;
/// The mode of directories that the observers' group may read.
const SHOWN_DIRECTORY: u32 = 0o750;

impl Helper {
    /// Opens the container's run directory, which does not survive a reboot, and creates it if it is missing.
    pub(crate) fn run_directory(&self, name: &ContainerName) -> Result<Directory> {
        self.shown_directory(&self.paths.run, name)
    }

    /// Opens the container's state directory, which survives a reboot, and creates it if it is missing.
    pub(crate) fn state_directory(&self, name: &ContainerName) -> Result<Directory> {
        self.shown_directory(&self.paths.state, name)
    }

    /// Opens the directory of all containers' run directories, and creates it if it is missing.
    pub(crate) fn run_directories(&self) -> Result<Directory> {
        self.shown_root(&self.paths.run)
    }

    /// Opens the directory of all containers' state directories, and creates it if it is missing.
    pub(crate) fn state_directories(&self) -> Result<Directory> {
        self.shown_root(&self.paths.state)
    }

    fn shown_root(&self, path: &Path) -> Result<Directory> {
        let all = Directory::make_root(path, SHOWN_DIRECTORY)?;
        self.show(&all)?;
        Ok(all)
    }

    /// Opens a container's directory below this one, and makes both where they are missing.
    fn shown_directory(&self, all: &Path, name: &ContainerName) -> Result<Directory> {
        let own = self.shown_root(all)?.make(name.as_str(), SHOWN_DIRECTORY)?;
        self.show(&own)?;
        Ok(own)
    }

    fn show(&self, directory: &Directory) -> Result<()> {
        self.settings
            .observers
            .map_or(Ok(()), |group| directory.give_to_group(group))
    }

    /// Returns the spec of a container of this leaf.
    ///
    /// # Errors
    /// [`Error::Refused`] if it does not exist, or belongs to another owner.
    pub(crate) fn owned_spec(&self, name: &ContainerName) -> Result<RunSpec> {
        let confs = Directory::make_root(&self.paths.confs, 0o755)?;
        let spec = match self.owns(&confs, name)? {
            true => self.spec(name)?,
            false => None,
        };
        spec.ok_or_else(|| {
            Error::Refused(format!(
                "leaf {} has no container {name}; create it first",
                self.leaf
            ))
        })
    }

    /// Returns the spec of a container, if the container was created.
    pub(crate) fn spec(&self, name: &ContainerName) -> Result<Option<RunSpec>> {
        let Some(all) = Directory::open_root(&self.paths.state)? else {
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

    /// Removes what a container has on the host under either runtime: veth, mounts, elements of the rules.
    pub(crate) async fn sweep_common(&self, name: &ContainerName) -> Result<()> {
        network::remove_link(name).await?;
        // A killed systemd-nspawn leaves this mount, which would fail the next start.
        let exported = format!("/run/systemd/nspawn/unix-export/{name}");
        // Only tried if the mount exists: a process without the privilege to unmount would fail.
        if Path::new(&exported).exists() {
            match rustix::mount::unmount(&exported, rustix::mount::UnmountFlags::DETACH) {
                Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
                Err(e) => return Err(Error::io(format!("unmount {exported}"))(e)),
            }
        }
        for directory in ["unix-export", "propagate"] {
            if let Some(directory) =
                Directory::open_root(format!("/run/systemd/nspawn/{directory}").as_ref())?
            {
                directory.remove_if_empty(name.as_str())?;
            }
        }
        self.expel(name).await
    }
}
