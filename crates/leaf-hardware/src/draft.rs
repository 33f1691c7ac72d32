//! Drafts and the inventory: a [`Draft`] collects what sysfs or a report says about one piece of hardware; [`finish`]
//! chooses each device's kind and id.
//!
//! An id is `<bus>-<vendor>-<device>-<token>`. The token is the serial number, or a hash of the hardware address. It is
//! the [place](crate::path::place) if neither exists, if the serial number is one that vendors leave unset, or if two
//! devices have the same one.

use std::collections::{BTreeMap, BTreeSet};

use data_encoding::HEXLOWER;
use leaf_core::hardware::{Device, DeviceKind, DeviceStatus, Direction, Identity, Inventory, Medium, Port};
use leaf_core::id::DeviceId;
use sha2::{Digest, Sha256};

use crate::path;

/// What is known about one piece of hardware during a scan.
#[derive(Debug, Clone, Default)]
pub(crate) struct Draft {
    /// Its path below `/sys`, or a made-up one where it has none (a monitor of a report, a memory module).
    pub(crate) path: String,
    /// Whether the path exists in sysfs.
    pub(crate) in_sysfs: bool,
    pub(crate) bus: String,
    pub(crate) vendor_id: Option<String>,
    pub(crate) device_id: Option<String>,
    pub(crate) vendor: Option<String>,
    pub(crate) model: Option<String>,
    pub(crate) serial: Option<String>,
    /// The serial number from the report. It is not used in the id, which must not depend on a report.
    pub(crate) reported_serial: Option<String>,
    /// Permanent hardware addresses; the first one is used in the id.
    pub(crate) addresses: BTreeSet<String>,
    /// The kinds that it may have; [`RANK`] chooses one of them.
    pub(crate) kinds: BTreeSet<DeviceKind>,
    /// Keyboard or mouse, whichever its first interface says.
    pub(crate) first_input: Option<DeviceKind>,
    pub(crate) drivers: BTreeSet<String>,
    pub(crate) ports: BTreeSet<Port>,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Whether it should have a driver and has none.
    pub(crate) failed: bool,
}

/// The drafts by path.
pub(crate) type Drafts = BTreeMap<String, Draft>;

/// The kinds by precedence: a camera with a microphone is a camera.
const RANK: [DeviceKind; 30] = [
    DeviceKind::Monitor,
    DeviceKind::Camera,
    DeviceKind::Optical,
    DeviceKind::Disk,
    DeviceKind::Fingerprint,
    DeviceKind::Printer,
    DeviceKind::Bluetooth,
    DeviceKind::Modem,
    DeviceKind::Network,
    DeviceKind::SmartCard,
    DeviceKind::Sound,
    DeviceKind::Graphics,
    DeviceKind::StorageController,
    DeviceKind::MmcController,
    DeviceKind::UsbController,
    DeviceKind::Hub,
    DeviceKind::Touch,
    DeviceKind::Keyboard,
    DeviceKind::Mouse,
    DeviceKind::Input,
    DeviceKind::Serial,
    DeviceKind::Tpm,
    DeviceKind::I2c,
    DeviceKind::Gpio,
    DeviceKind::Watchdog,
    DeviceKind::Sensor,
    DeviceKind::Memory,
    DeviceKind::Processor,
    DeviceKind::Bridge,
    DeviceKind::Other,
];

/// Returns a port. Its node is a file below `/dev`, or the interface's name.
pub(crate) fn port(name: &str, direction: Direction, medium: Medium, node: Option<&str>) -> Port {
    Port {
        name: name.to_owned(),
        direction,
        medium,
        node: node.map(str::to_owned),
    }
}

impl Draft {
    /// Returns an empty draft; the bus `other` replaces one without a name.
    pub(crate) fn new(path: &str, bus: &str) -> Self {
        let bus = if slug(bus, 12).is_empty() { "other" } else { bus };
        Self {
            path: path.to_owned(),
            in_sysfs: true,
            bus: bus.to_owned(),
            ..Self::default()
        }
    }

    /// Adds a port unless there is one of its name.
    pub(crate) fn port(&mut self, port: Port) {
        if !self.ports.iter().any(|known| known.name == port.name) {
            self.ports.insert(port);
        }
    }

