//! Reads sysfs: lists of devices by subsystem (from libudev, or from the directories), attributes, links.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use leaf_host::files;

use crate::HardwareError;

/// The longest attribute that is read, in bytes: an EDID has at most 256 blocks of 128 bytes.
const MAX_ATTRIBUTE_BYTES: u64 = 32 * 1024;

/// A sysfs file system, or a directory of the same shape. Paths of devices begin with `/devices/`.
pub(crate) struct Tree {
    root: PathBuf,
    /// The devices by subsystem, if libudev has listed them.
    listed: Option<BTreeMap<String, Vec<String>>>,
    /// The properties of devices in udev's database, by path; empty if no udevd has run.
    properties: BTreeMap<String, BTreeMap<String, String>>,
}

/// The properties of udev's database that the inventory uses.
const PROPERTIES: [&str; 5] = [
    "ID_VENDOR_FROM_DATABASE",
    "ID_MODEL_FROM_DATABASE",
    "ID_V4L_CAPABILITIES",
    "ID_INPUT_JOYSTICK",
    "ID_INPUT_TABLET",
];

/// Whether a udevd runs or has run on this host.
pub(crate) fn udev_has_database() -> bool {
    Path::new("/run/udev/data").is_dir()
}

impl Tree {
    /// Opens the tree below `root`.
    pub(crate) fn open(root: &Path) -> Result<Self, HardwareError> {
        fs::read_dir(root.join("devices")).map_err(|source| HardwareError::Sysfs {
            path: root.join("devices"),
            source,
        })?;
        Ok(Self {
            root: root.to_owned(),
            listed: None,
            properties: BTreeMap::new(),
        })
    }

    /// Has libudev list the devices of these subsystems, with the properties in its database. It reads `/sys` only.
    pub(crate) fn ask_udev(&mut self, subsystems: &[&str]) -> Result<(), HardwareError> {
        let udev = |source| HardwareError::Udev { source };
        let mut enumerator = udev::Enumerator::new().map_err(udev)?;
        for subsystem in subsystems {
            enumerator.match_subsystem(subsystem).map_err(udev)?;
        }
        let database = udev_has_database();
        let mut listed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for device in enumerator.scan_devices().map_err(udev)? {
            let (Some(subsystem), Some(path)) = (
                device.subsystem().and_then(|text| text.to_str()),
                device.devpath().to_str(),
            ) else {
                continue;
            };
            if database {
                let known: BTreeMap<String, String> = PROPERTIES
                    .iter()
                    .filter_map(|name| {
                        let value = device.property_value(name)?.to_str()?;
                        Some(((*name).to_owned(), value.to_owned()))
                    })
                    .collect();
                if !known.is_empty() {
                    self.properties.insert(path.to_owned(), known);
                }
            }
            listed
                .entry(subsystem.to_owned())
                .or_default()
                .push(path.to_owned());
        }
        for paths in listed.values_mut() {
            paths.sort();
        }
        self.listed = Some(listed);
        Ok(())
    }

    /// Returns the paths of the devices of a subsystem (a bus or a class), sorted.
    pub(crate) fn list(&self, subsystem: &str) -> Vec<String> {
        if let Some(listed) = &self.listed {
            return listed.get(subsystem).cloned().unwrap_or_default();
        }
        let mut paths: Vec<String> = [format!("bus/{subsystem}/devices"), format!("class/{subsystem}")]
            .into_iter()
            .flat_map(|directory| {
                let entries = fs::read_dir(self.root.join(&directory))
                    .into_iter()
                    .flatten()
                    .flatten();
                entries
                    .filter_map(|entry| resolve(&directory, fs::read_link(entry.path()).ok()?.to_str()?))
                    .collect::<Vec<_>>()
            })
            .collect();
        paths.sort();
        paths.dedup();
        paths
    }

