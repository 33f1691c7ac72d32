//! Reads the reports of nixos-facter, versions 1 and 2, and runs the program.
//!
//! A report lists the same hardware several times: a network card as `network_controller` and `network_interface`, a
//! USB device once for each of its interfaces, a disk separately from its controller. The sysfs path tells which
//! entries belong together. [`Report::entries`] has the device of each entry.
//!
//! The types of values differ between reports, versions and kernels. Apart from the outer shape, a value of an
//! unexpected type is ignored; a list or an entry of an unexpected type is left out, and named in [`Report::problems`].

mod entry;
mod run;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use leaf_core::hardware::Inventory;
use leaf_core::id::DeviceId;
use serde_json::Value;

use crate::draft::{self, Drafts};

pub use run::{RunError, run};

/// The largest report that is read, in bytes. The largest known one, of a server with 281 PCI functions, has 0.3 MB.
pub const MAX_REPORT_BYTES: usize = 32 * 1024 * 1024;

/// The inventory of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The report's devices.
    pub inventory: Inventory,
    /// The entries of `hardware`, each with its device.
    pub entries: Vec<Entry>,
    /// The entries that are left out because they have an unexpected shape: their place, and the value there.
    pub problems: Vec<String>,
}

/// An entry of a report, and the device that it became or is a part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The list in `hardware` that has the entry: `camera`, `disk`, …
    pub class: String,
    /// The index in that list, from 0.
    pub number: usize,
    /// The sysfs path in the entry.
    pub sysfs_id: Option<String>,
    /// The device's id.
    pub device: DeviceId,
}

/// Why a report can't be read.
#[derive(Debug, thiserror::Error)]
pub enum FacterError {
    /// The file can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The file is larger than any report.
    #[error("the file has more than {max} bytes, more than any report: is it the right one?")]
    TooLarge {
        /// The limit, [`MAX_REPORT_BYTES`].
        max: usize,
    },
    /// The file is not JSON, or is truncated.
    #[error(
        "the file is not valid JSON at line {line}, column {column}; write it again with `nixos-facter -o FILE`"
    )]
    Json {
        /// The position, from 1.
        line: usize,
        /// The position, from 1.
        column: usize,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// The JSON has another shape.
    #[error("the file is not a nixos-facter report: {at} {what}; write one with `nixos-facter -o FILE`")]
    Shape {
        /// The place: `hardware`.
        at: String,
        /// The error at that place.
        what: String,
    },
    /// The report's version is unknown.
    #[error(
        "the file is a report of version {found}, only versions 1 and 2 are known: a newer cim-leaf may read it"
    )]
    Version {
        /// The report's version.
        found: u64,
    },
}

/// The lists of `hardware` that are read. The others describe the machine, not its devices.
const CLASSES: [&str; 23] = [
    "storage_controller",
    "usb_controller",
    "network_controller",
    "graphics_card",
    "firewire_controller",
    "bridge",
    "pci",
    "sound",
    "mmc_controller",
    "camera",
    "bluetooth",
    "modem",
    "chip_card",
    "keyboard",
    "mouse",
    "hub",
    "usb",
    "network_interface",
    "disk",
    "cdrom",
    "scsi",
    "monitor",
    "unknown",
];

/// Returns the inventory of a report.
///
/// # Errors
/// [`FacterError`], with the place and what to do.
pub fn read(bytes: &[u8]) -> Result<Report, FacterError> {
    let read = drafts(bytes)?;
    let (inventory, ids) = draft::finish(read.drafts);
    let entries = read
        .traces
        .into_iter()
        .filter_map(|trace| {
            Some(Entry {
                device: ids.get(&trace.draft)?.clone(),
                class: trace.class.to_owned(),
                number: trace.number,
                sysfs_id: trace.sysfs_id,
            })
        })
        .collect();
    Ok(Report {
        inventory,
        entries,
        problems: read.problems,
    })
}

