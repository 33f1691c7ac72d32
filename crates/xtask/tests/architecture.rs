//! The workspace's floors: no crate depends on one beside it or above it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Every crate of the house, and the others that it may use. A new crate needs a line here, and a decision record in
/// `docs/decisions/`.
const ARROWS: &[(&str, &[&str])] = &[
    // The first floor: what a leaf is.
    ("leaf-core", &[]),
    // The second: what several crates need of a Linux host, and of cryptography.
    ("leaf-host", &["leaf-core"]),
    ("leaf-trust", &["leaf-core"]),
    // The third: each does one thing, and knows none of its neighbours.
    ("leaf-journal", &["leaf-core", "leaf-host"]),
    ("leaf-bus", &["leaf-core", "leaf-host"]),
    ("leaf-hardware", &["leaf-core", "leaf-host"]),
    ("leaf-container", &["leaf-core", "leaf-host"]),
    ("leaf-job", &["leaf-core", "leaf-host"]),
    ("leaf-nix", &["leaf-core", "leaf-host"]),
    ("leaf-helper", &["leaf-core", "leaf-host", "leaf-trust"]),
    // The fourth: the programs, in which they meet.
    (
        "leafd",
        &[
            "leaf-core",
            "leaf-host",
            "leaf-trust",
            "leaf-journal",
            "leaf-bus",
            "leaf-hardware",
            "leaf-container",
            "leaf-job",
            "leaf-nix",
            "leaf-helper",
        ],
    ),
    ("leafctl", &["leaf-core", "leaf-trust", "leaf-bus"]),
    ("leaf-hub", &["leaf-core", "leaf-host", "leaf-trust", "leaf-bus"]),
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
    ("ssh-key", "leaf-trust"),
    ("age", "leaf-trust"),
    ("pgp", "leaf-trust"),
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

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// A crate of the workspace.
struct Package {
    name: String,
    directory: PathBuf,
    dependencies: Vec<Dependency>,
    published: bool,
}

struct Dependency {
    name: String,
    /// Used by tests, benchmarks and examples only.
    development: bool,
}

/// The crates of the workspace, as `cargo metadata` tells of them (its format: `cargo help metadata`).
fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .current_dir(WORKSPACE)
        .args(["metadata", "--format-version=1", "--no-deps"])
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    list(&metadata["packages"])
        .iter()
        .map(|package| Package {
            name: text(&package["name"]),
            directory: Path::new(&text(&package["manifest_path"])).with_file_name(""),
            dependencies: list(&package["dependencies"])
                .iter()
                .map(|dependency| Dependency {
                    name: text(&dependency["name"]),
                    development: dependency["kind"] == "dev",
                })
                .collect(),
            published: package["publish"] != Value::Array(Vec::new()),
        })
        .collect()
}

/// Every crate, and what it is built with; what its tests use is free.
fn house() -> BTreeMap<String, BTreeSet<String>> {
    let uses = |package: &Package| {
        let built_with = package.dependencies.iter().filter(|used| !used.development);
        built_with.map(|used| used.name.clone()).collect()
    };
    packages()
        .iter()
        .map(|package| (package.name.clone(), uses(package)))
        .collect()
}

/// The sources of a crate below one of its directories, by their paths there.
fn sources(directory: &Path) -> BTreeMap<PathBuf, String> {
    fn add(directory: &Path, below: &Path, found: &mut BTreeMap<PathBuf, String>) {
        let entries = std::fs::read_dir(directory).into_iter().flatten();
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                add(&path, below, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source is text");
                let name = path.strip_prefix(below).expect("it is below").to_owned();
                found.insert(name, text);
            }
        }
    }
    let mut found = BTreeMap::new();
    add(directory, directory, &mut found);
    found
}

#[test]
fn the_workspace_has_the_designed_crates_and_no_others() {
    let known: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    let house = house();
    let there: BTreeSet<&str> = house.keys().map(String::as_str).collect();
    assert_eq!(there, known);
}

#[test]
fn no_crate_depends_on_a_higher_floor_or_its_own() {
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
fn a_dependency_reserved_for_one_crate_is_not_used_by_others() {
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
fn no_crate_is_published_by_accident() {
    for package in packages() {
        assert!(!package.published, "{} says publish = false", package.name);
    }
}

/// Whether a source names a crate: `name::`, `use name`, an attribute that has it as a text.
fn names(source: &str, package: &str) -> bool {
    let name = package.replace('-', "_");
    let outside = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    source.lines().any(|line| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices(&name).any(|(at, _)| {
            let (before, after) = (&code[..at], &code[at + name.len()..]);
            outside(before.chars().next_back())
                && outside(after.chars().next())
                && (after.starts_with("::")
                    || before.trim_end().ends_with("use")
                    || before.ends_with('"') && after.starts_with(['"', ':']))
        })
    })
}

#[test]
fn a_crate_names_each_of_its_dependencies() {
    let mut unused = Vec::new();
    for package in packages() {
        for dependency in &package.dependencies {
            let directories: &[&str] = if dependency.development {
                &["src", "tests", "benches", "examples"]
            } else {
                &["src"]
            };
            let named = directories.iter().any(|directory| {
                let sources = sources(&package.directory.join(directory));
                sources.values().any(|source| names(source, &dependency.name))
            });
            if !named {
                unused.push(format!("{}: {}", package.name, dependency.name));
            }
        }
    }
    assert!(unused.is_empty(), "take these out of Cargo.toml: {unused:?}");
}

#[test]
fn each_dependency_that_the_workspace_lists_is_used_by_a_crate() {
    let used: BTreeSet<String> = packages()
        .into_iter()
        .flat_map(|package| package.dependencies)
        .map(|dependency| dependency.name)
        .collect();
    let manifest =
        std::fs::read_to_string(Path::new(WORKSPACE).join("Cargo.toml")).expect("the workspace's manifest");
    let (_, listed) = manifest
        .split_once("[workspace.dependencies]\n")
        .expect("it lists dependencies");
    let unused: Vec<&str> = listed
        .lines()
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split_once(" = ").map(|(name, _)| name.trim()))
        .filter(|name| !name.starts_with('#') && !used.contains(*name))
        .collect();
    assert!(unused.is_empty(), "take these out of Cargo.toml: {unused:?}");
}

/// Crates with more features in tests than in programs. What depends on one of them is compiled once for each, so the list
/// stays short, and nothing that most crates depend on is in it.
const MORE_IN_TESTS: &[&str] = &["idna"];

/// Every crate that is compiled for the workspace, with its features.
fn compiled(edges: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(WORKSPACE)
        .args(["tree", "--workspace", "--frozen", "--no-dedupe", "--prefix=none"])
        .args(["--edges", edges, "--format={p} {f}"])
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn programs_and_tests_are_built_with_the_same_features() {
    let (programs, tests) = (compiled("normal,build"), compiled("normal,build,dev"));
    let differ: BTreeSet<&str> = programs
        .difference(&tests)
        .filter_map(|line| line.split(' ').next())
        .collect();
    let known: BTreeSet<&str> = MORE_IN_TESTS.iter().copied().collect();
    let new: Vec<_> = differ.difference(&known).collect();
    assert!(
        new.is_empty(),
        "a dependency of tests switches on features of {new:?}, and all that depends on them is compiled twice"
    );
}
