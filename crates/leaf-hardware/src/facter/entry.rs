//! Turns an entry of a report into a device, or adds it to one.

use std::collections::BTreeMap;

use leaf_core::hardware::{DeviceKind, Direction, Medium};
use serde_json::{Map, Value};

use crate::draft::{Draft, Drafts, port};
use crate::path;
use crate::ports;
use crate::units;

type Fields = Map<String, Value>;

/// Collects the drafts of a report's entries.
pub(super) struct Reader {
    drafts: Drafts,
    by_index: BTreeMap<u64, String>,
    /// The interfaces of each USB device, and whether a driver is bound to each.
    interfaces: BTreeMap<String, Vec<([u8; 3], bool)>>,
}

impl Reader {
    pub(super) fn new(by_index: BTreeMap<u64, String>) -> Self {
        Self {
            drafts: Drafts::new(),
            by_index,
            interfaces: BTreeMap::new(),
        }
    }

    /// Adds an entry and returns the key of its draft.
    pub(super) fn device(&mut self, class: &str, number: usize, entry: &Fields) -> String {
        let place = self.locate(class, number, entry);
        let key = place.path.clone();
        let draft = match place.bus.as_str() {
            "virtual" => {
                let kind = if key.ends_with("net") {
                    DeviceKind::Network
                } else {
                    DeviceKind::Disk
                };
                ports::virtual_unit(&mut self.drafts, kind)
            }
            bus => self.drafts.entry(key.clone()).or_insert_with(|| {
                let mut draft = Draft::new(&key, bus);
                draft.in_sysfs = place.in_sysfs;
                draft
            }),
        };
        if place.virtio {
            draft.bus = "virtio".to_owned();
        }
        // A root hub has the kernel's names, not those of its controller.
        let named = !(bus_of(entry) == "usb" && draft.bus != "usb");
        if named && draft.bus != "virtual" {
            names(draft, entry);
        }
        drivers(draft, entry);
        let kind = kind(class, entry, draft);
        draft.kinds.insert(kind);
        if let Some(modalias) = text(entry, "module_alias") {
            draft.attributes.entry("modalias".to_owned()).or_insert(modalias);
        }
        if draft.bus == "pci" && bus_of(entry) == "pci" {
            pci(draft, entry);
        }
        if draft.bus == "usb"
            && let Some(says) = interface(entry)
        {
            let driven = text(entry, "driver").is_some();
            self.interfaces
                .entry(key.clone())
                .or_default()
                .push((says, driven));
        }
        add_ports(class, draft, entry, kind);
        key
    }

    /// Adds the processors, one for each socket.
    pub(super) fn processors(&mut self, list: Option<&Value>) {
        for entry in objects(list) {
            let socket = number(entry.get("physical_id")).unwrap_or_default();
            let path = format!("processor {socket}");
            let draft = self
                .drafts
                .entry(path.clone())
                .or_insert_with(|| Draft::new(&path, "cpu"));
            draft.in_sysfs = false;
            draft.kinds.insert(DeviceKind::Processor);
            draft.vendor = draft.vendor.take().or(text(entry, "vendor_name"));
            let figures = || {
                let figure = |name| number(entry.get(name)).map(|n| format!("{name} {n}"));
                Some(format!("{} {}", figure("family")?, figure("model")?))
            };
            draft.model = draft.model.take().or(text(entry, "model_name")).or_else(figures);
            if let Some(architecture) = text(entry, "architecture") {
                draft.attributes.insert("architecture".to_owned(), architecture);
            }
            if let Some(cores) = number(entry.get("cores")).filter(|cores| *cores > 0) {
                draft.attributes.insert("cores".to_owned(), cores.to_string());
            }
        }
    }

    /// Adds the memory modules that are installed.
    pub(super) fn memory(&mut self, list: Option<&Value>) {
        for entry in objects(list) {
            // In units of 1024 bytes; an empty socket has none.
            let Some(size) = number(entry.get("size")).filter(|size| *size > 0) else {
                continue;
            };
            let handle = number(entry.get("handle")).unwrap_or_default();
            let location = [text(entry, "bank_location"), text(entry, "location")];
            let location: Vec<String> = location.into_iter().flatten().collect();
            let mut path = format!("memory {}", location.join(" "));
            if self.drafts.contains_key(&path) {
                path = format!("{path} {handle}");
            }
            let mut draft = Draft::new(&path, "memory");
            draft.in_sysfs = false;
            draft.kinds.insert(DeviceKind::Memory);
            draft.vendor = text(entry, "manufacturer");
            draft.model = text(entry, "part_number");
            ports::add_size(&mut draft, size.saturating_mul(1024));
            self.drafts.insert(path, draft);
        }
    }

