//! Secrets of the leaf: age files that only the host key decrypts (docs/security.md, *Secrets*).
//!
//! A file is decrypted when it arrives, to know that it is for this leaf and of this name, and when somebody uses it. The content
//! gets no name in a file system: a container's systemd-nspawn reads it from a memory file of the process that starts it.

mod removed;
mod store;
pub(crate) mod units;

use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use leaf_core::error::chain;
use leaf_core::host_op::{HostReport, Secret, StoredSecret};
use leaf_core::id::{ContainerName, SecretName};
use leaf_core::secret::allows_container;
use leaf_trust::host_key::HostKey;
use leaf_trust::secret::SecretDocument;
use rustix::fs::{MemfdFlags, SealFlags};
use sha2::{Digest as _, Sha256};

use crate::Helper;
use crate::error::{Error, Result};
use crate::files::Directory;

/// The end of the names of the age files.
const SUFFIX: &str = ".age";

/// A secret's content in a memory file.
#[derive(Debug)]
pub(crate) struct MemoryFile(OwnedFd);

impl MemoryFile {
    /// Returns a memory file with this content, which can't be changed any more.
    fn new(content: &[u8]) -> Result<Self> {
        let failed = || Error::io::<std::io::Error>("write a secret into memory");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("secret", flags).map_err(|e| failed()(e.into()))?;
        let mut file = std::fs::File::from(fd);
        file.write_all(content).map_err(failed())?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(|e| failed()(e.into()))?;
        Ok(Self(file.into()))
    }

    /// Returns the path by which a child of this process that is root opens it, as long as this process has it.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

pub use store::SecretStore;

impl Helper {
    fn secrets(&self) -> SecretStore {
        SecretStore {
            leaf: self.leaf.clone(),
            directory: self.paths.secrets.clone(),
            host_key: self.settings.host_key.clone(),
        }
    }

    /// Keeps a secret's age file, if it is for this leaf, of this name and not older than the one that the leaf has, and has the
    /// units that it names take it up.
    pub(crate) async fn store_secret(&self, name: &SecretName, age: &Secret) -> Result<HostReport> {
        self.up_to_date_secrets().await?;
        let file = age.expose().as_bytes();
        let document = self.secrets().decrypt(name, file)?;
        self.check_units(&document.users)?;
        self.check_newer(name, file, document.made)?;
        let stored = StoredSecret {
            users: document.users.clone(),
            ..stored(name, file)
        };
        drop(document);
        let directory = self.secrets().make_directory()?;
        Self::mark_change(&directory, name, &stored.users)?;
        directory.write(&file_name(name), file, 0o600)?;
        // From here on it is compared with this one.
        removed::forget(&directory, name)?;
        self.take_up_change(&directory, name, &stored.users).await?;
        Ok(HostReport {
            secrets: vec![stored],
            ..HostReport::default()
        })
    }

    /// Removes a secret's age file, if it exists, and notes of when it was, so that it does not come back.
    pub(crate) fn remove_secret(&self, name: &SecretName) -> Result<HostReport> {
        if let Some(directory) = Directory::open_root(&self.paths.secrets)? {
            // One that can't be used any more can't be used if it comes back, either.
            if let Ok(document) = self.secrets().decrypted(name) {
                removed::note(&directory, name, document.made)?;
            }
            directory.remove_file(&file_name(name))?;
            Self::forget_change(&directory, name)?;
            directory.sync()?;
        }
        Ok(HostReport::default())
    }

    /// Has done, once in this process, what an earlier one left undone.
    async fn up_to_date_secrets(&self) -> Result<()> {
        self.has_taken_up_changes
            .get_or_try_init(|| self.take_up_left_changes())
            .await
            .copied()
    }

    /// Refuses a file that was made before the one that the leaf has, or not after the one that was removed: somebody may have kept
    /// it, and sent it again.
    fn check_newer(&self, name: &SecretName, file: &[u8], made: Timestamp) -> Result<()> {
        let refused = |what: &str, before: Timestamp, file: &str| {
            Error::Refused(format!(
                "the secret {name} {what} was made at {before}, and this one not after that, at {made}: somebody may have kept it, and \
                 sent it again. Set it again with `leafctl secret set`, on a machine with the right time; if the one before was made by \
                 a clock that was ahead, root removes {} on the leaf first",
                self.paths.secrets.join(file).display()
            ))
        };
        let kept = match self.secrets().file(name) {
            Ok(Some(kept)) if kept.as_bytes() == file => return Ok(()),
            Ok(Some(kept)) => self.secrets().decrypt(name, kept.as_bytes()),
            _ => return self.check_not_removed(name, made, refused),
        };
        match kept {
            Ok(kept) if kept.made > made => Err(refused("of this leaf", kept.made, &file_name(name))),
            // One that can't be used any more is replaced.
            _ => Ok(()),
        }
    }

