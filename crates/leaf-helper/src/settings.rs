//! What the helper is told once, and holds every operation against.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

/// What the helper is told once: its programs, and the addresses it may give away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The program that supervises a container: `leaf-helper`.
    pub supervisor: PathBuf,
    /// The static `leaf-init`, which sets up the network inside a container before its own init.
    pub leaf_init: PathBuf,
    /// `systemd-nspawn`.
    pub nspawn: PathBuf,
    /// `nft`.
    pub nft: PathBuf,
    /// The addresses of the leaf and its containers.
    pub pool: AddressPool,
    /// The group that may look at the containers (status, console log), where that is not root's own.
    pub observers: Option<u32>,
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
    /// Returns settings with `systemd-nspawn` and `nft` found on `PATH` and where root's programs are.
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
        })
    }
}

fn find(program: &'static str, package: &'static str) -> std::result::Result<PathBuf, MissingProgram> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(program))
        .find(|file| file.is_absolute() && file.is_file())
        .ok_or_else(|| MissingProgram {
            program,
            package,
            path: path.to_string_lossy().into_owned(),
        })
}

/// A range of IPv4 addresses, written `10.233.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPool {
    network: Ipv4Addr,
    prefix: u8,
}

/// A text is not a range of IPv4 addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a private range of IPv4 addresses such as 10.233.0.0/16")]
pub struct InvalidPool(String);

impl AddressPool {
    /// Returns whether an address is one of the range.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        u32::from(address) & mask == u32::from(self.network)
    }
}

impl Default for AddressPool {
    /// `10.233.0.0/16`, which the NixOS containers use as well.
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 233, 0, 0),
            prefix: 16,
        }
    }
}

impl FromStr for AddressPool {
    type Err = InvalidPool;
    fn from_str(text: &str) -> std::result::Result<Self, InvalidPool> {
        let invalid = || InvalidPool(text.chars().take(80).collect());
        let (network, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let pool = Self {
            network: network.parse().map_err(|_| invalid())?,
            prefix: prefix.parse().map_err(|_| invalid())?,
        };
        // A whole private network at most: nothing of the world's may become a container's.
        let sound =
            (8..=30).contains(&pool.prefix) && pool.network.is_private() && pool.contains(pool.network);
        sound.then_some(pool).ok_or_else(invalid)
    }
}

impl fmt::Display for AddressPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_holds_its_own_addresses_and_no_others() {
        let pool: AddressPool = "10.233.4.0/22".parse().expect("a pool");
        assert!(pool.contains(Ipv4Addr::new(10, 233, 7, 255)));
        assert!(!pool.contains(Ipv4Addr::new(10, 233, 8, 0)));
        assert_eq!(pool.to_string(), "10.233.4.0/22");
        for bad in [
            "",
            "10.233.0.0",
            "10.233.0.1/16",
            "8.8.0.0/16",
            "0.0.0.0/0",
            "10.0.0.0/33",
            "10.0.0.0/31",
        ] {
            bad.parse::<AddressPool>().expect_err(bad);
        }
    }
}
