//! The static `leaf-init`, the first process of the minimal container: it has no libraries beside it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{cargo, output, run, target};

/// What tests read: where the static `leaf-init` is.
pub(crate) const VARIABLES: [&str; 2] = ["CIM_LEAF_STATIC_INIT", "CIM_LEAF_LEAF_INIT"];

/// Builds `leaf-init` static, and returns where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let triple = host_triple()?;
    // A folder of its own, so that the flags don't make cargo build all else anew.
    let folder = target().join("static");
    // With --target the flags are for the program alone, and not for build scripts, which must stay dynamic.
    let flags = format!(
        "CARGO_TARGET_{}_RUSTFLAGS",
        triple.to_uppercase().replace('-', "_")
    );
    run(cargo()
        .args(["build", "--quiet", "--package", "leaf-init", "--target", &triple])
        .args(["--config", r#"profile.dev.strip="debuginfo""#])
        .arg("--target-dir")
        .arg(&folder)
        .env(flags, "-C target-feature=+crt-static"))?;
    Ok(folder.join(triple).join("debug/leaf-init"))
}

fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = output(Command::new(rustc).arg("-vV"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .with_context(|| format!("rustc -vV says no host: {text}"))
}