    fn check_not_removed(
        &self,
        name: &SecretName,
        made: Timestamp,
        refused: impl Fn(&str, Timestamp, &str) -> Error,
    ) -> Result<()> {
        let Some(directory) = Directory::open_root(&self.paths.secrets)? else {
            return Ok(());
        };
        match removed::time(&directory, name)? {
            Some(before) if before >= made => Err(refused(
                "that was removed from this leaf",
                before,
                &removed::file_name(name),
            )),
            _ => Ok(()),
        }
    }

    /// Returns the public part of the host key.
    pub(crate) fn show_host_key(&self) -> Result<HostReport> {
        let key = HostKey::of_private_key(&self.secrets().private_key()?)
            .map_err(|e| self.secrets().unusable_key(&chain(&e)))?;
        Ok(HostReport {
            host_key: Some(key.to_string()),
            ..HostReport::default()
        })
    }

    /// Returns what is kept.
    pub(crate) async fn list_secrets(&self) -> Result<HostReport> {
        self.up_to_date_secrets().await?;
        let mut secrets = Vec::new();
        let names = match Directory::open_root(&self.paths.secrets)? {
            Some(directory) => names_with(&directory, SUFFIX)?,
            None => Vec::new(),
        };
        for name in names {
            let file = match self.secrets().file(&name) {
                Ok(Some(file)) => file,
                Ok(None) => continue,
                // One that can't be read keeps no other from being listed.
                Err(error) => {
                    secrets.push(StoredSecret {
                        problem: Some(chain(&error)),
                        ..stored(&name, b"")
                    });
                    continue;
                }
            };
            let stored = stored(&name, file.as_bytes());
            secrets.push(match self.secrets().decrypt(&name, file.as_bytes()) {
                Ok(document) => StoredSecret {
                    users: document.users.clone(),
                    ..stored
                },
                Err(error) => StoredSecret {
                    problem: Some(chain(&error)),
                    ..stored
                },
            });
        }
        Ok(HostReport {
            secrets,
            ..HostReport::default()
        })
    }

    /// Checks that a container may have a secret, and that it can be decrypted.
    pub(crate) fn check_secret(&self, name: &SecretName, container: &ContainerName) -> Result<()> {
        self.secret_of_container(name, container).map(drop)
    }

    /// Returns a secret's content for a container, in memory.
    pub(crate) fn give_secret(&self, name: &SecretName, container: &ContainerName) -> Result<MemoryFile> {
        let document = self.secret_of_container(name, container)?;
        MemoryFile::new(&document.content)
    }

    fn secret_of_container(&self, name: &SecretName, container: &ContainerName) -> Result<SecretDocument> {
        let document = self.secrets().decrypted(name)?;
        if !allows_container(&document.users, container) {
            return Err(Error::Refused(format!(
                "the secret {name} is not for container {container}: the containers and units that may have it were named when it \
                 was set"
            )));
        }
        Ok(document)
    }
}

/// Returns the names of the secrets that have a file with this end, sorted. Other files are left alone.
fn names_with(directory: &Directory, end: &str) -> Result<Vec<SecretName>> {
    let unreadable = || Error::io(format!("read {}", directory.path().display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory.path()).map_err(unreadable())? {
        let file = entry.map_err(unreadable())?.file_name();
        let name = file.to_str().and_then(|file| file.strip_suffix(end));
        names.extend(name.and_then(|name| SecretName::new(name).ok()));
    }
    names.sort();
    Ok(names)
}

fn file_name(name: &SecretName) -> String {
    format!("{name}{SUFFIX}")
}

fn stored(name: &SecretName, file: &[u8]) -> StoredSecret {
    StoredSecret {
        name: name.clone(),
        file_bytes: file.len() as u64,
        digest: HEXLOWER.encode(&Sha256::digest(file)),
        users: Vec::new(),
        problem: None,
    }
}
