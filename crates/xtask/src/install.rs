//! Builds the programs and lays them out like a package: `bin/` and `share/cim-leaf/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::command::{target, workspace};
use crate::compile::compile;
use crate::setup::Tools;

/// The build profile, which determines the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// A debug build, in `target/demo`.
    Debug,
    /// A release build, in `target/bench`.
    Release,
}

impl Profile {
    /// Returns the name of cargo's directory for the profile.
    pub(crate) const fn directory(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Release => "release",
        }
    }
}

/// The programs of a leaf and of a hub. `leaf-helper` and `leaf-init` are static (`.cargo/rustc`).
const PROGRAMS: [&str; 6] = [
    "leafd",
    "leafctl",
    "leaf-hub",
    "leaf-helper",
    "cim-leaf-generator",
    "leaf-init",
];

/// Compiles the programs, lays them out, and returns the directory.
pub(crate) fn install(tools: &Tools, profile: Profile) -> Result<PathBuf> {
    // All programs of the workspace, so that the features are the same as for xtask itself and for `cargo build`.
    let mut arguments = vec!["--workspace", "--bins"];
    if profile == Profile::Release {
        arguments.push("--release");
    }
    compile(arguments)?;
    lay_out(tools, profile)
}

/// Lays out programs that were compiled before, and returns the directory.
pub(crate) fn lay_out(tools: &Tools, profile: Profile) -> Result<PathBuf> {
    let tree = match profile {
        Profile::Debug => "demo",
        Profile::Release => "bench",
    };
    let (built, tree) = (target().join(profile.directory()), target().join(tree));
    let bin = tree.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("can't make {}", bin.display()))?;
    for program in PROGRAMS {
        place(&built.join(program), &bin.join(program))?;
    }
    place(&tools.nats_server, &bin.join("nats-server"))?;
    // The container templates, and the modules that some of them use.
    for directory in ["containers", "nixos-modules"] {
        let installed = tree.join("share/cim-leaf").join(directory);
        if installed.exists() {
            fs::remove_dir_all(&installed)
                .with_context(|| format!("can't remove {}", installed.display()))?;
        }
        copy_directory(&workspace().join(directory), &installed)?;
    }
    Ok(tree)
}

/// Hard-links a file, or copies it if that is not possible.
fn place(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_file(to).with_context(|| format!("can't replace {}", to.display()))?;
    }
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(|_| ()))
        .with_context(|| format!("can't copy {} to {}", from.display(), to.display()))
}

fn copy_directory(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("can't make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("can't read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("can't write {}", target.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_copied_and_a_program_replaced() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let from = root.path().join("from");
        fs::create_dir_all(from.join("minimal")).expect("a directory");
        fs::write(from.join("minimal/default.nix"), "{ }").expect("a file");
        copy_directory(&from, &root.path().join("to")).expect("a copy");
        let copy = root.path().join("to/minimal/default.nix");
        assert_eq!(fs::read_to_string(&copy).expect("a file"), "{ }");
        fs::write(root.path().join("new"), "new").expect("a file");
        place(&root.path().join("new"), &copy).expect("a link");
        assert_eq!(fs::read_to_string(&copy).expect("a file"), "new");
        assert_eq!(
            fs::read_to_string(from.join("minimal/default.nix")).expect("a file"),
            "{ }"
        );
    }
}
