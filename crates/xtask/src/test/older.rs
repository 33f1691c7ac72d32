//! Builds the leafd of an earlier commit, for the test that goes to it and back over one state directory.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};
use testhost::cache_directory;

use crate::command::{cargo, output, run, target, workspace};

/// The variable with the older program, which the test reads.
pub(super) const VARIABLE: &str = "CIM_LEAF_OLD_LEAFD";

/// The commit whose leafd a host may still go back to. It moves on with each release, to the oldest that is still supported.
const COMMIT: &str = "929f5731b3e63146ba77e3580a2f3f1135c20c75";

/// Returns that program: the one that [`VARIABLE`] names, the one that was built before, or a new one.
///
/// # Errors
/// Where the commit is not in this checkout, or does not compile.
pub(super) fn leafd() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os(VARIABLE) {
        return Ok(named.into());
    }
    let directory = cache_directory().join(format!("leafd-{}", &COMMIT[..12]));
    let program = directory.join("leafd");
    if program.is_file() {
        return Ok(program);
    }
    let sources = tempfile::tempdir_in(target()).context("can't make a directory for the sources")?;
    let archive = sources.path().join("sources.tar");
    output(
        Command::new("git")
            .current_dir(workspace())
            .args(["archive", "--output"])
            .arg(&archive)
            .arg(COMMIT),
    )
    .context("this checkout does not have it; a shallow clone gets it by `git fetch --unshallow`")?;
    output(
        Command::new("tar")
            .arg("-xf")
            .arg(&archive)
            .arg("-C")
            .arg(sources.path()),
    )?;

    // What both are made of is compiled once: cargo keeps it in the build directory that this checkout has.
    let built = sources.path().join("built");
    run(cargo()
        .current_dir(sources.path())
        .args(["build", "--workspace", "--bin", "leafd", "--locked", "--quiet"])
        .env("CARGO_BUILD_BUILD_DIR", target())
        .env("CARGO_TARGET_DIR", &built)
        // The lints are those of today.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS"))?;

    fs::create_dir_all(&directory).with_context(|| format!("can't make {}", directory.display()))?;
    let part = directory.join(format!("leafd.{}", std::process::id()));
    fs::copy(built.join("debug/leafd"), &part)
        .and_then(|_| fs::rename(&part, &program))
        .with_context(|| format!("can't write {}", program.display()))?;
    Ok(program)
}