    /// Returns a property from udev's database.
    pub(crate) fn property(&self, path: &str, name: &str) -> Option<&str> {
        Some(self.properties.get(path)?.get(name)?.as_str())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns the bytes of an attribute, or `None` if it can't be read.
    pub(crate) fn bytes(&self, path: &str, name: &str) -> Option<Vec<u8>> {
        use std::io::Read as _;
        let file = files::open(&self.at(path).join(name)).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_ATTRIBUTE_BYTES).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Returns an attribute's text without surrounding blanks and control characters, or `None` if it is empty.
    pub(crate) fn text(&self, path: &str, name: &str) -> Option<String> {
        let bytes = self.bytes(path, name)?;
        let text = String::from_utf8_lossy(&bytes);
        let text: String = text
            .trim_matches(|c: char| c.is_whitespace() || c.is_control())
            .to_owned();
        let text: String = text.chars().filter(|c| !c.is_control()).take(256).collect();
        (!text.is_empty()).then_some(text)
    }

    /// Returns an attribute without its prefix `0x`.
    pub(crate) fn hex(&self, path: &str, name: &str) -> Option<String> {
        let text = self.text(path, name)?.to_ascii_lowercase();
        Some(text.strip_prefix("0x").unwrap_or(&text).to_owned())
    }

    /// Returns the value of a key of the device's `uevent`.
    pub(crate) fn uevent(&self, path: &str, key: &str) -> Option<String> {
        let bytes = self.bytes(path, "uevent")?;
        let text = String::from_utf8_lossy(&bytes);
        text.lines()
            .filter_map(|line| line.split_once('='))
            .find(|(name, value)| *name == key && !value.is_empty())
            .map(|(_, value)| value.trim_matches('"').to_owned())
    }

    /// Returns the name that a link of the device points to: its `driver`.
    pub(crate) fn link(&self, path: &str, name: &str) -> Option<String> {
        let target = fs::read_link(self.at(path).join(name)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// Returns the device's bus, or `None` if it belongs to a class.
    pub(crate) fn bus(&self, path: &str) -> Option<String> {
        let target = fs::read_link(self.at(path).join("subsystem")).ok()?;
        let mut parts = target.iter().rev().filter_map(|part| part.to_str());
        let name = parts.next()?;
        (parts.next()? == "bus").then(|| name.to_owned())
    }

    /// Returns the names in a device's directory, sorted.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.at(path))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Returns the device that a link in a device's directory points to.
    pub(crate) fn follow(&self, path: &str, name: &str) -> Option<String> {
        let target = fs::read_link(self.at(path).join(name)).ok()?;
        resolve(path, target.to_str()?)
    }
}

/// Returns the device path that a link in `directory` points to, without reading the file system.
fn resolve(directory: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    (parts.first() == Some(&"devices")).then(|| format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ports, units};

    #[test]
    fn libudev_and_the_directories_of_sysfs_list_the_same_devices() {
        let root = Path::new("/sys");
        let directories = Tree::open(root).expect("sysfs");
        let subsystems: Vec<&str> = units::BUSES.into_iter().chain(ports::CLASSES).collect();
        let mut libudev = Tree::open(root).expect("sysfs");
        libudev.ask_udev(&subsystems).expect("libudev");
        let mut count = 0;
        for subsystem in subsystems {
            // Other tests create virtual network interfaces at the same time.
            let list = |tree: &Tree| {
                let mut list = tree.list(subsystem);
                list.retain(|path| !path.starts_with("/devices/virtual/net/"));
                list
            };
            assert_eq!(list(&directories), list(&libudev), "{subsystem}");
            count += list(&directories).len();
        }
        assert!(count > 0, "a machine without hardware");
    }

    #[test]
    fn a_link_is_followed_within_sysfs_only() {
        let bus = "bus/pci/devices";
        assert_eq!(
            resolve(bus, "../../../devices/pci0000:00/0000:00:02.0").as_deref(),
            Some("/devices/pci0000:00/0000:00:02.0")
        );
        assert_eq!(resolve(bus, "../../../../../etc/passwd"), None);
    }
}
