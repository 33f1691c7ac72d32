//! Merges a report into the devices from sysfs: it adds names, and devices without a sysfs path. sysfs decides what is
//! present.

use std::collections::BTreeSet;

use leaf_core::hardware::DeviceKind;

use crate::draft::{Draft, Drafts};
use crate::path;

/// How a report and the host differ.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    /// What only the report lists.
    pub(crate) gone: Vec<String>,
    /// The paths of the devices that only the host has.
    pub(crate) new: Vec<String>,
}

/// Merges a report into the devices that were found.
pub(crate) fn merge(seen: &mut Drafts, report: Drafts) -> Merged {
    let mut merged = Merged::default();
    let mut matched: BTreeSet<String> = BTreeSet::new();
    for (key, reported) in report {
        if let Some(path) = find(seen, &reported, &matched) {
            if let Some(draft) = seen.get_mut(&path) {
                overlay(draft, reported);
            }
            matched.insert(path);
        } else if reported
            .kinds
            .iter()
            .any(|kind| matches!(kind, DeviceKind::Processor | DeviceKind::Memory))
        {
            matched.insert(key.clone());
            seen.insert(key, reported);
        } else if reported.bus != "virtual" {
            merged.gone.push(reported.path);
        }
    }
    merged.new = seen
        .iter()
        .filter(|(path, draft)| draft.bus != "virtual" && !matched.contains(*path))
        .map(|(path, _)| path.clone())
        .collect();
    merged
}

/// Returns the path of the host's device that matches a reported one: the same path, otherwise the same ids with the
/// same serial number, otherwise the same ids in the same place (the kernel may have numbered it differently).
fn find(seen: &Drafts, reported: &Draft, matched: &BTreeSet<String>) -> Option<String> {
    let same_ids = |draft: &Draft| {
        draft.vendor_id == reported.vendor_id
            && draft.device_id == reported.device_id
            && draft.kinds.contains(&DeviceKind::Monitor) == reported.kinds.contains(&DeviceKind::Monitor)
    };
    let free = || seen.iter().filter(|(path, _)| !matched.contains(*path));
    if let Some(draft) = seen.get(&reported.path) {
        let known = draft.vendor_id.is_some() && reported.vendor_id.is_some();
        if !known || same_ids(draft) {
            return Some(reported.path.clone());
        }
    }
    let by_serial = || {
        let serial = reported.serial.as_ref()?;
        free().find(|(_, draft)| same_ids(draft) && draft.serial.as_ref() == Some(serial))
    };
    let monitor = reported.kinds.contains(&DeviceKind::Monitor);
    let by_place = || {
        let place = path::place(&reported.path);
        free().find(|(_, draft)| {
            let same_place = if monitor {
                draft.attributes.get("attached_to") == reported.attributes.get("attached_to")
            } else {
                path::place(&draft.path) == place
            };
            reported.vendor_id.is_some() && same_ids(draft) && same_place
        })
    };
    by_serial().or_else(by_place).map(|(path, _)| path.clone())
}

/// Adds to a draft what only the report has. Ids, drivers and ports stay as the host has them.
fn overlay(draft: &mut Draft, reported: Draft) {
    draft.vendor = draft.vendor.take().or(reported.vendor);
    draft.model = draft.model.take().or(reported.model);
    draft.reported_serial = reported.serial;
    let vague = matches!(draft.kind(), DeviceKind::Other | DeviceKind::Serial);
    if vague {
        draft.kinds.extend(reported.kinds);
    }
    for (name, value) in reported.attributes {
        draft.attributes.entry(name).or_insert(value);
    }
}
