//! The pieces of hardware from sysfs: the devices on each bus, with their ids and drivers.

use leaf_core::hardware::DeviceKind;

use crate::draft::{Draft, Drafts};
use crate::path;
use crate::sysfs::Tree;

/// The buses whose devices are pieces of hardware even without a driver.
pub(crate) const BUSES: [&str; 5] = ["pci", "usb", "scsi", "mmc", "virtio"];

/// Returns a draft of each device on these buses.
pub(crate) fn scan(tree: &Tree) -> Drafts {
    let mut drafts = Drafts::new();
    for bus in BUSES {
        for device in tree.list(bus) {
            if let Some((unit, unit_bus)) = path::unit(&device) {
                // Interfaces, root hubs, SCSI hosts and virtio devices belong to a unit that is in the list as well.
                let draft = ensure(tree, &mut drafts, unit, unit_bus);
                draft
                    .drivers
                    .extend(tree.link(&device, "driver").filter(|driver| driver != "usb"));
                if bus == "virtio" {
                    virtio(tree, draft, &device);
                }
            } else if bus == "virtio" {
                // virtio over memory-mapped registers, declared by the firmware.
                if let Some((unit, unit_bus)) = owner(tree, &device) {
                    let draft = ensure(tree, &mut drafts, &unit, &unit_bus);
                    virtio(tree, draft, &device);
                }
            }
        }
    }
    drafts
}

/// Returns the draft of the unit with this path; a new one is filled first.
pub(crate) fn ensure<'a>(tree: &Tree, drafts: &'a mut Drafts, unit: &str, bus: &str) -> &'a mut Draft {
    drafts.entry(unit.to_owned()).or_insert_with(|| {
        let mut draft = Draft::new(unit, bus);
        draft.drivers.extend(tree.link(unit, "driver"));
        match bus {
            "pci" => pci(tree, &mut draft),
            "usb" => usb(tree, &mut draft),
            "scsi" => scsi(tree, &mut draft),
            "mmc" => mmc(tree, &mut draft),
            _ => other(tree, &mut draft),
        }
        if let Some(modalias) = tree.text(unit, "modalias") {
            draft.attributes.insert("modalias".to_owned(), modalias);
        }
        let named = |name| tree.property(unit, name).map(str::to_owned);
        draft.vendor = draft.vendor.take().or_else(|| named("ID_VENDOR_FROM_DATABASE"));
        draft.model = draft.model.take().or_else(|| named("ID_MODEL_FROM_DATABASE"));
        draft
    })
}

/// Returns the path and the bus of the unit that a device of a class belongs to.
pub(crate) fn owner(tree: &Tree, device: &str) -> Option<(String, String)> {
    let known = path::unit(device);
    let mut up = device;
    while let Some((parent, name)) = up.rsplit_once('/') {
        if let Some((unit, bus)) = known
            && up == unit
        {
            return Some((unit.to_owned(), bus.to_owned()));
        }
        if up == "/devices" || parent.is_empty() {
            break;
        }
        if let Some(bus) = tree.bus(up) {
            let adapter = name
                .strip_prefix("i2c-")
                .is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()));
            let bus = match bus.as_str() {
                "i2c" if adapter => None,
                "i2c" | "spi" | "serio" | "pnp" | "acpi" | "amba" | "vmbus" | "xen" | "sdio" | "nd"
                | "ccw" | "firewire" | "spmi" => Some(bus),
                // It belongs to its parent, if that is known.
                "platform" | "isa" if known.is_none() => Some(bus),
                // A device that is connected by radio has no parent.
                "hid" if up.starts_with("/devices/virtual/misc/uhid/") => Some("bluetooth".to_owned()),
                _ => None,
            };
            if let Some(bus) = bus {
                return Some((up.to_owned(), bus));
            }
        }
        up = parent;
    }
    None
}

/// Returns the kind that a PCI class code (`030000`) stands for.
pub(crate) fn pci_kind(class: &str) -> DeviceKind {
    match class.get(..4).unwrap_or(class) {
        "0400" => DeviceKind::Other,
        "0500" | "0580" => DeviceKind::Other,
        "0703" => DeviceKind::Modem,
        "0700" | "0702" => DeviceKind::Serial,
        "0805" => DeviceKind::MmcController,
        "0c03" => DeviceKind::UsbController,
        "0c05" => DeviceKind::I2c,
        "0d11" => DeviceKind::Bluetooth,
        class => match class.get(..2).unwrap_or_default() {
            "01" => DeviceKind::StorageController,
            "02" | "0d" => DeviceKind::Network,
            "03" => DeviceKind::Graphics,
            "04" => DeviceKind::Sound,
            "06" => DeviceKind::Bridge,
            "09" => DeviceKind::Input,
            _ => DeviceKind::Other,
        },
    }
}

