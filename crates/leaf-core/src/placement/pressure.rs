//! The pressure of a host (<https://docs.kernel.org/accounting/psi.html>), and its limits.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The share of the last 10 seconds in which tasks waited, in percent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pressure {
    /// In which some task waited for a processor: `some avg10` of `/proc/pressure/cpu`.
    pub cpu: f32,
    /// In which all tasks waited for memory: `full avg10` of `/proc/pressure/memory`.
    pub memory: f32,
    /// In which all tasks waited for disks: `full avg10` of `/proc/pressure/io`.
    pub io: f32,
}

/// The pressure above which a leaf has no room, in percent of the time; 100 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PressureLimits {
    /// Of waiting for a processor.
    pub cpu_percent: u8,
    /// Of waiting for memory.
    pub memory_percent: u8,
    /// Of waiting for disks.
    pub io_percent: u8,
}

impl Default for PressureLimits {
    fn default() -> Self {
        Self {
            cpu_percent: 75,
            memory_percent: 20,
            io_percent: 75,
        }
    }
}

impl PressureLimits {
    /// Returns the reason why the pressure is too high for another job, if it is.
    #[must_use]
    pub fn exceeded(&self, pressure: &Pressure) -> Option<String> {
        let parts = [
            ("some task waited for a processor", pressure.cpu, self.cpu_percent),
            (
                "all tasks waited for memory",
                pressure.memory,
                self.memory_percent,
            ),
            ("all tasks waited for disks", pressure.io, self.io_percent),
        ];
        parts.into_iter().find_map(|(what, share, limit)| {
            (limit < 100 && share > f32::from(limit)).then(|| {
                format!("in {share:.0} % of the last 10 s {what}, and above {limit} % the leaf has no room")
            })
        })
    }
}
