//! Two NixOS systems: their units, and what of the new one comes into use at the next boot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use leaf_core::job::diff::{MOST_UNITS, SystemDiff, UnitDiff, UnitEffect};

use super::unit::{Unit, effect};

/// The directory of a system's units.
const UNITS: &str = "etc/systemd/system";
/// What comes into use at the next boot: links, or files of text.
const AT_BOOT: &[&str] = &[
    "kernel",
    "kernel-modules",
    "initrd",
    "kernel-params",
    "firmware",
    "systemd",
];
/// The ends of the names of units.
const TYPES: &[&str] = &[
    "service",
    "socket",
    "target",
    "timer",
    "mount",
    "automount",
    "path",
    "slice",
    "scope",
    "swap",
    "device",
];

/// Returns what a switch from one system to another does; `None` if one of them is no NixOS system.
pub(super) fn compare(from: &Path, to: &Path) -> Option<SystemDiff> {
    let is_system = |system: &Path| system.join("nixos-version").exists();
    if !is_system(from) || !is_system(to) {
        return None;
    }
    let [old, new] = [from, to].map(|system| units(&system.join(UNITS)));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let mut differ: Vec<UnitDiff> = names
        .into_iter()
        .filter_map(|name| {
            let effect = match (old.get(name), new.get(name)) {
                (Some(old), Some(new)) if old == new => None,
                (Some(old), Some(new)) => effect(name, &read(old), &read(new)),
                (None, Some(_)) => Some(UnitEffect::Starts),
                (Some(_), None) => Some(UnitEffect::Stops),
                (None, None) => None,
            };
            Some(UnitDiff {
                unit: name.clone(),
                effect: effect?,
            })
        })
        .collect();
    let units_left_out = differ.len().saturating_sub(MOST_UNITS) as u64;
    differ.truncate(MOST_UNITS);
    let at_next_boot = AT_BOOT.iter().filter(|name| part(from, name) != part(to, name));
    Some(SystemDiff {
        units: differ,
        units_left_out,
        at_next_boot: at_next_boot.map(|name| (*name).to_owned()).collect(),
    })
}

/// Returns what a part of a system is: the target of a link, or a text.
fn part(system: &Path, name: &str) -> Option<Vec<u8>> {
    let path = system.join(name);
    match fs::canonicalize(&path) {
        Ok(target) if target == path => fs::read(&path).ok(),
        Ok(target) => Some(target.into_os_string().into_encoded_bytes()),
        Err(_) => None,
    }
}

/// Returns the files of each unit: its own, and then those that override it, by name.
fn units(directory: &Path) -> BTreeMap<String, Vec<PathBuf>> {
    let mut units = BTreeMap::<String, Vec<PathBuf>>::new();
    let mut masked = BTreeSet::new();
    for (name, path) in entries(directory) {
        let is_unit = |name: &str| name.rsplit_once('.').is_some_and(|(_, end)| TYPES.contains(&end));
        let overridden = name.strip_suffix(".d").filter(|name| is_unit(name));
        let Ok(target) = fs::canonicalize(&path) else {
            continue;
        };
        if let Some(unit) = overridden {
            let files = entries(&target).filter(|(name, _)| name.ends_with(".conf"));
            let files: BTreeMap<String, PathBuf> = files.collect();
            let paths = files
                .into_values()
                .map(|file| fs::canonicalize(&file).unwrap_or(file));
            units.entry(unit.to_owned()).or_default().extend(paths);
        } else if target == Path::new("/dev/null") {
            masked.insert(name);
        } else if is_unit(&name) {
            units.entry(name).or_default().insert(0, target);
        }
    }
    units.retain(|name, files| !files.is_empty() && !masked.contains(name));
    units
}

fn entries(directory: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let entries = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

fn read(files: &[PathBuf]) -> Unit {
    let mut unit = Unit::default();
    for file in files {
        unit.add(&String::from_utf8_lossy(&fs::read(file).unwrap_or_default()));
    }
    unit
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(file: &Path, text: &str) {
        fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
        fs::write(file, text).expect("written");
    }

    #[test]
    fn the_units_and_parts_that_differ_are_found() {
        let place = tempfile::tempdir().expect("a directory");
        let [old, new] = ["old", "new"].map(|name| place.path().join(name));
        for system in [&old, &new] {
            write(&system.join("nixos-version"), "25.05");
            write(&system.join("kernel-params"), "loglevel=4");
            write(
                &system.join(UNITS).join("same.service"),
                "[Service]\nExecStart=a\n",
            );
            write(
                &system.join(UNITS).join("multi-user.target.wants/same.service"),
                "",
            );
            symlink("/dev/null", system.join(UNITS).join("masked.service")).expect("a link");
        }
        write(&old.join(UNITS).join("web.service"), "[Service]\nExecStart=a\n");
        write(&new.join(UNITS).join("web.service"), "[Service]\nExecStart=b\n");
        write(
            &new.join(UNITS).join("same.service.d/more.conf"),
            "[Service]\nUser=x\n",
        );
        write(&old.join(UNITS).join("gone.timer"), "[Timer]\n");
        write(&new.join(UNITS).join("new.service"), "[Service]\n");
        write(&new.join(UNITS).join("masked.service.d/x.conf"), "");
        symlink(place.path(), new.join("kernel")).expect("a link");

        let diff = compare(&old, &new).expect("two systems");
        let units: Vec<_> = diff.units.iter().map(|u| (u.unit.as_str(), u.effect)).collect();
        assert_eq!(
            units,
            [
                ("gone.timer", UnitEffect::Stops),
                ("new.service", UnitEffect::Starts),
                ("same.service", UnitEffect::Restarts),
                ("web.service", UnitEffect::Restarts),
            ]
        );
        assert_eq!(diff.at_next_boot, ["kernel"]);
        assert_eq!(compare(&old, &old), Some(SystemDiff::default()));
        assert_eq!(compare(&old, place.path()), None);
    }
}
