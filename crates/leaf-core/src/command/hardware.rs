//! Commands about hardware.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::declare::commands;
use crate::hardware::Device;
use crate::id::DeviceId;

commands! {
    "hardware";

    /// Lists the devices that the leaf knows.
    List: ListHardware = "list" {
        kind: Query, about: Leaf, needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {} -> DeviceList

    /// Shows one device.
    Show: ShowHardware = "show" {
        kind: Query, about: Device(id), needs: Nothing, disk: Untouched,
        if_generation: Ignored, success: Answered, while_stuck: Refused,
    } {
        /// Which one.
        id: DeviceId,
    } -> Device

    /// Looks at the hardware now, and says what has changed.
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

/// What a look at the hardware found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RescanReport {
    /// How many devices are there.
    pub devices: u64,
    /// Those that are new or back.
    pub appeared: Vec<DeviceId>,
    /// Those that are not what they were.
    pub changed: Vec<DeviceId>,
    /// Those that are gone.
    pub vanished: Vec<DeviceId>,
}
