//! Hardware as inputs and outputs: udev, sysfs and nixos-facter reports become one [`Inventory`].
//!
//! [`look`] takes one look at this host: it blocks for some milliseconds, so call it from a blocking task. [`Monitor`]
//! says when another look is worth while; it knows nothing else. [`facter::read`] makes an inventory of a report,
//! [`facter::run`] lets the program write one. What changed between two looks is said by
//! [`leaf_core::diff::diff`].
//!
//! A device is a piece of hardware (a PCI function, a USB device with all its interfaces, a disk, a screen); what the
//! kernel makes of it (an interface, a disk, a video node) are its ports. What software makes is no device. Nothing
//! that changes by itself is part of a device (temperatures, link states, loads), so two looks at a host where nothing
//! was changed are equal.
//!
//! Reading order: `path` (what a sysfs path says), `draft` (kinds and ids), `units` and `ports` (sysfs), `facter`.

mod draft;
mod edid;
pub mod facter;
mod input;
mod merge;
mod monitor;
mod names;
mod path;
mod ports;
mod sysfs;
mod units;

use std::path::{Path, PathBuf};

use leaf_core::hardware::Inventory;
use leaf_core::id::DeviceId;

pub use monitor::{Monitor, MonitorError};

/// Where to look.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The sysfs file system.
    pub sysfs: PathBuf,
    /// Whether libudev is asked for the devices and for what its databases know. It can only see `/sys`.
    pub udev: bool,
    /// Folders with `pci.ids` and `usb.ids`, the first that has one is read.
    pub names: Vec<PathBuf>,
    /// A nixos-facter report of this host.
    pub report: Option<PathBuf>,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            sysfs: PathBuf::from("/sys"),
            udev: true,
            names: [
                "/usr/share/hwdata",
                "/usr/share/misc",
                "/run/current-system/sw/share/hwdata",
            ]
            .into_iter()
            .map(PathBuf::from)
            .collect(),
            report: None,
        }
    }
}

/// What one look saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The devices that are here now.
    pub inventory: Inventory,
    /// What the report lists and this host does not have, as sysfs paths or names: the report is out of date.
    pub gone_since_report: Vec<String>,
    /// The devices that are here and not in the report; empty without a report.
    pub new_since_report: Vec<DeviceId>,
}

/// Why a look failed.
#[derive(Debug, thiserror::Error)]
pub enum HardwareError {
    /// There is no sysfs where it should be.
    #[error("can't list devices in {}: is sysfs mounted there?", path.display())]
    Sysfs {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// libudev failed.
    #[error("libudev can't list the devices")]
    Udev {
        /// What the system says.
        source: std::io::Error,
    },
    /// The report can't be read.
    #[error("can't use the nixos-facter report {}", path.display())]
    Report {
        /// The report.
        path: PathBuf,
        /// What is wrong with it.
        source: facter::FacterError,
    },
}

/// Returns what this host has now. It blocks.
///
/// Without a running udevd, and where libudev fails, the kernel's own attributes have to do: ids, ports and drivers
/// are the same, names may be numbers. A report adds names and what has no sysfs path (processors, memory modules);
/// what it lists and sysfs doesn't have is told apart, not believed.
///
/// # Errors
/// [`HardwareError`] when sysfs can't be listed, or the report can't be read.
pub fn look(sources: &Sources) -> Result<Look, HardwareError> {
    let mut tree = sysfs::Tree::open(&sources.sysfs)?;
    // Without its database libudev knows what the folders say, and takes ten times as long.
    if sources.udev && sources.sysfs == Path::new("/sys") && sysfs::udev_has_database() {
        let subsystems: Vec<&str> = units::BUSES.into_iter().chain(ports::CLASSES).collect();
        if let Err(error) = tree.ask_udev(&subsystems) {
            tracing::warn!(error = &error as &dyn std::error::Error, "looking without udev");
        }
    }
    let mut drafts = units::scan(&tree);
    ports::scan(&tree, &mut drafts);
    names::fill(&mut drafts, sources.udev, &sources.names);
    let merged = match &sources.report {
        None => merge::Merged::default(),
        Some(path) => {
            let report = facter::drafts_of_file(path).map_err(|source| HardwareError::Report {
                path: path.clone(),
                source,
            })?;
            merge::merge(&mut drafts, report)
        }
    };
    let (inventory, ids) = draft::finish(drafts);
    Ok(Look {
        inventory,
        gone_since_report: merged.gone,
        new_since_report: merged
            .new
            .iter()
            .filter_map(|path| ids.get(path).cloned())
            .collect(),
    })
}
