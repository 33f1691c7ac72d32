//! The difference between the devices that are known and a look at the host. A look that finds nothing new makes no
//! event.

use std::collections::BTreeMap;

use crate::event::{DeviceAppeared, DeviceChanged, DeviceVanished, Fact};
use crate::hardware::{Device, DeviceStatus, Inventory};
use crate::id::DeviceId;
use crate::state::State;

/// Returns what changed between the state and a look at the host, in the order of the devices' ids. A device that the state
/// can't read, since a newer leafd wrote it, is left out.
#[must_use]
pub fn changes(state: &State, seen: &Inventory) -> Vec<Fact> {
    let mut facts = diff(&state.devices, seen);
    facts.retain(|fact| {
        fact.about()
            .is_none_or(|about| state.raw_entry_of(about).is_none())
    });
    facts
}

/// Returns what changed between the devices known and a look at the host, in the order of their ids.
///
/// A device that is gone is remembered as absent, and not told again while it stays away. Applying the facts makes
/// the next `diff` against the same look empty.
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

/// Returns the names of the fields in which two looks at one device differ.
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
