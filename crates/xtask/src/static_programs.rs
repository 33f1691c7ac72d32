//! Programs that are static: `leaf-init`, the first process of the minimal container, which has no libraries beside it, and
//! `leaf-helper`, which each start and each end of a container executes: that is quicker without a dynamic linker.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{cargo, output, run, target};
use crate::install::Profile;

/// What tests read: where the static `leaf-init` is.
pub(crate) const VARIABLES: [&str; 2] = ["CIM_LEAF_STATIC_INIT", "CIM_LEAF_LEAF_INIT"];

/// Builds the programs of these packages, and returns the folder in which they are.
pub(crate) fn build(profile: Profile, packages: &[&str]) -> Result<PathBuf> {
    let triple = host_triple()?;
    // A folder of its own, so that the flags don't make cargo build all else anew.
    let folder = target().join("static");
    // With --target the flags are for the programs alone, and not for build scripts, which must stay dynamic.
    let flags = format!(
        "CARGO_TARGET_{}_RUSTFLAGS",
        triple.to_uppercase().replace('-', "_")
    );
    let mut build = cargo();
    build
        .args(["build", "--quiet", "--target", &triple])
        .args(packages.iter().flat_map(|package| ["--package", package]))
        .arg("--target-dir")
        .arg(&folder)
        .env(flags, "-C target-feature=+crt-static");
    match profile {
        Profile::Debug => build.args(["--config", r#"profile.dev.strip="debuginfo""#]),
        Profile::Release => build.arg("--release"),
    };
    run(&mut build).with_context(|| format!("{} can't be built static", packages.join(" and ")))?;
    Ok(folder.join(triple).join(profile.folder()))
}

fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = output(Command::new(rustc).arg("-vV"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .with_context(|| format!("rustc -vV says no host: {text}"))
}
