//! Facts about hardware.

use super::declare::facts;
use crate::hardware::Device;
use crate::id::DeviceId;

facts! {
    HardwareFact of "device";

    /// A device is present, for the first time or again.
    Appeared: DeviceAppeared = "appeared" v 1 about Device(device.id) {
        /// The device as it was observed.
        device: Device,
    }

    /// A device differs from the last scan.
    Changed: DeviceChanged = "changed" v 1 about Device(device.id) {
        /// The device as it was observed.
        device: Device,
        /// The fields that differ.
        changed: Vec<String>,
    }

    /// A device is absent now; it is remembered.
    Vanished: DeviceVanished = "vanished" v 1 about Device(id) {
        /// The device's id.
        id: DeviceId,
    }
}
