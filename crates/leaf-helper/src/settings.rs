//! What the helper is told once, and holds every operation against.

use std::path::{Path, PathBuf};

use leaf_core::decide::AddressPool;
use leaf_core::runtime::Runtime;
use leaf_host::program;

use crate::error::{Error, Result};

/// What the helper is told once: its programs, and the addresses it may give away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The program that supervises a container, or starts it below systemd: `leaf-helper`.
    pub supervisor: PathBuf,
    /// The static `leaf-init`, which sets up the network inside a container before its own init.
    pub leaf_init: PathBuf,
    /// `systemd-nspawn`.
    pub nspawn: PathBuf,
    /// `nft`.
    pub nft: PathBuf,
    /// The addresses of the leaf and its containers.
    pub pool: AddressPool,
    /// The group that may observe the containers (status, console log), where that is not root's own.
    pub observers: Option<u32>,
    /// What runs the containers.
    pub runtime: Runtime,
    /// The directories that a container's binds may be in or below; none if empty.
    pub bind_folders: Vec<PathBuf>,
    /// The directories that the files of a container's secrets may be in or below; none if empty.
    pub secret_folders: Vec<PathBuf>,
}

/// A host lacks a program that the helper needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{program} is neither in {path} nor in /usr/sbin or /sbin; install it ({package})")]
pub struct MissingProgram {
    program: &'static str,
    package: &'static str,
    path: String,
}

impl Settings {
    /// Returns settings with `systemd-nspawn` and `nft` found on `PATH` and where root's programs are, and systemd as what
    /// runs the containers where it is PID 1. No directory of the host is open to containers.
    ///
    /// # Errors
    /// [`MissingProgram`] when one is not there.
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

/// Refuses a path that systemd-nspawn would read as something else.
pub(crate) fn check_path(path: &Path) -> Result<&str> {
    path.to_str()
        .filter(|text| text.starts_with('/') && !text.contains([':', '\n', '\\', ',']))
        .ok_or_else(|| {
            Error::Refused(format!(
                "{} can't be used as a path here: it must be absolute, and without ':', ',', '\\' and line ends",
                path.display()
            ))
        })
}
