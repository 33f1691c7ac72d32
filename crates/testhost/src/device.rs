//! Devices that are plugged in while the machine runs, and plugged in again when it starts after a power cut.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use crate::network::Network;
use crate::qmp::Qmp;
use crate::{pause, ports, share};

/// The time limit for a guest to release a device.
const GONE: Duration = Duration::from_secs(60);

/// A plugged device, to be passed to [`Host::unplug`](super::Host::unplug).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Plugged(usize);

/// The backend of a device.
#[derive(Debug, Clone)]
enum Backend {
    None,
    /// An empty disk of its own, or a given file, which is read and written.
    Disk {
        file: Option<PathBuf>,
        bytes: u64,
    },
    /// A disconnected cable.
    Cable,
    /// A link of the machine with this name to a network.
    Network {
        network: Network,
        machine: String,
    },
    /// A serial line without another end.
    Line,
    Memory {
        mib: u64,
    },
}

/// A device that can be plugged in.
#[derive(Debug, Clone)]
pub struct Device {
    /// The arguments of QEMU's `device_add`, without id, port and backend.
    arguments: Value,
    backend: Backend,
    place: Place,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    PciExpress,
    Usb,
    Slot,
}

impl Device {
    fn new(arguments: Value, backend: Backend, place: Place) -> Self {
        Self {
            arguments,
            backend,
            place,
        }
    }

    fn disk(arguments: Value, place: Place) -> Self {
        Self::new(
            arguments,
            Backend::Disk {
                file: None,
                bytes: 64 << 20,
            },
            place,
        )
    }

    /// Returns a virtio disk of 64 MiB with this serial number.
    pub fn virtio_blk(serial: &str) -> Self {
        Self::disk(
            json!({"driver": "virtio-blk-pci", "serial": serial}),
            Place::PciExpress,
        )
    }

    /// Returns an NVMe disk of 64 MiB.
    pub fn nvme(serial: &str) -> Self {
        Self::disk(json!({"driver": "nvme", "serial": serial}), Place::PciExpress)
    }

    /// Returns a removable USB disk of 64 MiB.
    pub fn usb_storage(serial: &str) -> Self {
        Self::disk(
            json!({"driver": "usb-storage", "serial": serial, "removable": true}),
            Place::Usb,
        )
    }

    /// Returns a virtio network card with this address (`"52:54:00:aa:00:01"`) and a disconnected cable.
    pub fn virtio_net(mac: &str) -> Self {
        Self::new(
            json!({"driver": "virtio-net-pci", "mac": mac, "romfile": ""}),
            Backend::Cable,
            Place::PciExpress,
        )
    }

    /// Returns an Intel network card with a disconnected cable.
    pub fn e1000e(mac: &str) -> Self {
        Self::new(
            json!({"driver": "e1000e", "mac": mac, "romfile": ""}),
            Backend::Cable,
            Place::PciExpress,
        )
    }

    /// Returns a USB network card with a disconnected cable.
    pub fn usb_net(mac: &str) -> Self {
        Self::new(
            json!({"driver": "usb-net", "mac": mac}),
            Backend::Cable,
            Place::Usb,
        )
    }

    /// Returns a USB keyboard.
    pub fn usb_keyboard(serial: &str) -> Self {
        Self::new(
            json!({"driver": "usb-kbd", "serial": serial}),
            Backend::None,
            Place::Usb,
        )
    }

    /// Returns a USB tablet, a pointer with absolute positions.
    pub fn usb_tablet(serial: &str) -> Self {
        Self::new(
            json!({"driver": "usb-tablet", "serial": serial}),
            Backend::None,
            Place::Usb,
        )
    }

    /// Returns a USB sound card, which has no serial number in QEMU.
    pub fn usb_audio() -> Self {
        Self::new(
            json!({"driver": "usb-audio", "audiodev": "silence"}),
            Backend::None,
            Place::Usb,
        )
    }

    /// Returns a USB serial port without another end.
    pub fn usb_serial(serial: &str) -> Self {
        let arguments = json!({"driver": "usb-serial", "serial": serial, "always-plugged": true});
        Self::new(arguments, Backend::Line, Place::Usb)
    }

    /// Returns a memory module.
    pub fn memory(mib: u64) -> Self {
        Self::new(json!({"driver": "pc-dimm"}), Backend::Memory { mib }, Place::Slot)
    }

    /// Returns the disk with this file as its content, which is read and written.
    #[must_use]
    pub fn with_file(mut self, path: &Path) -> Self {
        if let Backend::Disk { file, .. } = &mut self.backend {
            *file = Some(path.to_owned());
        }
        self
    }

    /// Returns the network card of the machine with this name on a network.
    pub(crate) fn on_network(network: &Network, machine: &str) -> Self {
        let backend = Backend::Network {
            network: network.clone(),
            machine: machine.to_owned(),
        };
        Self {
            backend,
            ..Self::virtio_net(&new_mac())
        }
    }
}

/// Returns a random hardware address with QEMU's prefix.
pub(crate) fn new_mac() -> String {
    let hex = random_hex(3);
    format!("52:54:00:{}:{}:{}", &hex[..2], &hex[2..4], &hex[4..])
}

/// Returns `count` random bytes as hexadecimal text.
pub(crate) fn random_hex(count: usize) -> String {
    let mut bytes = vec![0; count];
    // Never fails for so few bytes once the kernel has started.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    HEXLOWER.encode(&bytes)
}

pub(crate) fn id(plugged: Plugged) -> String {
    format!("device{}", plugged.0)
}

fn backend_id(plugged: Plugged) -> String {
    format!("backend{}", plugged.0)
}

