//! The resource limits of a container.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};

/// The largest limit, in bytes: 1 PiB.
const MAX_BYTES: u64 = 1 << 50;
/// The smallest memory limit, in bytes: 1 MiB.
const MIN_MEMORY_BYTES: u64 = 1 << 20;

/// The resource limits of a container. They apply to its own processes, not to its supervisor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory in bytes (`memory.max`, without swap), or as a text such as `"512 MiB"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<ByteSize>,
    /// CPU time in percent of one CPU (`cpu.max`): 250 is two and a half.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u32>,
    /// The number of processes and threads (`pids.max`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u32>,
    /// Read rate of the disk below its root file system, in bytes per second (`io.max`), or as a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_read_bytes_per_second: Option<ByteSize>,
    /// Write rate of that disk, in bytes per second (`io.max`), or as a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_write_bytes_per_second: Option<ByteSize>,
}

impl Limits {
    /// Returns whether there is no limit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A number of bytes. It is parsed from a number or from a text with a unit (`"512 MiB"`, `"1G"`), and serialized as a
/// number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(extend("type" = ["integer", "string"]))]
pub struct ByteSize(pub u64);

impl std::str::FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a number of bytes such as 536870912, \"512MiB\" or \"1G\"");
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(end);
        let number: u64 = digits.parse().map_err(|_| bad())?;
        // As in systemd.syntax(7): K, M, G, T to the base 1024.
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "ki" | "kib" => 10,
            "m" | "mi" | "mib" => 20,
            "g" | "gi" | "gib" => 30,
            "t" | "ti" | "tib" => 40,
            "p" | "pi" | "pib" => 50,
            "e" | "ei" | "eib" => 60,
            _ => return Err(bad()),
        };
        number
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is too large"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} B", self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, or a text such as \"512 MiB\"")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(number))
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<ByteSize, E> {
                u64::try_from(number)
                    .map(ByteSize)
                    .map_err(|_| E::custom(format!("{number} bytes are negative")))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Limits {
    pub(super) fn check(&self) -> Result<(), String> {
        let sizes = [
            ("memory_bytes", self.memory_bytes, MIN_MEMORY_BYTES),
            ("io_read_bytes_per_second", self.io_read_bytes_per_second, 1),
            ("io_write_bytes_per_second", self.io_write_bytes_per_second, 1),
        ];
        for (field, size, least) in sizes {
            if let Some(ByteSize(bytes)) = size
                && !(least..=MAX_BYTES).contains(&bytes)
            {
                return Err(format!(
                    "limits.{field}: must be from {least} to {MAX_BYTES} bytes, not {bytes}; leave it out for no limit"
                ));
            }
        }
        let counts = [
            ("cpu_percent", self.cpu_percent, 1, 100 * 4096),
            ("tasks", self.tasks, 1, 1 << 22),
        ];
        for (field, count, least, most) in counts {
            if let Some(count) = count
                && !(least..=most).contains(&count)
            {
                return Err(format!(
                    "limits.{field}: must be from {least} to {most}, not {count}; leave it out for no limit"
                ));
            }
        }
        Ok(())
    }
}