/// Whether a PCI function of this class needs a driver. A graphics card that the firmware's frame buffer uses doesn't.
pub(crate) fn pci_needs_driver(class: &str, firmware_draws: bool) -> bool {
    match class.get(..4).unwrap_or(class) {
        "0300" => !firmware_draws,
        "0805" | "0c00" | "0c03" => true,
        // Audio coprocessors, which many machines have and few systems use.
        "0480" => false,
        class => matches!(class.get(..2), Some("01" | "02" | "03" | "04" | "0d")),
    }
}

fn pci(tree: &Tree, draft: &mut Draft) {
    let path = draft.path.clone();
    let class = tree.hex(&path, "class").unwrap_or_default();
    draft.vendor_id = tree.hex(&path, "vendor");
    draft.device_id = tree.hex(&path, "device");
    draft.kinds.insert(pci_kind(&class));
    let draws = tree.text(&path, "boot_vga").is_none_or(|text| text == "1");
    draft.failed = draft.drivers.is_empty() && pci_needs_driver(&class, draws);
    draft.attributes.insert("class".to_owned(), class);
}

/// Adds the kinds of a USB device's interfaces: class, subclass, protocol, and whether a driver is bound to each.
pub(crate) fn usb_interfaces(draft: &mut Draft, interfaces: &[([u8; 3], bool)]) {
    for ([class, subclass, protocol], _) in interfaces {
        let kind = match (class, subclass, protocol) {
            (0x01, _, _) => DeviceKind::Sound,
            (0x02, 0x06 | 0x0d | 0x0e, _) => DeviceKind::Network,
            (0x02, 0x02, _) => DeviceKind::Serial,
            (0x03, _, 1) => DeviceKind::Keyboard,
            (0x03, _, 2) => DeviceKind::Mouse,
            (0x03, _, _) => DeviceKind::Input,
            (0x07, _, _) => DeviceKind::Printer,
            (0x08, _, _) => DeviceKind::Disk,
            (0x09, _, _) => DeviceKind::Hub,
            (0x0b, _, _) => DeviceKind::SmartCard,
            (0x0e, _, _) => DeviceKind::Camera,
            (0xe0, 0x01, 0x01) => DeviceKind::Bluetooth,
            (0xe0, 0x01, 0x03) | (0xef, 0x04, 0x01) => DeviceKind::Network,
            _ => DeviceKind::Other,
        };
        if matches!(kind, DeviceKind::Keyboard | DeviceKind::Mouse) {
            draft.first_input.get_or_insert(kind);
        }
        draft.kinds.insert(kind);
    }
    // Programs serve vendor-specific protocols, smart cards and firmware updates; they need no driver.
    let wants = |class: u8| matches!(class, 0x01 | 0x02 | 0x03 | 0x08 | 0x09 | 0x0e | 0xe0);
    draft.failed = interfaces.iter().any(|([class, ..], _)| wants(*class))
        && interfaces.iter().all(|(_, driven)| !driven);
    let vendors_own = draft.kinds.iter().all(|kind| *kind == DeviceKind::Other);
    if is_named_fingerprint(draft) || (vendors_own && is_of_fingerprint_vendor(draft)) {
        // A program serves it, whatever class it claims.
        draft.kinds.insert(DeviceKind::Fingerprint);
        draft.failed = false;
    }
}

/// Vendors of fingerprint readers with a protocol of their own, as `libfprint` lists them.
const FINGERPRINT_VENDORS: [&str; 11] = [
    "27c6", "06cb", "138a", "10a5", "147e", "1c7a", "08ff", "298d", "2808", "04f3", "05ba",
];

fn is_of_fingerprint_vendor(draft: &Draft) -> bool {
    FINGERPRINT_VENDORS.contains(&draft.vendor_id.as_deref().unwrap_or_default())
}

fn is_named_fingerprint(draft: &Draft) -> bool {
    let said = draft.model.as_deref().unwrap_or_default().to_ascii_lowercase();
    said.contains("fingerprint") || said.contains("biometric")
}

