//! Hardware as inputs and outputs: udev, sysfs and nixos-facter reports become one [`Inventory`].
//!
//! [`scan`] scans this host once: it blocks for some milliseconds, so call it from a blocking task. [`Monitor`] gives a
//! hint when another scan is due. [`facter::read`] turns a report into an inventory, [`facter::run`] runs the program
//! that writes one. [`leaf_core::diff::diff`] returns what changed between two scans.
//!
//! A device is a piece of hardware (a PCI function, a USB device with all its interfaces, a disk, a monitor). What the
//! kernel exposes of it (a network interface, a block device, a video node) are its ports. Virtual devices made by
//! software are left out. A device has no attribute that changes by itself (temperature, link state, load), so two
//! scans of an unchanged host are equal.
//!
//! Reading order: `path` (sysfs paths), `draft` (kinds and ids), `units` and `ports` (sysfs), `facter`.

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

use leaf_core::error::chain;
use leaf_core::hardware::Inventory;
use leaf_core::id::DeviceId;

pub use monitor::{Monitor, MonitorError};

/// The sources that a scan reads.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The mount point of sysfs.
    pub sysfs: PathBuf,
    /// Whether libudev lists the devices and its databases add properties. libudev reads `/sys` only.
    pub udev: bool,
    /// Directories with `pci.ids` and `usb.ids`; each file is read from the first directory that has it.
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

/// The result of one scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The devices that are present.
    pub inventory: Inventory,
    /// The sysfs paths or names of what the report lists and this host does not have: the report is out of date.
    pub gone_since_report: Vec<String>,
    /// The devices that are present and not in the report; empty without a report.
    pub new_since_report: Vec<DeviceId>,
    /// The parts of the report that are left out because they have an unexpected shape.
    pub report_problems: Vec<String>,
}

/// Why a scan failed.
#[derive(Debug, thiserror::Error)]
pub enum HardwareError {
    /// sysfs can't be listed.
    #[error("can't list devices in {}: is sysfs mounted there?", path.display())]
    Sysfs {
        /// The directory.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// libudev failed.
    #[error("libudev can't list the devices")]
    Udev {
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The report can't be read.
    #[error("can't use the nixos-facter report {}", path.display())]
    Report {
        /// The report.
        path: PathBuf,
        /// The reason.
        source: facter::FacterError,
    },
}

/// Returns the devices of this host. Blocks.
///
/// Without a running udevd, or if libudev fails, the scan uses the kernel's attributes alone: ids, ports and drivers
/// are the same, but names may be numbers. A report adds names, and devices without a sysfs path (processors, memory
/// modules). A device that only the report lists is returned separately and not added to the inventory.
///
/// # Errors
/// [`HardwareError`] when sysfs can't be listed, or the report can't be read.
pub fn scan(sources: &Sources) -> Result<Scan, HardwareError> {
    let mut tree = sysfs::Tree::open(&sources.sysfs)?;
    // Without its database libudev returns what the directories contain, and takes ten times as long.
    if sources.udev && sources.sysfs == Path::new("/sys") && sysfs::udev_has_database() {
        let subsystems: Vec<&str> = units::BUSES.into_iter().chain(ports::CLASSES).collect();
        if let Err(error) = tree.ask_udev(&subsystems) {
            tracing::warn!(error = chain(&error), "scanning without udev");
        }
    }
    let mut drafts = units::scan(&tree);
    ports::scan(&tree, &mut drafts);
    names::fill(&mut drafts, sources.udev, &sources.names);
    let (merged, report_problems) = match &sources.report {
        None => (merge::Merged::default(), Vec::new()),
        Some(path) => {
            let read = facter::drafts_of_file(path).map_err(|source| HardwareError::Report {
                path: path.clone(),
                source,
            })?;
            (merge::merge(&mut drafts, read.0), read.1)
        }
    };
    let (inventory, ids) = draft::finish(drafts);
    Ok(Scan {
        inventory,
        gone_since_report: merged.gone,
        new_since_report: merged
            .new
            .iter()
            .filter_map(|path| ids.get(path).cloned())
            .collect(),
        report_problems,
    })
}