    /// Returns the drafts, each with the ports of its kinds.
    pub(super) fn finish(mut self) -> Drafts {
        for (key, interfaces) in self.interfaces {
            if let Some(draft) = self.drafts.get_mut(&key) {
                units::usb_interfaces(draft, &interfaces);
            }
        }
        for draft in self.drafts.values_mut() {
            let kinds: Vec<DeviceKind> = draft.kinds.iter().copied().collect();
            for kind in kinds {
                unnamed_port(draft, kind);
            }
        }
        self.drafts
    }

    fn locate(&self, class: &str, number: usize, entry: &Fields) -> Place {
        if class == "monitor" {
            let card = super::entry::number(entry.get("attached_to"))
                .and_then(|index| self.by_index.get(&index))
                .map_or_else(String::new, |path| {
                    path::unit(path)
                        .map_or(path.as_str(), |(unit, _)| unit)
                        .to_owned()
                });
            let nth = (1..).find(|nth| !self.drafts.contains_key(&format!("{card}/screen {nth}")));
            return Place::without_sysfs(&format!("{card}/screen {}", nth.unwrap_or_default()), "display");
        }
        let link = text(entry, "sysfs_device_link").or_else(|| text(entry, "sysfs_id"));
        let Some(found) = link else {
            let name = text(entry, "unix_device_name").unwrap_or_else(|| format!("{class} {number}"));
            let bus = bus_of(entry);
            return Place::without_sysfs(&name, if bus.is_empty() { "other" } else { &bus });
        };
        if found.starts_with("/class/net/") || found.starts_with("/devices/virtual/net") {
            return Place::without_sysfs("virtual net", "virtual");
        }
        if found.starts_with("/class/block/") || found.starts_with("/devices/virtual/block") {
            return Place::without_sysfs("virtual block", "virtual");
        }
        if let Some(name) = found.strip_prefix("/class/") {
            // `scsi_generic/sg3`: the bus address identifies the disk.
            let bus = bus_of(entry);
            let address = text(entry, "sysfs_bus_id").map(|id| format!("/{id}"));
            let same = address.and_then(|id| self.drafts.keys().find(|key| key.ends_with(&id)));
            return Place::without_sysfs(same.map_or(name, String::as_str), &bus);
        }
        real(&found)
    }
}

/// The piece of hardware that an entry belongs to.
struct Place {
    path: String,
    bus: String,
    in_sysfs: bool,
    virtio: bool,
}

impl Place {
    fn without_sysfs(path: &str, bus: &str) -> Self {
        Self {
            path: path.to_owned(),
            bus: bus.to_owned(),
            in_sysfs: false,
            virtio: false,
        }
    }
}

/// Returns the piece of hardware that a path below `/devices` belongs to, from the path alone.
fn real(found: &str) -> Place {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let virtio = found
        .split('/')
        .any(|part| part.strip_prefix("virtio").is_some_and(is_number));
    let place = |path: &str, bus: &str| Place {
        path: path.to_owned(),
        bus: bus.to_owned(),
        in_sysfs: true,
        virtio,
    };
    // A device behind an I2C adapter (`i2c-1`) or a keyboard controller is a piece of hardware.
    let (mut end, mut behind_adapter) = (0, false);
    for part in found.split('/') {
        end += part.len() + 1;
        let upto = found.get(..end - 1).unwrap_or(found);
        if behind_adapter {
            return place(upto, "i2c");
        }
        behind_adapter = part.strip_prefix("i2c-").is_some_and(is_number);
        if part.strip_prefix("serio").is_some_and(is_number) {
            return place(upto, "serio");
        }
    }
    if let Some((unit, bus)) = path::unit(found) {
        return place(unit, bus);
    }
    let cut = ["/input/", "/tty/", "/net/", "/block/", "/virtio"]
        .iter()
        .filter_map(|word| found.find(word))
        .min()
        .and_then(|at| found.get(..at))
        .filter(|path| !path.is_empty())
        .unwrap_or(found);
    let bus = match cut.split('/').nth(2) {
        Some("platform") => "platform",
        Some(top) if top.starts_with("pnp") => "pnp",
        Some(top) if top.starts_with("LNXSYSTM") => "acpi",
        _ => "other",
    };
    place(cut, bus)
}

/// The objects of a list, or none where there is no list.
fn objects(list: Option<&Value>) -> impl Iterator<Item = &Fields> {
    let list = list.and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object)
}

/// Returns a field's text, or `None` if it is empty or not a text.
fn text(entry: &Fields, name: &str) -> Option<String> {
    let text = entry.get(name)?.as_str()?.trim();
    (!text.is_empty()).then(|| text.chars().filter(|c| !c.is_control()).take(256).collect())
}

