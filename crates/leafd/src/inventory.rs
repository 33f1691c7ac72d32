//! `leafd inventory`: prints the hardware inventory of this host or of a report.
#![allow(clippy::print_stdout, reason = "a command line prints")]

use std::io::Write as _;

use anyhow::Context as _;
use leaf_core::command::DeviceList;
use leaf_core::hardware::{Device, Direction};
use leaf_core::printable::printable_line;
use leaf_hardware::{Sources, facter, scan};

use crate::cli::Inventory;

/// Prints the inventory: a table, or `{"devices":[…]}`.
///
/// # Errors
/// When the host or the report can't be read.
pub fn show(flags: &Inventory) -> anyhow::Result<()> {
    let inventory = match &flags.facter {
        Some(report) => {
            let read = facter::read_file(report)
                .with_context(|| format!("can't read the report {}", report.display()))?;
            for problem in &read.problems {
                writeln!(
                    std::io::stderr(),
                    "left out of the report: {}",
                    printable_line(problem)
                )
                .context("can't print a problem")?;
            }
            read.inventory
        }
        None => scan(&Sources::default())?.inventory,
    };
    let list = DeviceList {
        devices: inventory.devices.into_values().collect(),
    };
    let text = if flags.json {
        serde_json::to_string_pretty(&list).expect("a message has string keys only") + "\n"
    } else {
        table(&list.devices)
    };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("can't print the inventory"),
    }
}

fn table(devices: &[Device]) -> String {
    let heading = ["DEVICE", "KIND", "STATUS", "WHAT", "INPUTS", "OUTPUTS"];
    crate::table::table(heading, devices.iter().map(row))
}

fn row(device: &Device) -> [String; 6] {
    let name = |value: serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let ports = |direction| {
        let some = device
            .ports
            .iter()
            .filter(|port| port.direction == direction || port.direction == Direction::Both);
        some.map(|port| port.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    let what: Vec<&str> = [device.vendor.as_deref(), device.model.as_deref()]
        .into_iter()
        .flatten()
        .collect();
    [
        device.id.to_string(),
        name(serde_json::json!(device.kind)),
        name(serde_json::json!(device.status)),
        what.join(" "),
        ports(Direction::Input),
        ports(Direction::Output),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_device_commands_no_terminal_and_begins_no_line() {
        let device: Device = serde_json::from_value(serde_json::json!({
            "id": "usb-1", "identity": "serial", "kind": "keyboard", "status": "present",
            "vendor": "\u{1b}]52;c;eA==\u{7}", "model": "\rx\u{202e}\ndisk-1  disk",
        }))
        .expect("a device");
        let table = table(&[device]);
        assert_eq!(table.lines().count(), 2, "{table:?}");
        let line = table.lines().last().expect("a row");
        assert!(
            line.contains(r"\u{1b}]52;c;eA==\u{7} \rx\u{202e}\ndisk-1  disk"),
            "{line:?}"
        );
    }
}
