//! Builds what has the cargo feature `openpgp`, which no other program has: its tests, and a leafd for the test that signs by gpg.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::programs::{self, Program};
use crate::command::{cargo, target};
use crate::compile::compile_by;

/// The variable with the leafd, which the test reads.
pub(super) const VARIABLE: &str = "CIM_LEAF_OPENPGP_LEAFD";

/// Returns the leafd, and the test programs.
///
/// # Errors
/// Where they do not compile.
pub(super) fn build() -> Result<(PathBuf, Vec<Program>)> {
    // Beside the programs without the feature, which keep their place. What both are made of is compiled once, as the whole
    // workspace is selected.
    let built = target().join("openpgp");
    let mut with_its_own_target = cargo();
    with_its_own_target
        .env("CARGO_BUILD_BUILD_DIR", target())
        .env("CARGO_TARGET_DIR", &built);
    let selected = [
        "--workspace",
        "--features",
        "leafd/openpgp",
        "--bin",
        "leafd",
        "--test",
        "openpgp",
    ];
    let artifacts = compile_by(with_its_own_target, selected)
        .context("can't compile what has the cargo feature openpgp")?;
    Ok((built.join("debug/leafd"), programs::programs_of(&artifacts)))
}
