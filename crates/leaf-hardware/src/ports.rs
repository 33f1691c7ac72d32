//! Inputs and outputs from sysfs: the devices of classes (network interfaces, disks, cameras, …) become ports of the
//! piece of hardware that they belong to.
//!
//! Virtual interfaces made by software (bridges, veths, tunnels, loop devices) are left out: they come and go with
//! containers. The loopback interface and memory used as a disk are ports of two devices of the bus `virtual`.

use leaf_core::hardware::{DeviceKind, Direction, Medium};

use crate::draft::{Draft, Drafts, port};
use crate::edid;
use crate::input;
use crate::sysfs::Tree;
use crate::units;

/// The classes that are scanned (`gpio` is a bus in newer kernels).
pub(crate) const CLASSES: [&str; 17] = [
    "net",
    "block",
    "nvme",
    "video4linux",
    "sound",
    "drm",
    "input",
    "tty",
    "bluetooth",
    "gpio",
    "i2c-dev",
    "tpm",
    "watchdog",
    "hwmon",
    "usbmisc",
    "wwan",
    "virtio-ports",
];

/// Whether the device at this path may have a port. Virtual network interfaces, as those of containers, have none.
pub(crate) fn may_have_port(path: &str) -> bool {
    path.strip_prefix("/devices/virtual/net/")
        .is_none_or(|rest| rest.split('/').next() == Some("lo"))
}

/// Adds the ports, and the devices without a bus: monitors.
pub(crate) fn scan(tree: &Tree, drafts: &mut Drafts) {
    for class in CLASSES {
        for path in tree.list(class) {
            let Some((_, name)) = path.rsplit_once('/') else {
                continue;
            };
            let found = Found {
                tree,
                class,
                path: &path,
                name,
            };
            match found.owner() {
                Some((unit, bus)) => found.add(drafts, &unit, &bus),
                None => found.add_virtual(drafts),
            }
        }
    }
}

/// A device of a class.
struct Found<'a> {
    tree: &'a Tree,
    class: &'a str,
    path: &'a str,
    name: &'a str,
}

