//! A container's credentials of its leaf: its binding and its NATS user. They are replaced while it runs (`docs/containers.md`, "NATS
//! credentials").
//!
//! | where | for |
//! |---|---|
//! | `STATE/NAME/credentials/` | the next start; survives a boot |
//! | `RUN/NAME/credentials/shown/` | the run; bound into the container as [`INNER`] |
//! | `STATE/NAME/credentials.lock` | held by whoever writes either of them: a start copies the first into the second |
//!
//! The directory in between belongs to root alone (mode 0700), whatever the modes below it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::RawMode;

use leaf_core::host_op::Secret;
use leaf_core::id::ContainerName;
use leaf_core::spec::Users;

use crate::Helper;
use crate::container::id_maps::maps_users;
use crate::error::{Error, Result};
use crate::files::Directory;
use crate::lock;

/// The directory inside a container, which `$CREDENTIALS_DIRECTORY` names there.
pub(crate) const INNER: &str = "/run/leaf/credentials";
/// The directory to which systemd-nspawn passes credentials (systemd-nspawn(1), `--load-credential=`).
const OF_NSPAWN: &str = "/run/host/credentials";

/// The directories, in a container's state directory and its run directory.
const CREDENTIALS: &str = "credentials";
const SHOWN: &str = "shown";
const LOCK: &str = "credentials.lock";

/// The directory that a container sees, on the host.
#[derive(Debug)]
pub(crate) struct Shown {
    /// Its path.
    pub(crate) directory: PathBuf,
    /// Whether its owner is root inside by an ID-mapped mount.
    pub(crate) is_mapped: bool,
    /// The names of the credentials in it.
    pub(crate) names: Vec<String>,
}

/// The modes of a directory that a container sees, and of the files in it.
struct Modes {
    directory: RawMode,
    file: RawMode,
}

/// Those where root inside is their owner.
const OWNED: Modes = Modes {
    directory: 0o700,
    file: 0o400,
};
/// Those where the kernel can't make it that: all processes of the container can read them.
const OPEN: Modes = Modes {
    directory: 0o755,
    file: 0o444,
};

impl Helper {
    /// Replaces all credentials of a container, also those that it sees while it runs. Returns whether it sees them at its next start
    /// only.
    pub(crate) async fn set_credentials(
        &self,
        name: &ContainerName,
        credentials: &BTreeMap<String, Vec<u8>>,
    ) -> Result<bool> {
        let _lock = self.lock_credentials(name).await?;
        let at_next_start = self.show_credentials(name, credentials)?;
        let state = self.state_directory(name)?;
        state.remove_tree(CREDENTIALS)?;
        let kept = state.make(CREDENTIALS, 0o700)?;
        for (credential, bytes) in credentials {
            kept.write(credential, bytes, 0o600)?;
        }
        Ok(at_next_start)
    }

    /// Replaces some credentials of a container, as [`set_credentials`](Self::set_credentials) does. What it sees is replaced first: a
    /// disk that is full cuts off no container that runs.
    pub(crate) async fn renew_credentials(
        &self,
        name: &ContainerName,
        credentials: &BTreeMap<String, Secret>,
    ) -> Result<bool> {
        self.owned_spec(name)?;
        let _lock = self.lock_credentials(name).await?;
        let kept = self.state_directory(name)?.open(CREDENTIALS)?;
        let missing = || Error::Refused(format!("container {name} has no credentials; create it again"));
        let kept = kept.ok_or_else(missing)?;
        let mut bytes = BTreeMap::new();
        for (credential, secret) in credentials {
            if !kept.has(credential)? {
                return Err(Error::Refused(format!(
                    "container {name} has no credential {credential}"
                )));
            }
            bytes.insert(credential.clone(), secret.expose().as_bytes().to_vec());
        }
        let at_next_start = self.show_credentials(name, &bytes)?;
        for (credential, bytes) in &bytes {
            kept.write(credential, bytes, 0o600)?;
        }
        Ok(at_next_start)
    }

    /// Puts credentials where a running container sees them. Returns whether it runs and does not.
    fn show_credentials(
        &self,
        name: &ContainerName,
        credentials: &BTreeMap<String, Vec<u8>>,
    ) -> Result<bool> {
        let run = Directory::open_root(&self.paths.run)?.map(|all| all.open(name.as_str()));
        // It was never started since the host booted.
        let Some(run) = run.transpose()?.flatten() else {
            return Ok(false);
        };
        let own = run.open(CREDENTIALS)?.map(|own| own.open(SHOWN));
        let Some(shown) = own.transpose()?.flatten() else {
            let status = self.status(&run)?;
            return Ok(status.is_some_and(|status| status.leader_pid.is_some() && status.exit.is_none()));
        };
        let mode = match shown.mode()? {
            mode if mode == OPEN.directory => OPEN.file,
            _ => OWNED.file,
        };
        for (credential, bytes) in credentials {
            shown.write(credential, bytes, mode)?;
        }
        Ok(false)
    }

    /// Makes the directory that a container sees in the run that begins, with links to those that systemd-nspawn passes.
    pub(crate) async fn prepare_credentials(
        &self,
        name: &ContainerName,
        users: Users,
        of_nspawn: &[String],
    ) -> Result<Shown> {
        let _lock = self.lock_credentials(name).await?;
        let state = self.state_directory(name)?;
        let kept = state
            .open(CREDENTIALS)?
            .ok_or_else(|| Error::Failed(format!("{} has no credentials", state.path().display())))?;
        let own = self.run_directory(name)?.make(CREDENTIALS, 0o700)?;
        let is_mapped = users == Users::Private && maps_users(own.as_fd())?;
        let modes = if is_mapped || users == Users::Host {
            OWNED
        } else {
            tracing::warn!(
                container = %name,
                "the kernel has no ID-mapped mounts on this file system: all processes of the container can read its credentials"
            );
            OPEN
        };
        let shown = own.make(SHOWN, modes.directory)?;
        let names = file_names(kept.path())?;
        for credential in &names {
            let text = kept
                .read(credential)?
                .ok_or_else(|| Error::Failed(format!("the credential {credential} was removed")))?;
            shown.write(credential, text.as_bytes(), modes.file)?;
        }
        for credential in of_nspawn.iter().filter(|name| !names.contains(name)) {
            shown.link(credential, &format!("{OF_NSPAWN}/{credential}"))?;
        }
        Ok(Shown {
            directory: shown.path().to_owned(),
            is_mapped,
            names,
        })
    }

    /// Removes what a container saw in a run that has ended. It is not an error if there is nothing.
    pub(crate) fn release_credentials(run: &Directory) -> Result<()> {
        run.remove_tree(CREDENTIALS)
    }

    async fn lock_credentials(&self, name: &ContainerName) -> Result<File> {
        lock::hold(&self.state_directory(name)?, LOCK).await
    }
}

/// Returns the names of the files in a directory, sorted.
fn file_names(directory: &Path) -> Result<Vec<String>> {
    let failed = || Error::io(format!("read {}", directory.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed())? {
        let file = entry.map_err(failed())?.file_name();
        // A file that was not completed before a crash begins with a dot.
        if let Some(file) = file.to_str().filter(|file| !file.starts_with('.')) {
            names.push(file.to_owned());
        }
    }
    names.sort();
    Ok(names)
}
