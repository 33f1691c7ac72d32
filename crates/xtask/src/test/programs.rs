//! Compiles the test programs, and determines which of them may run concurrently.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::compile::compile;

/// A test program that cargo has built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// The label: the package, and the source relative to its `Cargo.toml`.
    pub(super) label: String,
    /// The executable.
    pub(super) file: PathBuf,
    /// Its package's directory, which is its working directory, as with cargo.
    pub(super) directory: PathBuf,
    pub(super) lane: Lane,
    /// Whether it contains the unit tests of a library or a program.
    pub(super) unit: bool,
}

/// What a test program shares with others. Two of one lane never run at the same time, except those that share nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Machines in QEMU, each of which uses a processor.
    Machines,
    /// This host: containers, networks, units, cgroups, the Nix store.
    Host,
    /// Nothing: it only uses files and processes of its own.
    Nothing,
}

/// The integration tests that share nothing, by package and target. All others are in the lane of the host.
const SHARE_NOTHING: &[(&str, &str)] = &[
    ("leaf-bus", "main"),
    ("leaf-core", "main"),
    ("leaf-hub", "fleet"),
    ("leaf-journal", "main"),
    ("leaf-trust", "openpgp"),
    ("xtask", "architecture"),
    ("xtask", "circles"),
    ("xtask", "nats_module"),
    ("xtask", "documents"),
];

impl Lane {
    fn of(package: &str, kind: &str, target: &str) -> Self {
        if package == "testhost" && kind == "test" {
            Self::Machines
        } else if kind != "test" || SHARE_NOTHING.contains(&(package, target)) {
            Self::Nothing
        } else {
            Self::Host
        }
    }
}

/// Compiles what `arguments` select in the workspace, and returns the test programs in starting order.
pub(super) fn build(arguments: &[&str]) -> Result<Vec<Program>> {
    let artifacts = compile(["--workspace"].iter().chain(arguments).copied())?;
    let mut programs = programs_of(&artifacts);
    // The longest lane first; within a lane the order is stable.
    programs.sort_by(|a, b| (a.lane, &a.label).cmp(&(b.lane, &b.label)));
    Ok(programs)
}

/// Returns the test programs among the artifacts that cargo has told of.
pub(super) fn programs_of(artifacts: &[Value]) -> Vec<Program> {
    artifacts.iter().filter_map(program_of).collect()
}

/// Returns the test program in a message of cargo, if any.
fn program_of(artifact: &Value) -> Option<Program> {
    let file = PathBuf::from(artifact["executable"].as_str()?);
    if artifact["profile"]["test"] != true {
        return None;
    }
    let kind = artifact["target"]["kind"][0].as_str()?;
    if !["lib", "bin", "test"].contains(&kind) {
        return None;
    }
    let directory = Path::new(artifact["manifest_path"].as_str()?).parent()?;
    // Each package's directory has its name.
    let package = directory.file_name()?.to_str()?;
    let source = Path::new(artifact["target"]["src_path"].as_str()?);
    let source = source.strip_prefix(directory).unwrap_or(source);
    Some(Program {
        label: format!("{package} {}", source.display()),
        file,
        directory: directory.to_owned(),
        lane: Lane::of(package, kind, artifact["target"]["name"].as_str()?),
        unit: kind != "test",
    })
}

/// Returns whether a crate's documentation has examples that rustdoc would compile: most have none, and searching is
/// faster than running rustdoc.
pub(super) fn has_examples(sources: &Path) -> Result<bool> {
    for entry in std::fs::read_dir(sources).with_context(|| format!("can't read {}", sources.display()))? {
        let path = entry.context("a directory can't be read")?.path();
        let found = if path.is_dir() {
            has_examples(&path)?
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("can't read {}", path.display()))?;
            is_example(&text)
        } else {
            false
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns whether a source has a code block in a doc comment that is Rust, which is the default language of rustdoc.
fn is_example(source: &str) -> bool {
    let fences = source.lines().filter_map(|line| {
        let line = line.trim_start();
        let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"))?;
        comment.trim_start().strip_prefix("```")
    });
    // Every second fence ends a block.
    fences.step_by(2).any(|language| {
        let first = language.split(',').next().unwrap_or_default().trim();
        let rust = ["", "rust", "no_run", "should_panic", "compile_fail"];
        rust.contains(&first) || first.starts_with("edition")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::workspace;

    fn artifact(package: &str, kind: &str, source: &str, test: bool) -> Value {
        serde_json::json!({
            "reason": "compiler-artifact",
            "manifest_path": format!("/src/crates/{package}/Cargo.toml"),
            "target": { "kind": [kind], "name": "main", "src_path": format!("/src/crates/{package}/{source}") },
            "profile": { "test": test },
            "executable": "/src/target/debug/deps/main-0a1b",
        })
    }

    #[test]
    fn a_test_program_is_named_by_its_package_and_source() {
        let program = program_of(&artifact("leaf-core", "test", "tests/main/main.rs", true));
        let expected = Program {
            label: "leaf-core tests/main/main.rs".to_owned(),
            file: "/src/target/debug/deps/main-0a1b".into(),
            directory: "/src/crates/leaf-core".into(),
            lane: Lane::Nothing,
            unit: false,
        };
        assert_eq!(program, Some(expected));
    }

    #[test]
    fn programs_benchmarks_and_examples_are_not_tests() {
        for (kind, test) in [("bin", false), ("bench", true), ("example", false)] {
            assert_eq!(
                program_of(&artifact("leafd", kind, "src/main.rs", test)),
                None,
                "{kind}"
            );
        }
        assert_eq!(program_of(&serde_json::json!({"reason": "build-finished"})), None);
    }

    #[test]
    fn tests_are_in_the_lane_of_the_host_unless_listed() {
        assert_eq!(Lane::of("leafd", "test", "main"), Lane::Host);
        assert_eq!(Lane::of("a-new-crate", "test", "main"), Lane::Host);
        assert_eq!(Lane::of("leafd", "lib", "leafd"), Lane::Nothing);
        assert_eq!(Lane::of("testhost", "test", "host"), Lane::Machines);
    }

    #[test]
    fn blocks_of_rust_in_doc_comments_are_examples_and_others_are_not() {
        assert!(is_example("/// ```\n/// let x = 1;\n/// ```\n"));
        assert!(is_example("    //! ```no_run\n    //! f();\n    //! ```\n"));
        assert!(!is_example(
            "/// ```text\n/// a tree\n/// ```\nfn f() {}\n// ```\n"
        ));
    }

    #[test]
    fn each_program_that_shares_nothing_exists() {
        for (package, target) in SHARE_NOTHING {
            let tests = workspace().join("crates").join(package).join("tests");
            let found = ["", "/main"].map(|file| tests.join(format!("{target}{file}.rs")));
            assert!(
                found.iter().any(|file| file.exists()),
                "{package} has no test {target}"
            );
        }
    }
}
