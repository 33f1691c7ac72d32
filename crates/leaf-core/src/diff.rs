//! Compares the known devices with a hardware scan. A scan without changes makes no event.

use std::collections::BTreeMap;

use crate::event::{DeviceAppeared, DeviceChanged, DeviceVanished, Fact};
use crate::hardware::{Device, DeviceStatus, Inventory};
use crate::id::DeviceId;
use crate::state::State;

/// Returns the changes from the state to a scan, in the order of device ids. A device whose entry only a newer leafd
/// can read is left out.
#[must_use]
pub fn changes(state: &State, seen: &Inventory) -> Vec<Fact> {
    let mut facts = diff(&state.devices, seen);
    facts.retain(|fact| {
        fact.about()
            .is_none_or(|about| state.raw_entry_of(about).is_none())
    });
    facts
}

/// Returns the changes from the known devices to a scan, in the order of their ids.
///
/// A device that is gone is remembered as absent, and reported only once. After the facts are applied, the next `diff`
/// against the same scan is empty.
#[must_use]
pub fn diff(known: &BTreeMap<DeviceId, Device>, seen: &Inventory) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (id, device) in &seen.devices {
        match known.get(id) {
            None => facts.push(Fact::from(DeviceAppeared {
                device: device.clone(),
            })),
            Some(old) if old.status == DeviceStatus::Absent && device.status != DeviceStatus::Absent => {
                facts.push(Fact::from(DeviceAppeared {
                    device: device.clone(),
                }));
            }
            Some(old) if old != device => facts.push(Fact::from(DeviceChanged {
                changed: changed_fields(old, device),
                device: device.clone(),
            })),
            Some(_) => {}
        }
    }
    for (id, old) in known {
        if old.status != DeviceStatus::Absent && !seen.devices.contains_key(id) {
            facts.push(Fact::from(DeviceVanished { id: id.clone() }));
        }
    }
    facts
}

/// Returns the names of the fields in which two observations of a device differ.
fn changed_fields(old: &Device, new: &Device) -> Vec<String> {
    let fields = [
        ("identity", old.identity != new.identity),
        ("kind", old.kind != new.kind),
        ("status", old.status != new.status),
        ("vendor", old.vendor != new.vendor),
        ("model", old.model != new.model),
        ("serial", old.serial != new.serial),
        ("bus", old.bus != new.bus),
        ("drivers", old.drivers != new.drivers),
        ("sysfs_path", old.sysfs_path != new.sysfs_path),
        ("ports", old.ports != new.ports),
        ("attributes", old.attributes != new.attributes),
    ];
    fields
        .into_iter()
        .filter(|(_, differs)| *differs)
        .map(|(name, _)| name.to_owned())
        .collect()
}
