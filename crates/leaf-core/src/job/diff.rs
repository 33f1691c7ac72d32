//! The task of comparing the closures of two store paths, above all of two NixOS systems.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::StorePath;

/// The number of packages that a result lists at most.
pub const MOST_PACKAGES: usize = 256;
/// The number of units that a result lists at most.
pub const MOST_UNITS: usize = 256;
/// The number of versions of a package that a result lists at most, for each side.
pub const MOST_VERSIONS: usize = 8;

/// The task of comparing two closures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiffTask {
    /// The store path of before.
    pub from: StorePath,
    /// The store path of afterwards.
    pub to: StorePath,
    /// The time limit, in seconds.
    pub timeout_seconds: u32,
}

/// What differs between two closures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiffResult {
    /// The NAR size of the closure of before, in bytes.
    pub from_closure_size_bytes: u64,
    /// The NAR size of the closure of afterwards, in bytes.
    pub to_closure_size_bytes: u64,
    /// The packages that differ: those with other versions by name, then those of other sizes, largest difference first. At most 256.
    pub packages: Vec<PackageDiff>,
    /// The number of further packages.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub packages_left_out: u64,
    /// What a switch from the one to the other does, if both are NixOS systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<SystemDiff>,
}

/// A package that differs: its store paths have other versions, or their sizes differ by at least 8 KiB together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PackageDiff {
    /// The name, without version and output, as Nix splits it.
    pub name: String,
    /// The versions of before, at most 8; a package without a version has an empty one. None if it is new.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// The versions of afterwards, at most 8. None if it is gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
    /// How much larger its store paths are afterwards, in bytes; negative if they are smaller.
    pub size_bytes: i64,
}

/// What a switch between two NixOS systems does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SystemDiff {
    /// The units that differ, by name, at most 256.
    pub units: Vec<UnitDiff>,
    /// The number of further units.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub units_left_out: u64,
    /// What of the new system comes into use at the next boot: `kernel`, `kernel-modules`, `initrd`, `kernel-params`, `firmware`,
    /// `systemd`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub at_next_boot: Vec<String>,
}

/// A unit that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UnitDiff {
    /// The unit, such as `nginx.service`.
    pub unit: String,
    /// What a switch does with it, if it is active.
    pub effect: UnitEffect,
}

/// What a switch does with a unit, by the rules of `switch-to-configuration`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnitEffect {
    /// It is new, and starts if something wants it.
    Starts,
    /// It is gone, and stops.
    Stops,
    /// It restarts.
    Restarts,
    /// It reloads.
    Reloads,
    /// It runs on as it is; its new form is used when it starts again.
    Keeps,
}

impl DiffResult {
    /// Leaves out packages and units above about this many bytes of each.
    pub(crate) fn shorten(&mut self, max_bytes: usize) {
        let of_package = |package: &PackageDiff| {
            let versions = package.from.iter().chain(&package.to);
            package.name.len() + versions.map(|version| version.len() + 3).sum::<usize>() + 60
        };
        self.packages_left_out += shorten(&mut self.packages, max_bytes, of_package);
        if let Some(system) = &mut self.system {
            system.units_left_out += shorten(&mut system.units, max_bytes, |unit| unit.unit.len() + 40);
        }
    }
}

/// Leaves out what is above this many bytes; returns its number.
fn shorten<T>(list: &mut Vec<T>, max_bytes: usize, size: impl Fn(&T) -> usize) -> u64 {
    let mut bytes = 0;
    let fits = list.iter().take_while(|item| {
        bytes += size(item);
        bytes <= max_bytes
    });
    let kept = fits.count();
    let left_out = (list.len() - kept) as u64;
    list.truncate(kept);
    left_out
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted() {
        let package = |name: &str| PackageDiff {
            name: name.to_owned(),
            from: vec!["1".to_owned()],
            to: vec![],
            size_bytes: -1,
        };
        let unit = |name: &str| UnitDiff {
            unit: name.to_owned(),
            effect: UnitEffect::Restarts,
        };
        let mut result = DiffResult {
            packages: vec![package("a"), package("b")],
            system: Some(SystemDiff {
                units: vec![unit("a.service"), unit("b.service"), unit("c.service")],
                ..SystemDiff::default()
            }),
            ..DiffResult::default()
        };
        result.shorten(100);
        let system = result.system.clone().expect("a system");
        assert_eq!((result.packages.len(), result.packages_left_out), (1, 1));
        assert_eq!((system.units.len(), system.units_left_out), (2, 1));
        result.shorten(0);
        let system = result.system.expect("a system");
        assert_eq!((result.packages_left_out, system.units_left_out), (2, 3));
    }
}
