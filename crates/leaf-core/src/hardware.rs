//! Hardware as inputs and outputs: devices and their ports.
//!
//! `leaf-hardware` scans the host (udev, sysfs, nixos-facter) and makes an [`Inventory`]; [`crate::diff`] compares it
//! with the known devices.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::DeviceId;

/// The devices of one hardware scan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Inventory {
    /// The devices, by id.
    pub devices: BTreeMap<DeviceId, Device>,
}

/// A device: a piece of hardware with its inputs and outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// The device's id: stable across reboots and, depending on `identity`, across ports.
    pub id: DeviceId,
    /// How the device is identified.
    pub identity: Identity,
    /// The kind of device.
    pub kind: DeviceKind,
    /// Whether it is present, absent or failed.
    pub status: DeviceStatus,
    /// The vendor's name, or its id in hexadecimal if the name is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    /// The model's name, or its id in hexadecimal if the name is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The serial number, or for a network card its permanent MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The bus: `pci`, `usb`, `virtio`, `platform`, `acpi`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
    /// The kernel drivers bound to it or to a part of it, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drivers: Vec<String>,
    /// Its path below `/sys`, beginning with `/devices/`. It is a location, not an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sysfs_path: Option<String>,
    /// Its inputs and outputs, sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Attributes that only some kinds have, such as `size_bytes`, `mac_address`, `speed_mbits`, `modalias`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// How a device is identified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// By bus, ids and a serial number or hardware address: it is recognized in another port.
    Serial,
    /// By bus, ids and its place on the bus: nothing else distinguishes two devices of the same model.
    Path,
}

/// The kind of a device.
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
    /// A disk controller.
    StorageController,
    /// A memory card controller.
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

/// The status of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceStatus {
    /// Present, with a driver or without need of one.
    Present,
    /// Not present any more; it is remembered.
    Absent,
    /// Present, but without a driver.
    Failed,
}

/// An input or output of a device.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct Port {
    /// The port's name on its device: `eth0`, `video0`, `pcmC0D0p`, `HDMI-A-1`, `sda`.
    pub name: String,
    /// The direction of data.
    pub direction: Direction,
    /// The medium.
    pub medium: Medium,
    /// The device node or interface, such as `/dev/video0`, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}

/// The direction of data, as seen from the leaf.
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

/// The medium of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// Network packets.
    Network,
    /// Blocks of storage.
    Block,
    /// Images.
    Video,
    /// Sound.
    Audio,
    /// The content of a screen.
    Display,
    /// Rendering and compute commands to a graphics processor.
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
