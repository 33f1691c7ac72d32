//! A directory made like sysfs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use leaf_core::hardware::{Device, DeviceKind, Inventory};
use leaf_hardware::{Sources, scan};

/// A machine that exists as files only.
pub(crate) struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(directory.path().join("devices")).expect("a new directory");
        Self { directory }
    }

    pub(crate) fn sources(&self) -> Sources {
        Sources {
            sysfs: self.directory.path().to_owned(),
            udev: false,
            names: vec![self.directory.path().join("names")],
            report: None,
        }
    }

    pub(crate) fn scan(&self) -> Inventory {
        scan(&self.sources()).expect("a machine of files").inventory
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path.trim_start_matches('/'))
    }

    /// Adds a device of a bus (`bus/pci`) or a class (`class/net`) with its attributes.
    pub(crate) fn device(&self, path: &str, subsystem: &str, attributes: &[(&str, &str)]) {
        let directory = self.path(path);
        fs::create_dir_all(&directory).expect("a directory below /devices");
        for (name, text) in attributes {
            self.attribute(path, name, format!("{text}\n").as_bytes());
        }
        if subsystem.is_empty() {
            return;
        }
        let depth = path.trim_start_matches('/').split('/').count();
        let up = "../".repeat(depth);
        symlink(format!("{up}{subsystem}"), directory.join("subsystem")).expect("a new link");
        let (listing, up) = match subsystem.strip_prefix("bus/") {
            Some(_) => (format!("{subsystem}/devices"), "../../../"),
            None => (subsystem.to_owned(), "../../"),
        };
        fs::create_dir_all(self.path(&listing)).expect("a directory for the subsystem");
        let name = Path::new(path).file_name().expect("a path");
        symlink(format!("{up}{}", &path[1..]), self.path(&listing).join(name)).expect("a new link");
    }

    pub(crate) fn attribute(&self, path: &str, name: &str, bytes: &[u8]) {
        let file = self.path(path).join(name);
        fs::create_dir_all(file.parent().expect("below the device")).expect("a directory");
        fs::write(file, bytes).expect("a file");
    }

    pub(crate) fn driver(&self, path: &str, driver: &str) {
        symlink(format!("../drivers/{driver}"), self.path(path).join("driver")).expect("a new link");
    }

    /// Takes a device away, with all below it.
    pub(crate) fn remove(&self, path: &str) {
        fs::remove_dir_all(self.path(path)).expect("the device");
        for parent in ["bus", "class"] {
            for link in links(&self.path(parent)) {
                if !link.exists() {
                    fs::remove_file(link).expect("a link");
                }
            }
        }
    }

    pub(crate) fn pci(
        &self,
        slot: &str,
        class: &str,
        vendor: &str,
        device: &str,
        driver: Option<&str>,
    ) -> String {
        let path = format!("/devices/pci0000:00/0000:{slot}");
        let (class, vendor, device) = (format!("0x{class}"), format!("0x{vendor}"), format!("0x{device}"));
        self.device(
            &path,
            "bus/pci",
            &[("class", &class), ("vendor", &vendor), ("device", &device)],
        );
        if let Some(driver) = driver {
            self.driver(&path, driver);
        }
        path
    }

    /// Adds a USB device below the controller at 00:14.0; each interface is class, subclass, protocol, driver.
    pub(crate) fn usb(
        &self,
        port: &str,
        attributes: &[(&str, &str)],
        interfaces: &[(&str, Option<&str>)],
    ) -> String {
        let path = format!("/devices/pci0000:00/0000:00:14.0/usb1/1-{port}");
        self.device(&path, "bus/usb", attributes);
        self.driver(&path, "usb");
        for (number, (class, driver)) in interfaces.iter().enumerate() {
            let interface = format!("{path}/1-{port}:1.{number}");
            let (class, rest) = class.split_at(2);
            let (subclass, protocol) = rest.split_at(2);
            self.device(
                &interface,
                "bus/usb",
                &[
                    ("bInterfaceClass", class),
                    ("bInterfaceSubClass", subclass),
                    ("bInterfaceProtocol", protocol),
                ],
            );
            if let Some(driver) = driver {
                self.driver(&interface, driver);
            }
        }
        path
    }
}

fn links(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_symlink() {
            found.push(path);
        } else if path.is_dir() {
            found.extend(links(&path));
        }
    }
    found
}

/// The only device of a kind.
pub(crate) fn only(inventory: &Inventory, kind: DeviceKind) -> &Device {
    let all: Vec<&Device> = inventory
        .devices
        .values()
        .filter(|device| device.kind == kind)
        .collect();
    assert_eq!(all.len(), 1, "{kind:?} in {inventory:#?}");
    all[0]
}