/// Returns the inventory of the report in this file.
///
/// # Errors
/// As [`read`], and when the file can't be read.
pub fn read_file(path: &Path) -> Result<Report, FacterError> {
    read(&bytes_of_file(path)?)
}

/// Returns the devices of the report in this file, and what was left out.
pub(crate) fn drafts_of_file(path: &Path) -> Result<(Drafts, Vec<String>), FacterError> {
    let read = drafts(&bytes_of_file(path)?)?;
    Ok((read.drafts, read.problems))
}

fn bytes_of_file(path: &Path) -> Result<Vec<u8>, FacterError> {
    use std::io::Read as _;
    let failed = |source| FacterError::Read {
        path: path.to_owned(),
        source,
    };
    let file = leaf_host::files::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_REPORT_BYTES)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// An entry, and the draft that it was added to.
struct Trace {
    class: &'static str,
    number: usize,
    sysfs_id: Option<String>,
    draft: String,
}

/// The contents of a report.
struct Contents {
    drafts: Drafts,
    traces: Vec<Trace>,
    problems: Vec<String>,
}

fn drafts(bytes: &[u8]) -> Result<Contents, FacterError> {
    if bytes.len() > MAX_REPORT_BYTES {
        return Err(FacterError::TooLarge {
            max: MAX_REPORT_BYTES,
        });
    }
    // The parser accepts 128 levels; reports have 7.
    let report: Value = serde_json::from_slice(bytes).map_err(|source| FacterError::Json {
        line: source.line(),
        column: source.column(),
        source,
    })?;
    let shape = |at: &str, what: String| FacterError::Shape {
        at: at.to_owned(),
        what,
    };
    let top = report
        .as_object()
        .ok_or_else(|| shape("the document", format!("is {}, not an object", type_of(&report))))?;
    let version = top
        .get("version")
        .ok_or_else(|| shape("`version`", "is missing".to_owned()))?;
    match version.as_u64() {
        Some(1 | 2) => {}
        Some(found) => return Err(FacterError::Version { found }),
        None => {
            return Err(shape(
                "`version`",
                format!("is {}, not a number", type_of(version)),
            ));
        }
    }
    let hardware = top
        .get("hardware")
        .ok_or_else(|| shape("`hardware`", "is missing".to_owned()))?;
    let hardware = hardware
        .as_object()
        .ok_or_else(|| shape("`hardware`", format!("is {}, not an object", type_of(hardware))))?;

    let mut reader = entry::Reader::new(cards(hardware));
    let (mut traces, mut problems) = (Vec::new(), Vec::new());
    for class in CLASSES {
        let list = match hardware.get(class) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(list)) => list,
            Some(other) => {
                problems.push(format!("`hardware.{class}` is {}, not a list", type_of(other)));
                continue;
            }
        };
        for (number, entry) in list.iter().enumerate() {
            match entry {
                Value::Null => {}
                Value::Object(entry) => traces.push(Trace {
                    class,
                    number,
                    sysfs_id: entry.get("sysfs_id").and_then(Value::as_str).map(str::to_owned),
                    draft: reader.device(class, number, entry),
                }),
                other => problems.push(format!(
                    "`hardware.{class}[{number}]` is {}, not an object",
                    type_of(other)
                )),
            }
        }
    }
    reader.processors(hardware.get("cpu"));
    reader.memory(top.get("smbios").and_then(|smbios| smbios.get("memory_device")));
    Ok(Contents {
        drafts: reader.finish(),
        traces,
        problems,
    })
}

/// Returns the sysfs path of each entry by its `index`, for the entries that are attached to it.
fn cards(hardware: &serde_json::Map<String, Value>) -> BTreeMap<u64, String> {
    hardware
        .values()
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.get("index")?.as_u64()?,
                entry.get("sysfs_id")?.as_str()?.to_owned(),
            ))
        })
        .collect()
}

/// Returns the type of a value, with its article.
fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