/// Returns a number, also one written as `"0x1000"`.
pub(super) fn number(value: Option<&Value>) -> Option<u64> {
    match value? {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        },
        _ => None,
    }
}

fn bus_of(entry: &Fields) -> String {
    entry
        .get("bus_type")
        .and_then(|bus| bus.get("name").unwrap_or(bus).as_str())
        .unwrap_or_default()
        .to_ascii_lowercase()
}

/// Returns the hexadecimal digits and the name of an id `{hex, name, value}`, or of a plain text.
fn id(value: Option<&Value>) -> (Option<String>, Option<String>) {
    let clean = |text: &str| {
        let text = text.trim();
        (!text.is_empty()).then(|| text.to_owned())
    };
    match value {
        Some(Value::String(name)) => (None, clean(name)),
        Some(Value::Object(id)) => {
            let hex = number(id.get("value")).filter(|value| *value > 0);
            let name = id.get("name").and_then(Value::as_str).and_then(clean);
            (hex.map(|value| format!("{value:04x}")), name)
        }
        _ => (None, None),
    }
}

fn names(draft: &mut Draft, entry: &Fields) {
    let (vendor_id, vendor) = id(entry.get("vendor"));
    let (device_id, device) = id(entry.get("device"));
    if draft.vendor_id.is_none() && (vendor_id.is_some() || draft.bus != "pci") {
        draft.device_id = draft.device_id.take().or(device_id);
        draft.vendor_id = vendor_id;
    }
    draft.vendor = draft.vendor.take().or(vendor);
    draft.model = draft.model.take().or(device).or_else(|| {
        // The program's own combined name adds nothing to a number.
        draft.device_id.is_none().then(|| text(entry, "model")).flatten()
    });
    draft.serial = draft.serial.take().or_else(|| text(entry, "serial"));
}

fn drivers(draft: &mut Draft, entry: &Fields) {
    draft.drivers.extend(text(entry, "driver"));
    let list = entry
        .get("drivers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    draft.drivers.extend(
        list.filter_map(Value::as_str)
            .filter(|name| !name.is_empty())
            .map(str::to_owned),
    );
}

fn class_code(entry: &Fields) -> Option<String> {
    let byte = |name: &str| number(entry.get(name)?.get("value"));
    let interface = byte("pci_interface").unwrap_or_default();
    Some(format!(
        "{:02x}{:02x}{interface:02x}",
        byte("base_class")?,
        byte("sub_class").unwrap_or_default()
    ))
}

fn pci(draft: &mut Draft, entry: &Fields) {
    let Some(code) = class_code(entry) else {
        return;
    };
    // A report doesn't tell which card the firmware uses, so none of them counts as failed.
    draft.failed = draft.drivers.is_empty() && units::pci_needs_driver(&code, true);
    draft.attributes.insert("class".to_owned(), code);
}

fn interface(entry: &Fields) -> Option<[u8; 3]> {
    let detail = entry.get("detail")?;
    let byte = |value: &Value| u8::try_from(number(Some(value.get("value").unwrap_or(value)))?).ok();
    Some([
        byte(detail.get("interface_class")?)?,
        detail
            .get("interface_subclass")
            .and_then(byte)
            .unwrap_or_default(),
        detail
            .get("interface_protocol")
            .and_then(byte)
            .unwrap_or_default(),
    ])
}

fn kind(class: &str, entry: &Fields, draft: &Draft) -> DeviceKind {
    let has_name = |field: &str, word: &str| {
        id(entry.get(field))
            .1
            .is_some_and(|name| name.eq_ignore_ascii_case(word))
    };
    match class {
        "camera" => DeviceKind::Camera,
        "sound" => DeviceKind::Sound,
        "monitor" => DeviceKind::Monitor,
        "graphics_card" => DeviceKind::Graphics,
        "network_controller" | "network_interface" => DeviceKind::Network,
        "disk" => DeviceKind::Disk,
        "cdrom" => DeviceKind::Optical,
        "keyboard" => DeviceKind::Keyboard,
        "mouse" if has_name("base_class", "touchpad") || has_name("base_class", "touchscreen") => {
            DeviceKind::Touch
        }
        "mouse" => DeviceKind::Mouse,
        "bluetooth" => DeviceKind::Bluetooth,
        "modem" => DeviceKind::Modem,
        "chip_card" => DeviceKind::SmartCard,
        "mmc_controller" => DeviceKind::MmcController,
        // A virtio disk has no separate controller.
        "storage_controller" if bus_of(entry) == "virtio" => DeviceKind::Disk,
        "storage_controller" => DeviceKind::StorageController,
        "usb_controller" => DeviceKind::UsbController,
        "bridge" => DeviceKind::Bridge,
        "hub" if draft.bus == "usb" => DeviceKind::Hub,
        "pci" => class_code(entry).map_or(DeviceKind::Other, |code| units::pci_kind(&code)),
        "unknown" | "usb" if has_name("sub_class", "Serial controller") => DeviceKind::Serial,
        _ => DeviceKind::Other,
    }
}

