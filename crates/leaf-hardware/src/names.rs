//! Names of vendors and models: from udev's hardware database where it is installed, otherwise from `pci.ids` and
//! `usb.ids`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use crate::draft::Drafts;

/// Sets the vendor and model of drafts that have none.
pub(crate) fn fill(drafts: &mut Drafts, hwdb: bool, directories: &[PathBuf]) {
    if hwdb && let Ok(hwdb) = udev::Hwdb::new() {
        from_hwdb(drafts, &hwdb);
    }
    for (file, buses) in [("pci.ids", ["pci", "virtio"]), ("usb.ids", ["usb", "usb"])] {
        let ids: BTreeSet<(String, String)> = drafts
            .values()
            .filter(|draft| buses.contains(&draft.bus.as_str()))
            .filter(|draft| draft.vendor.is_none() || draft.model.is_none())
            .filter_map(|draft| Some((draft.vendor_id.clone()?, draft.device_id.clone()?)))
            .collect();
        if ids.is_empty() {
            continue;
        }
        let Some(bytes) = directories
            .iter()
            .find_map(|directory| fs::read(directory.join(file)).ok())
        else {
            continue;
        };
        let known = find(&String::from_utf8_lossy(&bytes), &ids);
        for draft in drafts
            .values_mut()
            .filter(|draft| buses.contains(&draft.bus.as_str()))
        {
            let (Some(vendor), Some(device)) = (&draft.vendor_id, &draft.device_id) else {
                continue;
            };
            if let Some((vendor, device)) = known.get(&(vendor.clone(), device.clone())) {
                draft.vendor = draft.vendor.take().or_else(|| Some(vendor.clone()));
                draft.model = draft.model.take().or_else(|| device.clone());
            }
        }
    }
}

fn from_hwdb(drafts: &mut Drafts, hwdb: &udev::Hwdb) {
    for draft in drafts.values_mut() {
        let modalias = match (draft.bus.as_str(), &draft.vendor_id, &draft.device_id) {
            ("usb", Some(vendor), Some(device)) => {
                // hwdb.d/20-usb-vendor-model.hwdb
                format!(
                    "usb:v{}p{}",
                    vendor.to_ascii_uppercase(),
                    device.to_ascii_uppercase()
                )
            }
            _ => match draft.attributes.get("modalias") {
                Some(modalias) => modalias.clone(),
                None => continue,
            },
        };
        let name = |key: &str| {
            let value = hwdb.query_one(modalias.as_str(), key)?;
            Some(value.to_str()?.to_owned())
        };
        draft.vendor = draft.vendor.take().or_else(|| name("ID_VENDOR_FROM_DATABASE"));
        draft.model = draft.model.take().or_else(|| name("ID_MODEL_FROM_DATABASE"));
    }
}

/// Returns the names of these ids from a file in the format of <https://pci-ids.ucw.cz>: vendors at the start of a
/// line, their models after a tab; classes follow, each with a letter before its number.
fn find(
    text: &str,
    ids: &BTreeSet<(String, String)>,
) -> BTreeMap<(String, String), (String, Option<String>)> {
    let mut found: BTreeMap<(String, String), (String, Option<String>)> = BTreeMap::new();
    let vendors: BTreeSet<&str> = ids.iter().map(|(vendor, _)| vendor.as_str()).collect();
    let mut vendor: Option<&str> = None;
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') || line.starts_with("\t\t") {
            continue;
        }
        if let Some(rest) = line.strip_prefix('\t') {
            let (Some(vendor), Some((id, name))) = (vendor, rest.split_once("  ")) else {
                continue;
            };
            let key = (vendor.to_owned(), id.to_owned());
            if let Some(entry) = found.get_mut(&key) {
                entry.1 = Some(name.trim().to_owned());
            }
        } else {
            let known = line.split_once("  ").filter(|(id, _)| vendors.contains(id));
            vendor = known.map(|(id, _)| id);
            if let Some((id, name)) = known {
                for key in ids.iter().filter(|(vendor, _)| vendor == id) {
                    found.insert(key.clone(), (name.trim().to_owned(), None));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_vendor_and_model() {
        let text = "# comment\n1af4  Red Hat, Inc.\n\t1041  Virtio 1.0 network device\n\t\t1af4 1100  QEMU\n\
                    8086  Intel Corporation\n\t1041  Another\nC 00  Unclassified\n\t1041  No\n";
        let pair = |vendor: &str, device: &str| (vendor.to_owned(), device.to_owned());
        let ids = BTreeSet::from([pair("1af4", "1041"), pair("8086", "ffff")]);
        let found = find(text, &ids);
        assert_eq!(
            found[&pair("1af4", "1041")],
            (
                "Red Hat, Inc.".to_owned(),
                Some("Virtio 1.0 network device".to_owned())
            )
        );
        assert_eq!(
            found[&pair("8086", "ffff")],
            ("Intel Corporation".to_owned(), None)
        );
    }
}
