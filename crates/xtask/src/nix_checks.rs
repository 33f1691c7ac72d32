//! The tests of the Nix files: every file parses, the unit tests of pure functions pass, and the modules evaluate with
//! the real NixOS modules if a nixpkgs tree exists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use testhost::nixos::{TREE_VARIABLE, nixpkgs};

use crate::command::{output, target, workspace};
use crate::tally::Tally;

/// The directories with an expression each that `nix-instantiate --eval --strict --json` evaluates.
const UNIT: &str = "tests/nix";
const NIXOS: &str = "tests/nixos";
/// Samples of the settings files rendered by the NixOS modules, by name, and the program that reads each.
const SAMPLES: [(&str, &str); 2] = [
    ("leafd", "tests/nix/samples.nix"),
    ("leaf-hub", "tests/nix/samples-hub.nix"),
];

/// Runs all tests, or those that have `filter` in their name.
pub(crate) fn run(tally: &mut Tally, filter: Option<&str>) -> Result<()> {
    let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    for file in nix_files()? {
        let name = format!("nix parses: {}", file.display());
        if wanted(&name) {
            match instantiate(["--parse".as_ref(), file.as_os_str()])? {
                Ok(_) => pass(tally, &name, 1),
                Err(why) => fail(tally, &name, &why),
            }
        }
    }
    let name = format!("nix unit tests: {UNIT}");
    if wanted(&name) && workspace().join(UNIT).join("default.nix").exists() {
        match evaluate(UNIT)? {
            Ok(report) => pass(tally, &name, passed_in(&report)),
            Err(why) => {
                let failed = failed_in(&why);
                if failed.is_empty() {
                    fail(tally, &name, &why);
                } else {
                    eprintln!("{why}");
                    failed
                        .iter()
                        .for_each(|test| fail(tally, &format!("{name}: {test}"), ""));
                }
            }
        }
    }
    for (program, samples) in SAMPLES {
        let name = format!("{program} accepts the settings that the NixOS module renders: {samples}");
        if wanted(&name) && workspace().join(samples).exists() {
            match accepted_samples(program, samples) {
                Ok(count) => pass(tally, &name, count),
                Err(why) => fail(tally, &name, &format!("{why:#}")),
            }
        }
    }
    let name = format!("nix evaluates with the NixOS modules: {NIXOS}");
    if wanted(&name) && workspace().join(NIXOS).join("default.nix").exists() {
        match nixpkgs() {
            Err(reason) => {
                println!("test {name} ... ignored, {reason}");
                tally.skip(name, reason.to_string());
            }
            Ok(_) => match evaluate(NIXOS)? {
                Ok(report) => pass(tally, &name, passed_in(&report)),
                Err(why) => fail(tally, &name, &why),
            },
        }
    }
    for test in nixos_tests()? {
        let name = format!("nixos test: {test}");
        if wanted(&name) {
            let reason = "it needs a package set and KVM; `nix flake check` runs it";
            println!("test {name} ... ignored, {reason}");
            tally.skip(name, reason.to_owned());
        }
    }
    Ok(())
}

/// The NixOS tests of the checkout, by name.
fn nixos_tests() -> Result<Vec<String>> {
    let files = nix_files()?;
    let tests = files
        .iter()
        .filter(|file| file.parent() == Some(Path::new(NIXOS)));
    let names = tests.filter_map(|file| file.file_stem()?.to_str());
    Ok(names
        .filter(|name| *name != "default")
        .map(str::to_owned)
        .collect())
}

/// Checks the settings rendered by a module's pure functions with the program's own checker; returns the number of accepted
/// files.
fn accepted_samples(program: &str, samples: &str) -> Result<u64> {
    let report = evaluate(samples)?.map_err(anyhow::Error::msg)?;
    let samples: BTreeMap<String, String> =
        serde_json::from_str(&report).context("the samples are not an object of texts")?;
    ensure!(!samples.is_empty(), "there are no samples");
    let directory = tempfile::tempdir().context("can't make a temporary directory")?;
    let program = target().join("debug").join(program);
    for (name, text) in &samples {
        let file = directory.path().join(format!("{name}.toml"));
        std::fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
        output(Command::new(&program).arg("check-config").arg(&file))
            .with_context(|| format!("the sample {name}"))?;
    }
    Ok(samples.len() as u64)
}

