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
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {} -> DeviceList

    /// Shows one device.
    Show: ShowHardware = "show" {
        kind: Query, about: Device(id), needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// The device's id.
        id: DeviceId,
    } -> Device

    /// Scans the hardware now, and tells what has changed.
    Rescan: RescanHardware = "rescan" {
        kind: Change, about: Leaf, needs: Nothing, disk: Takes,
        if_generation: Ignored, success: HardwareSeen, while_stuck: Refused,
    } {} -> RescanReport
}

/// The devices of a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceList {
    /// All of them, sorted by id.
    pub devices: Vec<Device>,
}

/// What a hardware scan found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RescanReport {
    /// How many devices are present.
    pub devices: u64,
    /// Devices that are new or back.
    pub appeared: Vec<DeviceId>,
    /// Devices that differ from the last scan.
    pub changed: Vec<DeviceId>,
    /// Devices that are gone.
    pub vanished: Vec<DeviceId>,
}
