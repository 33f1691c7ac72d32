//! What happened to hardware.

use super::declare::facts;
use crate::hardware::Device;
use crate::id::DeviceId;

facts! {
    HardwareFact of "device";

    /// A device is there, for the first time or again.
    Appeared: DeviceAppeared = "appeared" v 1 about Device(device.id) {
        /// The device as it was seen.
        device: Device,
    }

    /// A device is not what it was.
    Changed: DeviceChanged = "changed" v 1 about Device(device.id) {
        /// The device as it was seen.
        device: Device,
        /// The fields that differ.
        changed: Vec<String>,
    }

    /// A device is gone; it is remembered as absent.
    Vanished: DeviceVanished = "vanished" v 1 about Device(id) {
        /// Which one.
        id: DeviceId,
    }
}