fn pass(tally: &mut Tally, name: &str, count: u64) {
    match count {
        1 => println!("test {name} ... ok"),
        count => println!("test {name} ... ok ({count} tests)"),
    }
    tally.pass(count);
}

fn fail(tally: &mut Tally, name: &str, why: &str) {
    if !why.is_empty() {
        eprintln!("{why}");
    }
    println!("test {name} ... FAILED");
    tally.fail(name);
}

/// Returns the number of tests in a report: `{"passed":N,…}`; any other value is one test that passed.
fn passed_in(report: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(report)
        .ok()
        .and_then(|report| report.get("passed")?.as_u64())
        .unwrap_or(1)
}

/// Returns the names of the failed tests: each is in the line before `actual:`.
fn failed_in(error: &str) -> Vec<String> {
    let lines: Vec<&str> = error.lines().collect();
    lines
        .windows(2)
        .filter(|pair| pair[1].trim_start().starts_with("actual:"))
        .map(|pair| pair[0].trim().trim_start_matches("error:").trim().to_owned())
        .collect()
}

/// Returns every Nix file of the checkout that git doesn't ignore, relative to it.
fn nix_files() -> Result<Vec<PathBuf>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.nix"])
        .current_dir(workspace())
        .stderr(Stdio::null())
        .output();
    let mut files = match listed {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(PathBuf::from)
            .filter(|file| workspace().join(file).exists())
            .collect(),
        // Not a git checkout, but a source archive, for example.
        _ => below(&workspace(), Path::new(""))?,
    };
    files.sort();
    Ok(files)
}

fn below(root: &Path, directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let absolute = root.join(directory);
    let entries =
        std::fs::read_dir(&absolute).with_context(|| format!("can't read {}", absolute.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if path != Path::new("target") && !entry.file_name().to_string_lossy().starts_with('.') {
                files.extend(below(root, &path)?);
            }
        } else if path.extension().is_some_and(|e| e == "nix") {
            files.push(path);
        }
    }
    Ok(files)
}

fn evaluate(directory: &str) -> Result<Result<String, String>> {
    instantiate(["--eval", "--strict", "--json", directory].map(AsRef::as_ref))
}

/// Runs `nix-instantiate` in the checkout without the system's store; returns its output, or its error.
fn instantiate<'a>(args: impl IntoIterator<Item = &'a std::ffi::OsStr>) -> Result<Result<String, String>> {
    let mut command = Command::new("nix-instantiate");
    if let Ok(tree) = nixpkgs() {
        command.env(TREE_VARIABLE, tree);
    }
    let output = command
        .args(args)
        // Debian's nix is configured with a group of build users that it doesn't create.
        .args(["--option", "build-users-group", ""])
        .current_dir(workspace())
        .stdin(Stdio::null())
        .output()
        .context("can't run nix-instantiate; `cargo xtask setup` installs it")?;
    Ok(if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_how_many_tests_passed() {
        assert_eq!(passed_in(r#"{"passed":12,"tests":["a"]}"#), 12);
        assert_eq!(passed_in(r#"{"unit":"[Unit]"}"#), 1);
    }

    #[test]
    fn the_tests_that_failed_are_named() {
        let error =
            "error: toml.nix: a number\n    actual:   1\n    expected: 2\ntoml.nix: a text\n    actual: 3";
        assert_eq!(failed_in(error), ["toml.nix: a number", "toml.nix: a text"]);
    }

    #[test]
    fn files_are_found_without_git() {
        let root = tempfile::tempdir().expect("a temporary directory");
        for file in ["a.nix", "b/c.nix", "b/d.txt", "target/e.nix", ".git/f.nix"] {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            std::fs::write(path, "1").expect("a file");
        }
        let mut found = below(root.path(), Path::new("")).expect("a directory");
        found.sort();
        assert_eq!(found, ["a.nix", "b/c.nix"].map(PathBuf::from));
    }
}