    pub(crate) fn kind(&self) -> DeviceKind {
        let kind = RANK.into_iter().find(|kind| self.kinds.contains(kind));
        match (kind, self.first_input) {
            (Some(DeviceKind::Keyboard | DeviceKind::Mouse), Some(first)) => first,
            (Some(kind), _) => kind,
            (None, _) => DeviceKind::Other,
        }
    }

    fn stem(&self) -> String {
        let mut stem = slug(&self.bus, 12);
        for part in [
            self.vendor_id.as_deref().or(self.vendor.as_deref()),
            self.device_id.as_deref().or(self.model.as_deref()),
        ] {
            let part = slug(part.unwrap_or_default(), 16);
            if !part.is_empty() {
                stem.push('-');
                stem.push_str(&part);
            }
        }
        stem
    }

    /// Returns the part of the id that stays when the device moves to another place.
    fn token(&self) -> Option<String> {
        match (&self.serial, self.addresses.first()) {
            (Some(serial), _) if is_distinctive(serial) => Some(serial_token(serial)),
            (_, Some(address)) => Some(hash(address)),
            _ => None,
        }
    }

    /// Returns the id of a device that only its place distinguishes.
    fn id_by_place(&self) -> String {
        let place = path::place(&self.path);
        let token = slug(&place, 40);
        match token.len() {
            // Virtual devices have no place, and there is one of each.
            0 if place.is_empty() => self.stem(),
            1..40 => format!("{}-{token}", self.stem()),
            _ => format!("{}-{}", self.stem(), hash(&place)),
        }
    }
}

/// Whether a serial number distinguishes two devices of one model.
fn is_distinctive(serial: &str) -> bool {
    let text: String = serial
        .chars()
        .filter(|c| c.is_alphanumeric())
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let same = text.chars().all(|c| text.starts_with(c));
    let counting = "01234567890123456789".contains(&text) || "0123456789abcdef".contains(&text);
    let placeholders = [
        "none",
        "serial",
        "default",
        "tobefilled",
        "unknown",
        "notspecified",
        "empty",
        "invalid",
    ];
    // The serial number of a root hub is the PCI address of its controller.
    let digits = text.trim_start_matches('0');
    text.len() >= 4
        && !same
        && !counting
        && digits.len() >= 3
        && !placeholders.iter().any(|word| text.contains(word))
}

/// Returns a serial number as part of an id: unchanged if it is short and plain, otherwise its hash.
fn serial_token(serial: &str) -> String {
    let serial = serial.trim();
    let plain = serial
        .bytes()
        .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
    if plain && serial.len() <= 32 {
        serial.to_ascii_lowercase()
    } else {
        // Lower-casing would merge serial numbers that differ in case, so others are hashed.
        hash(serial)
    }
}

fn hash(text: &str) -> String {
    HEXLOWER.encode(&Sha256::digest(text.as_bytes())[..6])
}

/// Returns the text in `[a-z0-9_]` with `-` between words, cut at `max`.
fn slug(text: &str, max: usize) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '_') => out.push(c),
            _ if !out.is_empty() && !out.ends_with('-') => out.push('-'),
            _ => {}
        }
        if out.len() >= max {
            break;
        }
    }
    out.trim_matches('-').to_owned()
}

/// Returns the inventory of these drafts, and the device id of each path.
pub(crate) fn finish(drafts: Drafts) -> (Inventory, BTreeMap<String, DeviceId>) {
    let mut claims: BTreeMap<String, u32> = BTreeMap::new();
    for draft in drafts.values() {
        if let Some(token) = draft.token() {
            *claims.entry(format!("{}-{token}", draft.stem())).or_default() += 1;
        }
    }
    let mut inventory = Inventory::default();
    let mut ids = BTreeMap::new();
    for (key, draft) in drafts {
        let own = draft
            .token()
            .map(|token| format!("{}-{token}", draft.stem()))
            .filter(|text| claims.get(text) == Some(&1));
        let (mut text, identity) = match own {
            Some(text) => (text, Identity::Serial),
            None => (draft.id_by_place(), Identity::Path),
        };
        let exists = |text: &str| DeviceId::new(text).is_ok_and(|id| inventory.devices.contains_key(&id));
        if exists(&text) || (identity == Identity::Path && claims.contains_key(&text)) {
            text = format!("{}-{}", draft.stem(), hash(&draft.path));
        }
        let id = DeviceId::new(text.trim_start_matches('-'))
            .expect("a stem of at most 46 and a token of at most 40 characters, all of the alphabet");
        ids.insert(key, id.clone());
        inventory.devices.insert(id.clone(), device(id, identity, draft));
    }
    link_monitors(&mut inventory, &ids);
    (inventory, ids)
}

