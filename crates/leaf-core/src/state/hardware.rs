//! Devices in the state: the entries `device.<id>`.

use super::{Entry, Kind, State, same_key};
use crate::aggregate::Aggregate;
use crate::event::hardware::HardwareFact;
use crate::hardware::{Device, DeviceStatus};

pub(super) const KIND: Kind = Kind {
    name: "device",
    keys: |state| {
        state
            .devices
            .keys()
            .map(|id| Aggregate::Device(id).key())
            .collect()
    },
    find: |state, id| state.devices.get(id).map(Entry::Device),
    put: |state, key, value| {
        let device: Device = serde_json::from_value(value)?;
        same_key(key, &Aggregate::Device(&device.id).key())?;
        state.devices.insert(device.id.clone(), device);
        Ok(())
    },
    remove: |state, id| {
        state.devices.remove(id);
    },
    renewed: false,
};

pub(super) fn apply(state: &mut State, fact: &HardwareFact) -> Vec<String> {
    match fact {
        HardwareFact::Appeared(f) => put(state, &f.device),
        HardwareFact::Changed(f) => put(state, &f.device),
        HardwareFact::Vanished(f) => match state.devices.get_mut(&f.id) {
            Some(device) => {
                device.status = DeviceStatus::Absent;
                vec![Aggregate::Device(&f.id).key()]
            }
            None => Vec::new(),
        },
    }
}

fn put(state: &mut State, device: &Device) -> Vec<String> {
    state.devices.insert(device.id.clone(), device.clone());
    vec![Aggregate::Device(&device.id).key()]
}