fn usb(tree: &Tree, draft: &mut Draft) {
    let path = draft.path.clone();
    draft.vendor_id = tree.hex(&path, "idVendor");
    draft.device_id = tree.hex(&path, "idProduct");
    draft.vendor = tree.text(&path, "manufacturer");
    draft.model = tree.text(&path, "product");
    draft.serial = tree.text(&path, "serial");
    if let Some(speed) = tree.text(&path, "speed") {
        draft.attributes.insert("speed_mbits".to_owned(), speed);
    }
    let mut interfaces = Vec::new();
    for name in tree.names(&path).into_iter().filter(|name| name.contains(':')) {
        let interface = format!("{path}/{name}");
        let byte = |attribute| {
            let text = tree.hex(&interface, attribute)?;
            u8::from_str_radix(&text, 16).ok()
        };
        let Some(class) = byte("bInterfaceClass") else {
            continue;
        };
        let driver = tree.link(&interface, "driver");
        let rest = [byte("bInterfaceSubClass"), byte("bInterfaceProtocol")];
        interfaces.push((
            [class, rest[0].unwrap_or_default(), rest[1].unwrap_or_default()],
            driver.is_some(),
        ));
        draft.drivers.extend(driver);
    }
    // Every USB device has this driver.
    draft.drivers.remove("usb");
    usb_interfaces(draft, &interfaces);
}

fn scsi(tree: &Tree, draft: &mut Draft) {
    let path = draft.path.clone();
    draft.vendor = tree.text(&path, "vendor");
    draft.model = tree.text(&path, "model");
    // SPC-4, 7.8.15: the unit serial number page is four bytes of header and the text.
    draft.serial = tree
        .bytes(&path, "vpd_pg80")
        .and_then(|page| {
            Some(
                String::from_utf8_lossy(page.get(4..)?)
                    .trim_matches(['\0', ' '])
                    .to_owned(),
            )
        })
        .filter(|text| !text.is_empty())
        .or_else(|| tree.text(&path, "wwid"));
    let kind = match tree.text(&path, "type").as_deref() {
        Some("0" | "14") => DeviceKind::Disk,
        Some("4" | "5" | "7") => DeviceKind::Optical,
        Some("12") => DeviceKind::StorageController,
        _ => DeviceKind::Other,
    };
    draft.kinds.insert(kind);
    draft.failed = draft.drivers.is_empty() && matches!(kind, DeviceKind::Disk | DeviceKind::Optical);
}

fn mmc(tree: &Tree, draft: &mut Draft) {
    let path = draft.path.clone();
    draft.vendor_id = tree
        .hex(&path, "manfid")
        .map(|text| text.trim_start_matches('0').to_owned());
    draft.model = tree.text(&path, "name");
    draft.serial = tree.text(&path, "cid").or_else(|| tree.hex(&path, "serial"));
    let sdio = tree.text(&path, "type").is_some_and(|text| text == "SDIO");
    draft
        .kinds
        .insert(if sdio { DeviceKind::Other } else { DeviceKind::Disk });
}

fn other(tree: &Tree, draft: &mut Draft) {
    let path = draft.path.clone();
    if draft.bus == "bluetooth" {
        // HID_ID=0005:0000046D:0000B342; HID_UNIQ is the remote address.
        if let Some(id) = tree.uevent(&path, "HID_ID") {
            let mut parts = id.split(':').skip(1).map(|part| {
                let part = part.to_ascii_lowercase();
                part.get(part.len().saturating_sub(4)..)
                    .unwrap_or(&part)
                    .to_owned()
            });
            draft.vendor_id = parts.next();
            draft.device_id = parts.next();
        }
        draft.model = tree.uevent(&path, "HID_NAME");
        draft.addresses.extend(tree.uevent(&path, "HID_UNIQ"));
    }
    if draft.bus == "i2c" {
        draft.model = tree.text(&path, "name");
    }
}

fn virtio(tree: &Tree, draft: &mut Draft, device: &str) {
    draft.bus = "virtio".to_owned();
    let driver = tree.link(device, "driver");
    let id = tree.hex(device, "device");
    // The device ids of virtio 1.2, chapter 5.
    let kind = match id.as_deref().map(|id| id.trim_start_matches('0')) {
        Some("1") => DeviceKind::Network,
        Some("2") => DeviceKind::Disk,
        Some("3") => DeviceKind::Serial,
        Some("8") => DeviceKind::StorageController,
        Some("10") => DeviceKind::Graphics,
        Some("12") => DeviceKind::Input,
        Some("19") => DeviceKind::Sound,
        _ => DeviceKind::Other,
    };
    if draft.vendor_id.is_none() {
        draft.vendor_id = tree.hex(device, "vendor");
        draft.device_id = id;
    }
    draft.kinds.remove(&DeviceKind::StorageController);
    draft.kinds.insert(kind);
    draft.failed |= driver.is_none() && kind != DeviceKind::Other;
    draft.drivers.extend(driver);
}
