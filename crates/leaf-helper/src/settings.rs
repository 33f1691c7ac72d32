//! The helper's settings, against which it validates every operation.

use std::path::{Path, PathBuf};

use leaf_core::address_pool::AddressPool;
use leaf_core::runtime::Runtime;
use leaf_host::program;

use crate::error::{Error, Result};

/// The helper's settings: its programs, the address pool, and the allowed directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The program `leaf-helper`, which runs a container under either runtime.
    pub supervisor: PathBuf,
    /// The static program `leaf-init`, which configures the network inside a container before its own init.
    pub leaf_init: PathBuf,
    /// The program `systemd-nspawn`.
    pub nspawn: PathBuf,
    /// The program `nft`.
    pub nft: PathBuf,
    /// The address pool of the leaf and its containers.
    pub pool: AddressPool,
    /// The id of the group that may observe the containers (status, console log), if it is not root's.
    pub observers: Option<u32>,
    /// The runtime of containers.
    pub runtime: Runtime,
    /// The directories that containers' binds may be in or below.
    pub bind_folders: Vec<PathBuf>,
    /// The directories that the files of containers' secrets may be in or below.
    pub secret_folders: Vec<PathBuf>,
    /// Whether containers may have the host's users, so that their root is the host's root.
    pub host_users: bool,
    /// The file of the SSH host key (ssh-ed25519, private) that the leaf's secrets are encrypted to.
    pub host_key: PathBuf,
}

/// The host key of a host as sshd makes it.
pub(crate) const HOST_KEY: &str = "/etc/ssh/ssh_host_ed25519_key";

/// A program that the helper needs is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{program} is neither in {path} nor in /usr/sbin or /sbin; install it ({package})")]
pub struct MissingProgram {
    program: &'static str,
    package: &'static str,
    path: String,
}

impl Settings {
    /// Returns settings with `systemd-nspawn` and `nft` looked up on `PATH` and in the directories of root's programs,
    /// and the systemd runtime if systemd is PID 1. No directory of the host is allowed for containers.
    ///
    /// # Errors
    /// [`MissingProgram`] when a program is not found.
    pub fn find(
        supervisor: impl Into<PathBuf>,
        leaf_init: impl Into<PathBuf>,
        pool: AddressPool,
    ) -> std::result::Result<Self, MissingProgram> {
        Ok(Self {
            supervisor: supervisor.into(),
            leaf_init: leaf_init.into(),
            nspawn: find("systemd-nspawn", "Debian: systemd-container")?,
            nft: find("nft", "Debian: nftables")?,
            pool,
            observers: None,
            runtime: leaf_host::runtime::detect(),
            bind_folders: Vec::new(),
            secret_folders: Vec::new(),
            host_users: false,
            host_key: HOST_KEY.into(),
        })
    }
}

fn find(name: &'static str, package: &'static str) -> std::result::Result<PathBuf, MissingProgram> {
    program::find_for_root(name).ok_or_else(|| MissingProgram {
        program: name,
        package,
        path: std::env::var_os("PATH")
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    })
}

/// Refuses a path that systemd-nspawn would misinterpret.
pub(crate) fn check_path(path: &Path) -> Result<&str> {
    path.to_str()
        .filter(|text| text.starts_with('/') && !text.contains([':', '\n', '\\', ',']))
        .ok_or_else(|| {
            Error::Refused(format!(
                "{} is not a valid path: it must be absolute, and without ':', ',', '\\' and line ends",
                path.display()
            ))
        })
}

#[cfg(test)]
impl Settings {
    /// Returns settings with programs that need not exist.
    pub(crate) fn sample() -> Self {
        Self {
            supervisor: "/bin/leaf-helper".into(),
            leaf_init: "/bin/leaf-init".into(),
            nspawn: "/bin/systemd-nspawn".into(),
            nft: "/bin/nft".into(),
            pool: AddressPool::default(),
            observers: None,
            runtime: Runtime::Systemd,
            bind_folders: Vec::new(),
            secret_folders: Vec::new(),
            host_users: false,
            host_key: HOST_KEY.into(),
        }
    }
}
