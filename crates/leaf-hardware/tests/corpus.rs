//! The reports of 91 real machines. They are test data that can't be shipped: `CIM_LEAF_CORPUS` names their directory.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use leaf_core::hardware::{Direction, Medium};
use leaf_hardware::facter;
use libtest_mimic::Trial;
use serde_json::Value;

type Outcome = Result<(), Box<dyn std::error::Error>>;
type Test = fn(&Path) -> Outcome;
/// A report's path and what it holds.
type Reports = Vec<(String, Vec<u8>)>;

/// The classes of which every entry must be accounted for.
const CLASSES: [&str; 16] = [
    "camera",
    "sound",
    "monitor",
    "graphics_card",
    "network_controller",
    "network_interface",
    "disk",
    "cdrom",
    "keyboard",
    "mouse",
    "bluetooth",
    "modem",
    "chip_card",
    "mmc_controller",
    "storage_controller",
    "usb_controller",
];

pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, Test); 4] = [
        (
            "every_entry_of_every_report_becomes_a_device_or_a_part_of_one",
            accounted,
        ),
        (
            "every_report_gives_the_same_inventory_twice_with_ids_that_are_unique_and_short",
            stable,
        ),
        (
            "a_network_interface_is_a_port_of_the_card_that_its_path_names",
            interfaces,
        ),
        ("every_report_cut_off_anywhere_is_refused_and_says_where", cut_off),
    ];
    let directory =
        std::env::var_os("CIM_LEAF_CORPUS").map(|directory| PathBuf::from(directory).join("facter"));
    tests
        .into_iter()
        .map(|(name, test)| {
            let directory = directory.clone();
            let missing = directory.is_none();
            Trial::test(name, move || {
                let directory = directory.ok_or("CIM_LEAF_CORPUS is not set")?;
                test(&directory).map_err(|error| error.to_string().into())
            })
            .with_ignored_flag(missing)
        })
        .collect()
}

fn reports(directory: &Path) -> Result<Reports, Box<dyn std::error::Error>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        all.push((path.display().to_string(), fs::read(&path)?));
    }
    assert_eq!(all.len(), 91, "the corpus has 91 reports");
    Ok(all)
}

fn accounted(directory: &Path) -> Outcome {
    let mut count = 0;
    for (name, bytes) in reports(directory)? {
        let report = facter::read(&bytes).map_err(|error| format!("{name}: {error}"))?;
        let json: Value = serde_json::from_slice(&bytes)?;
        for class in CLASSES {
            let list = json["hardware"][class].as_array().cloned().unwrap_or_default();
            for (number, entry) in list.iter().enumerate().filter(|(_, entry)| !entry.is_null()) {
                let found = report
                    .entries
                    .iter()
                    .find(|found| found.class == class && found.number == number)
                    .ok_or_else(|| format!("{name}: hardware.{class}[{number}] is lost"))?;
                let device = report.inventory.devices.get(&found.device).ok_or_else(|| {
                    format!(
                        "{name}: {class}[{number}] became {}, which isn't there",
                        found.device
                    )
                })?;
                // It is accounted for by its place, its driver and a port that carries what it is for.
                let path = entry["sysfs_device_link"].as_str().or(entry["sysfs_id"].as_str());
                if let (Some(path), Some(own)) = (path, &device.sysfs_path) {
                    assert!(
                        path.starts_with(own),
                        "{name}: {class}[{number}] at {path} became {device:#?}"
                    );
                }
                if let Some(driver) = entry["driver"].as_str() {
                    assert!(
                        device.drivers.iter().any(|own| own == driver),
                        "{name}: {driver} of {device:#?}"
                    );
                }
                let medium = match class {
                    "camera" => Some((Medium::Video, Direction::Input)),
                    "sound" => Some((Medium::Audio, Direction::Both)),
                    "monitor" | "graphics_card" => Some((Medium::Display, Direction::Output)),
                    "network_controller" | "network_interface" => Some((Medium::Network, Direction::Both)),
                    "disk" => Some((Medium::Block, Direction::Both)),
                    "cdrom" => Some((Medium::Block, Direction::Input)),
                    "keyboard" | "mouse" => Some((Medium::Input, Direction::Input)),
                    "bluetooth" => Some((Medium::Bluetooth, Direction::Both)),
                    "modem" => Some((Medium::Serial, Direction::Both)),
                    "chip_card" => Some((Medium::SmartCard, Direction::Both)),
                    _ => None,
                };
                if let Some((medium, direction)) = medium {
                    assert!(
                        device
                            .ports
                            .iter()
                            .any(|port| port.medium == medium && port.direction == direction),
                        "{name}: {class}[{number}] has no port in {device:#?}"
                    );
                }
                count += 1;
            }
        }
    }
    assert!(count > 1500, "only {count} entries");
    Ok(())
}

fn stable(directory: &Path) -> Outcome {
    for (name, bytes) in reports(directory)? {
        let first = facter::read(&bytes)?;
        assert_eq!(first, facter::read(&bytes)?, "{name}");
        let drafts: BTreeSet<_> = first
            .inventory
            .devices
            .values()
            .filter_map(|device| device.sysfs_path.as_ref())
            .collect();
        let with_path = first
            .inventory
            .devices
            .values()
            .filter(|device| device.sysfs_path.is_some())
            .count();
        assert_eq!(drafts.len(), with_path, "{name}: two devices in one place");
        for (id, device) in &first.inventory.devices {
            assert_eq!(id, &device.id);
            assert!(id.as_str().len() <= 96);
        }
    }
    Ok(())
}

fn interfaces(directory: &Path) -> Outcome {
    let mut count = 0;
    for (name, bytes) in reports(directory)? {
        let report = facter::read(&bytes)?;
        let json: Value = serde_json::from_slice(&bytes)?;
        let list = |class: &str| json["hardware"][class].as_array().cloned().unwrap_or_default();
        let device_of = |class: &str, number: usize| {
            let found = report
                .entries
                .iter()
                .find(|entry| entry.class == class && entry.number == number);
            found.map(|entry| &entry.device)
        };
        for (number, interface) in list("network_interface").iter().enumerate() {
            for (card_number, card) in list("network_controller").iter().enumerate() {
                if interface["sysfs_device_link"].is_string()
                    && interface["sysfs_device_link"] == card["sysfs_id"]
                {
                    let device = device_of("network_interface", number);
                    assert_eq!(device, device_of("network_controller", card_number), "{name}");
                    let port = interface["sysfs_id"]
                        .as_str()
                        .and_then(|path| path.rsplit('/').next());
                    let ports = &report.inventory.devices[device.ok_or("it is lost")?].ports;
                    assert!(
                        ports.iter().any(|own| Some(own.name.as_str()) == port),
                        "{name}: {port:?} in {ports:?}"
                    );
                    count += 1;
                }
            }
        }
    }
    assert!(count >= 178, "only {count} interfaces");
    Ok(())
}

fn cut_off(directory: &Path) -> Outcome {
    for (name, bytes) in reports(directory)? {
        for part in 0..40 {
            let cut = bytes.len() * part / 40;
            let error = facter::read(&bytes[..cut])
                .err()
                .ok_or_else(|| format!("{name} cut at {cut} was read"))?;
            assert!(error.to_string().contains("not valid JSON at line"), "{error}");
        }
    }
    Ok(())
}
