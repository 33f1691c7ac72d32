//! The workspace's floors: no crate depends on one beside it or above it.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// Every crate of the house, and the others that it may use. A new crate needs a line here, and a decision record in
/// `docs/decisions/`.
const ARROWS: &[(&str, &[&str])] = &[
    // The first floor: what a leaf is.
    ("leaf-core", &[]),
    // The second: what several crates need of a Linux host.
    ("leaf-host", &["leaf-core"]),
    // The third: each does one thing, and knows none of its neighbours.
    ("leaf-journal", &["leaf-core", "leaf-host"]),
    ("leaf-bus", &["leaf-core", "leaf-host"]),
    ("leaf-hardware", &["leaf-core", "leaf-host"]),
    ("leaf-container", &["leaf-core", "leaf-host"]),
    ("leaf-job", &["leaf-core", "leaf-host"]),
    ("leaf-nix", &["leaf-core", "leaf-host"]),
    ("leaf-helper", &["leaf-core", "leaf-host"]),
    // The fourth: the programs, in which they meet.
    (
        "leafd",
        &[
            "leaf-core",
            "leaf-host",
            "leaf-journal",
            "leaf-bus",
            "leaf-hardware",
            "leaf-container",
            "leaf-job",
            "leaf-nix",
            "leaf-helper",
        ],
    ),
    ("leafctl", &["leaf-core", "leaf-bus"]),
    ("leaf-init", &["leaf-core", "leaf-bus"]),
    // Beside them, for development: they are on no leaf.
    ("testhost", &[]),
    ("xtask", &["leaf-core", "testhost"]),
];

/// Crates from outside that only one crate may use, since they bring I/O that is this crate's alone.
const ALONE: &[(&str, &str)] = &[
    ("async-nats", "leaf-bus"),
    ("redb", "leaf-journal"),
    ("zbus", "leaf-host"),
    ("udev", "leaf-hardware"),
    ("tokio-udev", "leaf-hardware"),
];

/// Crates that do I/O or keep time, and have no place in leaf-core.
const NOT_IN_CORE: &[&str] = &[
    "tokio",
    "futures",
    "rustix",
    "tracing",
    "anyhow",
    "async-nats",
    "redb",
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata")
}

/// What a crate is built with; what its tests use is free.
fn uses(package: &Package) -> BTreeSet<String> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind != DependencyKind::Development)
        .map(|dependency| dependency.name.clone())
        .collect()
}

fn house() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = metadata();
    metadata
        .workspace_packages()
        .iter()
        .map(|package| (package.name.to_string(), uses(package)))
        .collect()
}

#[test]
fn the_house_has_the_crates_of_the_design_and_no_other() {
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let house = house();
    let there: BTreeSet<&str> = house.keys().map(String::as_str).collect();
    assert_eq!(there, known);
}

#[test]
fn no_arrow_goes_sideways_or_up() {
    let house = house();
    for (name, may_use) in ARROWS {
        let within: BTreeSet<&str> = house[*name]
            .iter()
            .map(String::as_str)
            .filter(|used| house.contains_key(*used))
            .collect();
        let may_use: BTreeSet<&str> = may_use.iter().copied().collect();
        let wrong: Vec<_> = within.difference(&may_use).collect();
        assert!(wrong.is_empty(), "{name} must not use {wrong:?}");
    }
}

#[test]
fn what_one_crate_hides_no_other_uses() {
    for (name, used) in house() {
        for (hidden, owner) in ALONE {
            assert!(
                name == *owner || !used.contains(*hidden),
                "{name} uses {hidden}, which is {owner}'s alone"
            );
        }
    }
}

#[test]
fn the_core_stays_pure() {
    let used = &house()["leaf-core"];
    let impure: Vec<_> = NOT_IN_CORE.iter().filter(|name| used.contains(**name)).collect();
    assert!(impure.is_empty(), "leaf-core must not use {impure:?}");
}

#[test]
fn nothing_in_the_house_is_published_by_accident() {
    for package in metadata().workspace_packages() {
        assert_eq!(
            package.publish,
            Some(Vec::new()),
            "{} says publish = false",
            package.name
        );
    }
}
