//! Hardware as inputs and outputs: devices and their ports.
//!
//! `leaf-hardware` looks at the host (udev, sysfs, nixos-facter) and makes an [`Inventory`]; [`crate::diff`] says what
//! changed since the last look.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::DeviceId;

/// What a leaf sees on its host in one look.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Inventory {
    /// The devices, by id.
    pub devices: BTreeMap<DeviceId, Device>,
}

/// One piece of hardware with its inputs and outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// Stable across reboots; across ports too where `identity` says so.
    pub id: DeviceId,
    /// What tells this device from another.
    pub identity: Identity,
    /// What it is for.
    pub kind: DeviceKind,
    /// Present, absent or failed.
    pub status: DeviceStatus,
    /// The maker's name, or its id in hexadecimal where no name is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The model's name, or its id in hexadecimal where no name is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The serial number, or for a network card its permanent MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The bus it is on: `pci`, `usb`, `virtio`, `platform`, `acpi`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
    /// The kernel drivers bound to it or to a part of it, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drivers: Vec<String>,
    /// Its path below `/sys`, beginning with `/devices/`; it says where the device is, not which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sysfs_path: Option<String>,
    /// Its inputs and outputs, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Facts that only some kinds have, such as `size_bytes`, `mac_address`, `speed_mbits`, `modalias`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// What a device's id is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// Bus, ids and a serial number or hardware address: it is known again in another port.
    Serial,
    /// Bus, ids and the place on the bus: nothing else tells two of the same model apart.
    Path,
}

/// What a device is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// A video source.
    Camera,
    /// A sound card or a part of one.
    Sound,
    /// A screen, known by its EDID.
    Monitor,
    /// A graphics card or display controller.
    Graphics,
    /// A network card or network interface.
    Network,
    /// A disk, solid-state or rotating, or a virtual one.
    Disk,
    /// An optical drive.
    Optical,
    /// A keyboard.
    Keyboard,
    /// A mouse or another pointing device.
    Mouse,
    /// A touchpad or touch screen.
    Touch,
    /// Another input device: a game pad, a lid switch, a power button.
    Input,
    /// A Bluetooth controller.
    Bluetooth,
    /// A modem.
    Modem,
    /// A smart-card reader.
    SmartCard,
    /// A fingerprint reader.
    Fingerprint,
    /// A printer.
    Printer,
    /// A serial port.
    Serial,
    /// A GPIO controller.
    Gpio,
    /// An I2C bus.
    I2c,
    /// A trusted platform module.
    Tpm,
    /// A hardware watchdog.
    Watchdog,
    /// Temperature, voltage, fan and power sensors.
    Sensor,
    /// A memory module.
    Memory,
    /// A processor.
    Processor,
    /// A controller of disks.
    StorageController,
    /// A controller of memory cards.
    MmcController,
    /// A USB controller.
    UsbController,
    /// A USB hub.
    Hub,
    /// A bridge between buses.
    Bridge,
    /// Something else.
    Other,
}

/// Whether a device is there and usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceStatus {
    /// There, and in use by a driver or in no need of one.
    Present,
    /// It was there; it is remembered.
    Absent,
    /// There, but without a driver.
    Failed,
}

/// One input or output of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Port {
    /// What the port is called on its device: `eth0`, `video0`, `pcmC0D0p`, `HDMI-A-1`, `sda`.
    pub name: String,
    /// Whether data comes in, goes out, or both.
    pub direction: Direction,
    /// What flows through it.
    pub medium: Medium,
    /// The device node or interface, such as `/dev/video0`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// The way data flows, seen from the leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Into the leaf.
    Input,
    /// Out of the leaf.
    Output,
    /// Both ways.
    Both,
}

/// What flows through a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// Network packets.
    Network,
    /// Blocks of storage.
    Block,
    /// Pictures.
    Video,
    /// Sound.
    Audio,
    /// What a screen shows.
    Display,
    /// Drawing and computing commands to a graphics processor.
    Render,
    /// Keys, motion and switches.
    Input,
    /// Bytes on a serial line.
    Serial,
    /// Bluetooth.
    Bluetooth,
    /// Smart-card commands.
    SmartCard,
    /// Biometric samples.
    Biometric,
    /// Pages to print.
    Print,
    /// Single wires.
    Gpio,
    /// An I2C bus.
    I2c,
    /// Keys and measurements of a TPM.
    Tpm,
    /// Watchdog keep-alives.
    Watchdog,
    /// Measured values.
    Sensor,
    /// Something else.
    Other,
}