/// The plugged devices.
#[derive(Debug, Default)]
pub(crate) struct Rack {
    devices: Vec<Option<(Device, Option<usize>)>>,
}

/// Returns the hardware address of the card on a machine's network.
pub(crate) fn network_mac(rack: &Rack, number: usize) -> Option<&str> {
    rack.devices
        .iter()
        .flatten()
        .filter(|(device, _)| matches!(device.backend, Backend::Network { .. }))
        .nth(number)
        .and_then(|(device, _)| device.arguments["mac"].as_str())
}

impl Rack {
    /// Assigns a slot to a device.
    pub(crate) fn add(&mut self, device: Device) -> Result<Plugged> {
        let taken: Vec<usize> = self
            .devices
            .iter()
            .flatten()
            .filter_map(|(_, port)| *port)
            .collect();
        let port = match device.place {
            // The last ones are for shared directories.
            Place::PciExpress => {
                let free = (0..ports::COUNT - share::SLOTS).find(|port| !taken.contains(port));
                ensure!(
                    free.is_some(),
                    "all {} slots for devices are in use",
                    ports::COUNT - share::SLOTS
                );
                free
            }
            Place::Usb | Place::Slot => None,
        };
        self.devices.push(Some((device, port)));
        Ok(Plugged(self.devices.len() - 1))
    }

    pub(crate) fn forget(&mut self, plugged: Plugged) {
        if let Some(device) = self.devices.get_mut(plugged.0) {
            *device = None;
        }
    }

    pub(crate) fn plug_all(&self, qmp: &mut Qmp, directory: &Path) -> Result<()> {
        (0..self.devices.len())
            .filter(|number| self.devices[*number].is_some())
            .try_for_each(|number| self.plug(Plugged(number), qmp, directory))
    }

    pub(crate) fn plug(&self, plugged: Plugged, qmp: &mut Qmp, directory: &Path) -> Result<()> {
        let (device, port) = self.get(plugged)?;
        let mut arguments = device.arguments.clone();
        arguments["id"] = json!(id(plugged));
        match device.place {
            Place::PciExpress => arguments["bus"] = json!(format!("port{}", port.unwrap_or_default())),
            Place::Usb => arguments["bus"] = json!("usb.0"),
            Place::Slot => {}
        }
        if let Some(key) = device.backend.open(plugged, qmp, directory)? {
            arguments[key] = json!(backend_id(plugged));
        }
        let added = qmp.execute("device_add", arguments);
        if added.is_err() {
            let _ = device.backend.close(plugged, qmp);
        }
        added.map(|_| ())
    }

    pub(crate) fn unplug(&self, plugged: Plugged, qmp: &mut Qmp) -> Result<()> {
        let (device, _) = self.get(plugged)?;
        let name = id(plugged);
        qmp.execute("device_del", json!({"id": name}))?;
        qmp.wait("DEVICE_DELETED", GONE, |data| data["device"] == name.as_str())
            .with_context(|| format!("the guest does not release {name}"))?;
        device.backend.close(plugged, qmp)
    }

    fn get(&self, plugged: Plugged) -> Result<&(Device, Option<usize>)> {
        let device = self.devices.get(plugged.0).and_then(Option::as_ref);
        device.context("that device is not plugged in")
    }
}

impl Backend {
    /// Creates the backend, and returns the argument by which a device refers to it.
    fn open(&self, plugged: Plugged, qmp: &mut Qmp, directory: &Path) -> Result<Option<&'static str>> {
        let id = backend_id(plugged);
        let (command, arguments, key) = match self {
            Self::None => return Ok(None),
            Self::Disk { file, bytes } => {
                let file = match file {
                    Some(file) => file.clone(),
                    None => own_disk(&directory.join(&id), *bytes)?,
                };
                let file = json!({"driver": "file", "filename": file, "discard": "unmap"});
                let cache = json!({"direct": false, "no-flush": true});
                (
                    "blockdev-add",
                    json!({"node-name": id, "driver": "raw", "file": file, "cache": cache}),
                    "drive",
                )
            }
            Self::Cable => (
                "netdev_add",
                json!({"type": "hubport", "id": id, "hubid": 1000 + plugged.0}),
                "netdev",
            ),
            Self::Network { network, machine } => ("netdev_add", network.backend(&id, machine)?, "netdev"),
            Self::Line => (
                "chardev-add",
                json!({"id": id, "backend": {"type": "null", "data": {}}}),
                "chardev",
            ),
            Self::Memory { mib } => (
                "object-add",
                json!({"qom-type": "memory-backend-ram", "id": id, "size": mib << 20}),
                "memdev",
            ),
        };
        qmp.execute(command, arguments)?;
        Ok(Some(key))
    }

    fn close(&self, plugged: Plugged, qmp: &mut Qmp) -> Result<()> {
        let id = backend_id(plugged);
        let (command, arguments) = match self {
            Self::None => return Ok(()),
            Self::Disk { .. } => ("blockdev-del", json!({"node-name": id})),
            Self::Cable | Self::Network { .. } => ("netdev_del", json!({"id": id})),
            Self::Line => ("chardev-remove", json!({"id": id})),
            Self::Memory { .. } => ("object-del", json!({"id": id})),
        };
        // The event of a device's removal precedes the release of its backend.
        let deadline = Instant::now() + GONE;
        loop {
            match qmp.execute(command, arguments.clone()) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => pause(Duration::from_millis(20)),
            }
        }
    }
}

/// Creates the file of a disk that has none; its content survives a power cut.
fn own_disk(file: &Path, bytes: u64) -> Result<PathBuf> {
    fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(file)
        .and_then(|disk| disk.set_len(bytes))
        .with_context(|| format!("can't make {}", file.display()))?;
    Ok(file.to_owned())
}
