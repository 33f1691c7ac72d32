//! This machine: its sysfs, its uevents.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use leaf_core::diff::diff;
use leaf_core::hardware::Medium;
use leaf_hardware::{Monitor, Sources, scan};
use libtest_mimic::Trial;

use crate::trial;

type Outcome = Result<(), Box<dyn std::error::Error>>;

pub(crate) fn trials() -> Vec<Trial> {
    let root = rustix::process::geteuid().is_root() && Command::new("ip").arg("-V").output().is_ok();
    vec![
        trial(
            "two_scans_of_this_machine_are_equal_and_their_difference_is_empty",
            equal,
        ),
        trial(
            "every_network_interface_of_this_machine_with_hardware_is_a_port_of_one_device",
            interfaces,
        ),
        trial(
            "every_disk_of_this_machine_with_hardware_is_a_port_of_one_device",
            disks,
        ),
        trial(
            "a_change_of_a_device_gives_a_hint_and_a_veth_that_is_made_and_removed_gives_none",
            hints,
        )
        .with_ignored_flag(!root),
    ]
}

fn equal() -> Outcome {
    let (first, second) = (scan(&Sources::default())?, scan(&Sources::default())?);
    assert!(!first.inventory.devices.is_empty(), "a machine without hardware");
    assert_eq!(first, second);
    assert_eq!(diff(&first.inventory.devices, &second.inventory), []);
    for (id, device) in &first.inventory.devices {
        assert_eq!(id, &device.id);
        assert!(id.as_str().len() <= 96, "{id}");
    }
    Ok(())
}

/// The names below a class that belong to hardware, and those that are ports.
fn named(class: &str, medium: Medium) -> Result<(BTreeSet<String>, Vec<String>), Box<dyn std::error::Error>> {
    let mut real = BTreeSet::new();
    for entry in fs::read_dir(format!("/sys/class/{class}"))? {
        let entry = entry?;
        let target = fs::canonicalize(entry.path())?;
        if !target.starts_with("/sys/devices/virtual") && !target.join("partition").exists() {
            real.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let inventory = scan(&Sources::default())?.inventory;
    let ports = inventory
        .devices
        .values()
        .filter(|device| device.bus.as_deref() != Some("virtual"))
        .flat_map(|device| &device.ports)
        .filter(|port| port.medium == medium && port.node.is_some())
        .map(|port| port.name.clone())
        .collect();
    Ok((real, ports))
}

fn interfaces() -> Outcome {
    each_has_one_port("net", Medium::Network)
}

fn disks() -> Outcome {
    each_has_one_port("block", Medium::Block)
}

fn each_has_one_port(subsystem: &str, medium: Medium) -> Outcome {
    let (real, ports) = named(subsystem, medium)?;
    assert_eq!(ports.len(), real.len(), "{ports:?}");
    assert_eq!(ports.into_iter().collect::<BTreeSet<_>>(), real);
    Ok(())
}

/// Removes a veth, also when the test fails.
struct Veth(String);

impl Veth {
    fn make() -> Result<Self, Box<dyn std::error::Error>> {
        let name = format!("hw{}", std::process::id());
        let peer = format!("{name}p");
        let done = Command::new("ip")
            .args(["link", "add", &name, "type", "veth", "peer", "name", &peer])
            .status()?;
        if done.success() {
            Ok(Self(name))
        } else {
            Err("ip link add failed".into())
        }
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

/// Makes the kernel send an event of the loopback interface, which is scanned.
fn tell_of_lo() -> std::io::Result<()> {
    fs::write("/sys/class/net/lo/uevent", "change")
}

fn hints() -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let limit = Duration::from_secs(30);
        let mut monitor = Monitor::open()?;
        fn may_move_between_threads<T: Send>(_: &T) {}
        may_move_between_threads(&monitor.changed());
        tell_of_lo()?;
        // As a loop with other inputs does: what waits is dropped again and again.
        for _ in 0..20 {
            let _ = tokio::time::timeout(Duration::from_millis(1), monitor.changed()).await;
        }
        tokio::time::timeout(limit, monitor.changed())
            .await
            .map_err(|_| "no hint of a device")?;
        let before = scan(&Sources::default())?.inventory;
        drop(Veth::make()?);
        assert_eq!(diff(&before.devices, &scan(&Sources::default())?.inventory), []);
        // Longer than a hint is held back. Other tests may bring devices of theirs.
        let hint = tokio::time::timeout(Duration::from_secs(3), monitor.changed()).await;
        assert!(hint.is_err(), "a hint of a veth");
        Ok(())
    })
}