/// Adds the ports in the entry.
fn add_ports(class: &str, draft: &mut Draft, entry: &Fields, kind: DeviceKind) {
    let mut nodes: Vec<String> = text(entry, "unix_device_name").into_iter().collect();
    let list = entry
        .get("unix_device_names")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    nodes.extend(list.filter_map(Value::as_str).map(str::to_owned));
    if matches!(class, "network_interface" | "disk" | "cdrom") {
        // `/class/block/sda`; other names are ignored.
        let path = text(entry, "sysfs_id").unwrap_or_default();
        nodes = path
            .rsplit_once('/')
            .map(|(_, name)| name.to_owned())
            .into_iter()
            .collect();
    }
    for node in nodes {
        let name = node.strip_prefix("/dev/").unwrap_or(&node);
        let (name, direction, medium) = match (class, kind) {
            ("network_interface" | "network_controller", _) => (name, Direction::Both, Medium::Network),
            ("disk", _) => (name, Direction::Both, Medium::Block),
            ("cdrom", _) => (name, Direction::Input, Medium::Block),
            _ => match name.rsplit_once('/') {
                None if name.starts_with("video") => (name, Direction::Input, Medium::Video),
                None if name.starts_with("tty") => (name, Direction::Both, Medium::Serial),
                Some(("input", event)) if event.starts_with("event") => {
                    (event, Direction::Input, Medium::Input)
                }
                _ => continue,
            },
        };
        let node = match medium {
            Medium::Block => format!("/dev/{name}"),
            _ => node.clone(),
        };
        draft.port(port(name, direction, medium, Some(&node)));
    }
    if class == "disk"
        && draft.bus != "virtual"
        && let Some(bytes) = size(entry)
    {
        ports::add_size(draft, bytes);
    }
    if class == "monitor" {
        if let Some(path) = draft.path.rsplit_once('/').map(|(card, _)| card.to_owned()) {
            draft.attributes.insert("attached_to".to_owned(), path);
        }
        for name in ["width_millimetres", "height_millimetres"] {
            let value = entry.get("detail").and_then(|detail| number(detail.get(name)));
            if let Some(value) = value.filter(|value| *value > 0) {
                draft.attributes.insert(name.to_owned(), value.to_string());
            }
        }
    }
}

/// Returns a disk's size in bytes: its sectors times their size.
fn size(entry: &Fields) -> Option<u64> {
    entry.get("resources")?.as_array()?.iter().find_map(|resource| {
        let kind = resource.get("type").or_else(|| resource.get("Type"))?.as_str()?;
        let unit = resource.get("unit")?.as_str()?;
        let (count, each) = (
            number(resource.get("value_1"))?,
            number(resource.get("value_2")).unwrap_or(1),
        );
        let bytes = count.checked_mul(each.max(1))?;
        (kind == "size" && unit == "sectors" && bytes > 0).then_some(bytes)
    })
}

/// Adds the port that a device of this kind has; a report names only a few.
fn unnamed_port(draft: &mut Draft, kind: DeviceKind) {
    let (name, direction, medium) = match kind {
        DeviceKind::Camera => ("video", Direction::Input, Medium::Video),
        DeviceKind::Sound => ("sound", Direction::Both, Medium::Audio),
        DeviceKind::Monitor => ("screen", Direction::Output, Medium::Display),
        DeviceKind::Graphics => ("display", Direction::Output, Medium::Display),
        DeviceKind::Network => ("network", Direction::Both, Medium::Network),
        DeviceKind::Disk => ("block", Direction::Both, Medium::Block),
        DeviceKind::Optical => ("block", Direction::Input, Medium::Block),
        DeviceKind::Keyboard | DeviceKind::Mouse | DeviceKind::Touch => {
            ("input", Direction::Input, Medium::Input)
        }
        DeviceKind::Bluetooth => ("bluetooth", Direction::Both, Medium::Bluetooth),
        DeviceKind::Modem | DeviceKind::Serial => ("serial", Direction::Both, Medium::Serial),
        DeviceKind::SmartCard => ("smart_card", Direction::Both, Medium::SmartCard),
        DeviceKind::Fingerprint => ("fingerprint", Direction::Input, Medium::Biometric),
        DeviceKind::Printer => ("printer", Direction::Output, Medium::Print),
        _ => return,
    };
    if !draft.ports.iter().any(|port| port.medium == medium) {
        draft.port(port(name, direction, medium, None));
    }
}
