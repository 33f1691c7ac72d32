//! Commands about hardware.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::hardware::Device;
use crate::id::DeviceId;

commands! {
    "hardware";

    /// Lists the devices of the leaf.
    List: ListHardware = "list" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {} -> DeviceList

    /// Shows one device.
    Show: ShowHardware = "show" {
        kind: Query, about: Device(id), needs: Nothing, disk: Untouched, power: Reads,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The device's id.
        id: DeviceId,
    } -> Device

    /// Scans the hardware now, and returns what has changed.
    Rescan: RescanHardware = "rescan" {
        kind: Change, about: Leaf, needs: Nothing, disk: Takes, power: Changes,
        if_generation: Ignored, success: HardwareSeen, while_stuck: Refused,
    } {} -> RescanReport
}

/// The devices of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceList {
    /// The devices, sorted by id.
    pub devices: Vec<Device>,
}

/// The result of a hardware scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RescanReport {
    /// The number of present devices.
    pub devices: u64,
    /// Devices that are new or present again.
    pub appeared: Vec<DeviceId>,
    /// Devices that differ from the last scan.
    pub changed: Vec<DeviceId>,
    /// Devices that are absent now.
    pub vanished: Vec<DeviceId>,
}