fn device(id: DeviceId, identity: Identity, draft: Draft) -> Device {
    let kind = draft.kind();
    let mut attributes = draft.attributes;
    if let Some(address) = draft.addresses.first() {
        attributes.insert("mac_address".to_owned(), address.clone());
    }
    let clean = |text: Option<String>| {
        text.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "))
            .filter(|text| !text.is_empty())
    };
    let address = draft
        .addresses
        .first()
        .filter(|_| kind == DeviceKind::Network)
        .cloned();
    Device {
        id,
        identity,
        kind,
        status: if draft.failed {
            DeviceStatus::Failed
        } else {
            DeviceStatus::Present
        },
        vendor: clean(draft.vendor).or(draft.vendor_id),
        model: clean(draft.model).or(draft.device_id),
        serial: clean(draft.serial).or(clean(draft.reported_serial)).or(address),
        bus: Some(draft.bus),
        drivers: draft.drivers.into_iter().collect(),
        sysfs_path: draft.in_sysfs.then_some(draft.path),
        ports: draft.ports.into_iter().collect(),
        attributes,
    }
}

/// Replaces the path of each monitor's graphics card with that card's device id.
fn link_monitors(inventory: &mut Inventory, ids: &BTreeMap<String, DeviceId>) {
    for device in inventory.devices.values_mut() {
        if let Some(path) = device.attributes.remove("attached_to")
            && let Some(id) = ids.get(&path)
        {
            device.attributes.insert("attached_to".to_owned(), id.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usb(port: &str, serial: Option<&str>) -> (String, Draft) {
        let path = format!("/devices/pci0000:00/0000:00:14.0/usb1/1-{port}");
        let mut draft = Draft::new(&path, "usb");
        draft.vendor_id = Some("046d".to_owned());
        draft.device_id = Some("c52b".to_owned());
        draft.serial = serial.map(str::to_owned);
        (path, draft)
    }

    fn ids(drafts: impl IntoIterator<Item = (String, Draft)>) -> Vec<(String, Identity)> {
        let (inventory, _) = finish(drafts.into_iter().collect());
        inventory
            .devices
            .values()
            .map(|device| (device.id.to_string(), device.identity))
            .collect()
    }

    #[test]
    fn an_id_with_a_serial_number_survives_a_move_and_one_with_a_place_does_not() {
        assert_eq!(ids([usb("1", Some("8F3A22"))]), ids([usb("7.2", Some("8F3A22"))]));
        assert_eq!(
            ids([usb("7.2", Some("8F3A22"))]),
            [("usb-046d-c52b-8f3a22".to_owned(), Identity::Serial)]
        );
        assert_eq!(
            ids([usb("7.2", None)]),
            [("usb-046d-c52b-00-14-0-port-7-2".to_owned(), Identity::Path)]
        );
    }

    #[test]
    fn two_devices_with_the_same_serial_number_are_distinguished_by_place() {
        let both = ids([usb("1", Some("8F3A22")), usb("2", Some("8F3A22"))]);
        assert_eq!(both.len(), 2);
        assert!(
            both.iter().all(|(_, identity)| *identity == Identity::Path),
            "{both:?}"
        );
    }

    #[test]
    fn serial_numbers_that_vendors_leave_unset_are_ignored() {
        for serial in [
            "",
            "0",
            "000000000",
            "0001",
            "0123456789ABCDEF",
            "123456789",
            "To be filled by O.E.M.",
            "ffffffff",
        ] {
            assert!(!is_distinctive(serial), "{serial:?}");
        }
        for serial in ["8F3A22", "CNFEH53M044040023282", "200901010001", "FE3326979"] {
            assert!(is_distinctive(serial), "{serial:?}");
        }
        assert_ne!(serial_token("aB12"), serial_token("Ab12"));
    }
}