impl Found<'_> {
    fn owner(&self) -> Option<(String, String)> {
        if let Some(rest) = self.path.strip_prefix("/devices/virtual/nvme-subsystem/") {
            // A multipath disk has no parent controller; its subsystem links to the controllers that reach it.
            let subsystem = format!("/devices/virtual/nvme-subsystem/{}", rest.split('/').next()?);
            let controller = self.tree.names(&subsystem).into_iter().find_map(|name| {
                let number = name.strip_prefix("nvme")?;
                number
                    .bytes()
                    .all(|b| b.is_ascii_digit())
                    .then(|| self.tree.follow(&subsystem, &name))?
            })?;
            return units::owner(self.tree, &controller);
        }
        units::owner(self.tree, self.path)
    }

    fn text(&self, attribute: &str) -> Option<String> {
        self.tree.text(self.path, attribute)
    }

    fn node(&self, directory: &str) -> String {
        format!("/dev/{directory}{}", self.name)
    }

    /// Adds this device to its unit. A device that is not a port creates no unit.
    fn add(&self, drafts: &mut Drafts, unit: &str, bus: &str) {
        let name = self.name;
        let mut simple = |kind: Option<DeviceKind>, direction, medium, node: Option<String>| {
            let draft = units::ensure(self.tree, drafts, unit, bus);
            draft.kinds.extend(kind);
            draft.port(port(name, direction, medium, node.as_deref()));
        };
        match self.class {
            "net" if !self.path.contains("/bluetooth/") => self.net(drafts, unit, bus),
            "block" => self.block(drafts, unit, bus),
            "nvme" => {
                let draft = units::ensure(self.tree, drafts, unit, bus);
                draft.model = self.text("model").or(draft.model.take());
                draft.serial = self.text("serial");
            }
            "video4linux" => self.video(drafts, unit, bus),
            "sound" => {
                let direction = match name {
                    name if name.starts_with("midi") => Direction::Both,
                    name if name.starts_with("pcm") && name.ends_with('c') => Direction::Input,
                    name if name.starts_with("pcm") && name.ends_with('p') => Direction::Output,
                    _ => return,
                };
                simple(
                    Some(DeviceKind::Sound),
                    direction,
                    Medium::Audio,
                    Some(self.node("snd/")),
                );
            }
            "drm" => self.drm(drafts, unit, bus),
            "input" if name.starts_with("event") => self.input(drafts, unit, bus),
            "tty"
                // A port of type 0 (`PORT_UNKNOWN`) has no hardware.
                if self.text("type").is_none_or(|kind| kind != "0") => {
                    simple(
                        Some(DeviceKind::Serial),
                        Direction::Both,
                        Medium::Serial,
                        Some(self.node("")),
                    );
                }
            "bluetooth" if !name.contains(':') => {
                simple(
                    Some(DeviceKind::Bluetooth),
                    Direction::Both,
                    Medium::Bluetooth,
                    None,
                );
            }
            "gpio" if name.starts_with("gpiochip") => {
                simple(
                    Some(DeviceKind::Gpio),
                    Direction::Both,
                    Medium::Gpio,
                    Some(self.node("")),
                );
            }
            "i2c-dev" => simple(
                Some(DeviceKind::I2c),
                Direction::Both,
                Medium::I2c,
                Some(self.node("")),
            ),
            "tpm" => simple(
                Some(DeviceKind::Tpm),
                Direction::Both,
                Medium::Tpm,
                Some(self.node("")),
            ),
            "watchdog" => {
                simple(
                    Some(DeviceKind::Watchdog),
                    Direction::Output,
                    Medium::Watchdog,
                    Some(self.node("")),
                );
            }
            "hwmon" => {
                // The device's number depends on the order; the name identifies the chip.
                let draft = units::ensure(self.tree, drafts, unit, bus);
                draft.kinds.insert(DeviceKind::Sensor);
                let chip = self.text("name").unwrap_or_else(|| "hwmon".to_owned());
                draft.port(port(&chip, Direction::Input, Medium::Sensor, None));
            }
            "usbmisc" if name.starts_with("lp") => {
                simple(
                    Some(DeviceKind::Printer),
                    Direction::Output,
                    Medium::Print,
                    Some(self.node("usb/")),
                );
            }
            "usbmisc" if name.starts_with("cdc-wdm") => {
                simple(
                    Some(DeviceKind::Modem),
                    Direction::Both,
                    Medium::Serial,
                    Some(self.node("")),
                );
            }
            "wwan" if name.contains("at") || name.contains("mbim") || name.contains("qmi") => {
                simple(
                    Some(DeviceKind::Modem),
                    Direction::Both,
                    Medium::Serial,
                    Some(self.node("")),
                );
            }
            "virtio-ports" => {
                simple(
                    Some(DeviceKind::Serial),
                    Direction::Both,
                    Medium::Serial,
                    Some(self.node("")),
                );
            }
            _ => {}
        }
    }

    fn net(&self, drafts: &mut Drafts, unit: &str, bus: &str) {
        let draft = units::ensure(self.tree, drafts, unit, bus);
        draft.kinds.insert(DeviceKind::Network);
        draft.port(port(self.name, Direction::Both, Medium::Network, Some(self.name)));
        // An address that was set or generated (`addr_assign_type` is not 0) may change. The permanent address of a
        // wireless interface is read from its radio, and that of a bond's member from the bond, which replaced it.
        let own = || {
            let permanent = self.text("addr_assign_type").is_some_and(|kind| kind == "0");
            permanent.then(|| self.text("address")).flatten()
        };
        let address = self
            .tree
            .text(&format!("{}/phy80211", self.path), "macaddress")
            .or_else(|| {
                self.tree
                    .text(&format!("{}/bonding_slave", self.path), "perm_hwaddr")
            })
            .or_else(own)
            .filter(|address| address.bytes().any(|b| !matches!(b, b'0' | b':')));
        draft.addresses.extend(address);
    }

    fn block(&self, drafts: &mut Drafts, unit: &str, bus: &str) {
        if self.text("partition").is_some() || self.text("hidden").is_some_and(|text| text == "1") {
            return;
        }
        let optical = self.name.starts_with("sr");
        let read_only = optical || self.text("ro").is_some_and(|text| text == "1");
        let direction = if read_only {
            Direction::Input
        } else {
            Direction::Both
        };
        let draft = units::ensure(self.tree, drafts, unit, bus);
        draft.kinds.insert(if optical {
            DeviceKind::Optical
        } else {
            DeviceKind::Disk
        });
        draft.port(port(self.name, direction, Medium::Block, Some(&self.node(""))));
        // In units of 512 bytes, whatever the disk's sector size (`Documentation/ABI/stable/sysfs-block`).
        let bytes = self.text("size").and_then(|text| text.parse::<u64>().ok());
        if let Some(bytes) = bytes
            .and_then(|sectors| sectors.checked_mul(512))
            .filter(|bytes| *bytes > 0)
        {
            add_size(draft, bytes);
        }
        for (attribute, file) in [("removable", "removable"), ("rotational", "queue/rotational")] {
            if self.text(file).is_some_and(|text| text == "1") {
                draft.attributes.insert(attribute.to_owned(), "true".to_owned());
            }
        }
        if draft.serial.is_none() {
            draft.serial = self.text("serial");
        }
    }

    fn video(&self, drafts: &mut Drafts, unit: &str, bus: &str) {
        let capabilities = self.tree.property(self.path, "ID_V4L_CAPABILITIES");
        // The second node of a USB camera carries the metadata of its images.
        let metadata = match capabilities {
            Some(capabilities) => {
                !capabilities.contains(":capture:") && !capabilities.contains(":video_output:")
            }
            None => bus == "usb" && self.text("index").is_some_and(|text| text != "0"),
        };
        if metadata || !self.name.starts_with("video") {
            return;
        }
        let named = self.text("name").unwrap_or_default().to_ascii_lowercase();
        let codec = ["codec", "dec", "enc", "isp"]
            .iter()
            .any(|word| named.contains(word))
            && bus != "usb";
        let direction = match capabilities {
            Some(capabilities) if !capabilities.contains(":capture:") => Direction::Output,
            _ if codec => Direction::Both,
            _ => Direction::Input,
        };
        let draft = units::ensure(self.tree, drafts, unit, bus);
        draft.kinds.insert(if codec {
            DeviceKind::Other
        } else {
            DeviceKind::Camera
        });
        draft.port(port(self.name, direction, Medium::Video, Some(&self.node(""))));
    }

    fn drm(&self, drafts: &mut Drafts, unit: &str, bus: &str) {
        let draft = units::ensure(self.tree, drafts, unit, bus);
        draft.kinds.insert(DeviceKind::Graphics);
        let Some(connector) = self
            .name
            .strip_prefix("card")
            .and_then(|rest| rest.split_once('-'))
        else {
            if self.name.starts_with("render") {
                draft.port(port(
                    self.name,
                    Direction::Both,
                    Medium::Render,
                    Some(&self.node("dri/")),
                ));
            }
            return;
        };
        let (_, connector) = connector;
        if connector.starts_with("Writeback") {
            return;
        }
        draft.port(port(connector, Direction::Output, Medium::Display, None));
        let connected = self.text("status").is_some_and(|text| text == "connected");
        let edid = self.tree.bytes(self.path, "edid").as_deref().and_then(edid::read);
        if let (true, Some(edid)) = (connected, edid) {
            let monitor = edid::monitor(&edid, &format!("{unit}/{connector}"), unit, Some(connector));
            drafts.insert(monitor.path.clone(), monitor);
        }
    }

    fn input(&self, drafts: &mut Drafts, unit: &str, bus: &str) {
        let Some((device, _)) = self.path.rsplit_once('/') else {
            return;
        };
        if self.path.contains("/sound/") {
            // The jack detection of a sound card.
            return;
        }
        let draft = units::ensure(self.tree, drafts, unit, bus);
        let kind = match self.tree.property(self.path, "ID_INPUT_JOYSTICK") {
            Some("1") => DeviceKind::Input,
            _ => input::kind(|file| self.tree.text(device, file)),
        };
        draft.kinds.insert(kind);
        draft.port(port(
            self.name,
            Direction::Input,
            Medium::Input,
            Some(&self.node("input/")),
        ));
        if draft.model.is_none() {
            draft.model = self.tree.text(device, "name");
        }
    }

    /// Adds the loopback interface and memory used as a disk.
    fn add_virtual(&self, drafts: &mut Drafts) {
        // `ARPHRD_LOOPBACK` is 772.
        let loopback = self.class == "net" && self.text("type").is_some_and(|text| text == "772");
        let memory = self.class == "block" && (self.name.starts_with("zram") || is_ram_disk(self.name));
        let draft = match (loopback, memory) {
            (true, _) => virtual_unit(drafts, DeviceKind::Network),
            (_, true) => virtual_unit(drafts, DeviceKind::Disk),
            _ => return,
        };
        let (medium, node) = if loopback {
            (Medium::Network, self.name.to_owned())
        } else {
            (Medium::Block, self.node(""))
        };
        draft.port(port(self.name, Direction::Both, medium, Some(&node)));
    }
}

fn is_ram_disk(name: &str) -> bool {
    name.strip_prefix("ram")
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Returns the device for virtual ports without hardware: `virtual-net` or `virtual-block`.
pub(crate) fn virtual_unit(drafts: &mut Drafts, kind: DeviceKind) -> &mut Draft {
    let name = match kind {
        DeviceKind::Network => "net",
        _ => "block",
    };
    drafts.entry(format!("virtual {name}")).or_insert_with(|| {
        let mut draft = Draft::new(name, "virtual");
        draft.in_sysfs = false;
        draft.kinds.insert(kind);
        draft.device_id = Some(name.to_owned());
        draft
    })
}

/// Adds the size of a disk, in bytes, to its device.
pub(crate) fn add_size(draft: &mut Draft, bytes: u64) {
    let size = draft.attributes.entry("size_bytes".to_owned()).or_default();
    let sum = size.parse::<u64>().unwrap_or_default().saturating_add(bytes);
    *size = sum.to_string();
}
