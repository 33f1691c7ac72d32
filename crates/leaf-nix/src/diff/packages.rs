//! The packages of two closures: what Nix lists of each, and what differs.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use leaf_core::job::diff::{MOST_PACKAGES, MOST_VERSIONS, PackageDiff};

/// The difference of sizes below which a package of the same versions counts as unchanged, in bytes, as `nix store diff-closures`
/// has it.
const SAME_SIZE_BYTES: u64 = 8 * 1024;
/// The length of a store path's hash.
const HASH_LENGTH: usize = 32;

/// The packages of a closure by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Closure(BTreeMap<String, Package>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Package {
    versions: BTreeSet<String>,
    /// The NAR size of all its store paths, in bytes.
    size: u64,
}

impl Closure {
    /// Reads what `nix path-info --recursive --size` printed: a store path and its size in each line.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut closure = Self::default();
        for line in text.lines() {
            let bad = || format!("nix path-info printed a line that can't be read: {line:?}");
            let (path, size) = line.split_once(char::is_whitespace).ok_or_else(bad)?;
            let size: u64 = size.trim().parse().map_err(|_| bad())?;
            let name = path
                .rsplit('/')
                .next()
                .and_then(|base| base.get(HASH_LENGTH + 1..));
            let (name, version) = split(name.ok_or_else(bad)?);
            let package = closure.0.entry(name.to_owned()).or_default();
            package.versions.insert(version.to_owned());
            package.size += size;
        }
        Ok(closure)
    }

    /// Returns the NAR size of all store paths, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.0.values().map(|package| package.size).sum()
    }
}

/// Returns the packages that differ, as many as a result lists, and the number of further ones.
pub(super) fn compare(before: &Closure, after: &Closure) -> (Vec<PackageDiff>, u64) {
    let none = Package::default();
    let names: BTreeSet<&String> = before.0.keys().chain(after.0.keys()).collect();
    let mut differ: Vec<PackageDiff> = names
        .into_iter()
        .filter_map(|name| {
            let [old, new] = [before, after].map(|closure| closure.0.get(name).unwrap_or(&none));
            if old.versions == new.versions && old.size.abs_diff(new.size) < SAME_SIZE_BYTES {
                return None;
            }
            Some(PackageDiff {
                name: name.clone(),
                from: few(&old.versions),
                to: few(&new.versions),
                size_bytes: i64::try_from(i128::from(new.size) - i128::from(old.size)).unwrap_or(i64::MAX),
            })
        })
        .collect();
    // The names are in order already.
    differ.sort_by_key(|package| {
        let same_versions = package.from == package.to;
        let size = if same_versions {
            package.size_bytes.unsigned_abs()
        } else {
            0
        };
        (same_versions, Reverse(size))
    });
    let left_out = differ.len().saturating_sub(MOST_PACKAGES) as u64;
    differ.truncate(MOST_PACKAGES);
    (differ, left_out)
}

fn few(versions: &BTreeSet<String>) -> Vec<String> {
    versions.iter().take(MOST_VERSIONS).cloned().collect()
}

/// Splits a store path's name into name and version, without the output, as `nix store diff-closures` does: the version begins after
/// the first dash that no letter follows.
fn split(name: &str) -> (&str, &str) {
    let is_output = |end: &str| {
        ["lib32", "lib64"].contains(&end)
            || !end.is_empty() && end.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    let version_at = |name: &str| {
        let bytes = name.as_bytes();
        (0..bytes.len()).find(|at| {
            bytes[*at] == b'-' && bytes.get(at + 1).is_some_and(|next| !next.is_ascii_alphabetic())
        })
    };
    let Some(at) = version_at(name) else {
        return (name, "");
    };
    let (package, version) = (&name[..at], &name[at + 1..]);
    match version.rsplit_once('-') {
        Some((version, output)) if is_output(output) => (package, version),
        _ => (package, version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_as_nix_does() {
        for (name, package, version) in [
            ("hello-2.12", "hello", "2.12"),
            ("openssl-3.0.13-bin", "openssl", "3.0.13"),
            ("gcc-13.2.0-libgcc", "gcc", "13.2.0"),
            ("nixos-system-edge-1-25.05", "nixos-system-edge", "1-25.05"),
            ("unit-nginx.service", "unit-nginx.service", ""),
            ("glibc-2.39-52-lib64", "glibc", "2.39-52"),
            ("a-", "a-", ""),
        ] {
            assert_eq!(split(name), (package, version), "{name}");
        }
    }

    #[test]
    fn other_versions_come_before_other_sizes_and_what_is_nearly_the_same_is_left_out() {
        let line = |name: &str, size: u64| format!("/nix/store/{:032}-{name} \t {size}\n", 0);
        let before = [
            ("hello-2.10", 100),
            ("zlib-1.3", 50_000),
            ("zlib-1.3-dev", 50_000),
            ("same-1", 8_000),
            ("etc", 10),
            ("gone-1", 70_000),
        ];
        let after = [
            ("hello-2.12", 90),
            ("hello-2.11", 10),
            ("zlib-1.3", 80_000),
            ("same-1", 16_191),
            ("etc", 90_000),
            ("new", 1),
        ];
        let closure = |paths: &[(&str, u64)]| {
            let text: String = paths.iter().map(|(name, size)| line(name, *size)).collect();
            Closure::parse(&text).expect("readable")
        };
        let (before, after) = (closure(&before), closure(&after));
        assert_eq!((before.size(), after.size()), (178_110, 186_292));
        let (differ, left_out) = compare(&before, &after);
        let shown: Vec<_> = differ
            .iter()
            .map(|p| format!("{} {:?} {:?} {}", p.name, p.from, p.to, p.size_bytes))
            .collect();
        assert_eq!(
            shown,
            [
                r#"gone ["1"] [] -70000"#,
                r#"hello ["2.10"] ["2.11", "2.12"] 0"#,
                r#"new [] [""] 1"#,
                r#"etc [""] [""] 89990"#,
                r#"zlib ["1.3"] ["1.3"] -20000"#,
            ]
        );
        assert_eq!(left_out, 0);
        for bad in [
            "x",
            "/nix/store/a 1",
            "/nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-a b",
        ] {
            Closure::parse(bad).expect_err("it is no list");
        }
    }
}
