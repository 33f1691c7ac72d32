//! Systems for containers and things to build, made of a static busybox and shell scripts.

use std::process::Stdio;

use anyhow::{Context as _, ensure};
use leaf_core::id::StorePath;
use leaf_core::job::Installable;
use tokio::process::Command;

use crate::support::TestLeaf;

/// A script that says it is ready, and ends when it is told to halt.
pub(crate) const WAITS: &str =
    "exec /run/leaf/init ready -- $b sh -c 'trap \"exit 0\" 37; while :; do $b sleep 1000 & wait; done'";

/// A script that is never ready, and ends when it is told to halt.
pub(crate) const NEVER_READY: &str = "trap 'exit 0' 37; while :; do $b sleep 1000 & wait; done";

/// Builds a system whose init is this script, with busybox as `$b`.
pub(crate) async fn system(script: &str) -> anyhow::Result<StorePath> {
    build(
        script,
        "$b mkdir $out; echo \"#!$b sh\" > $out/init; echo \"b=$b\" >> $out/init; echo \"$script\" >> $out/init; $b chmod +x $out/init",
    )
    .await
}

/// Builds a store path by this script.
pub(crate) async fn store_path(builder: &str) -> anyhow::Result<StorePath> {
    build("", builder).await
}

async fn build(script: &str, builder: &str) -> anyhow::Result<StorePath> {
    // A busybox of another name does not know what it is.
    let directory = std::fs::canonicalize("/bin/busybox")?;
    let directory = directory.parent().context("a directory")?;
    let expression = r#"{ directory, script, builder }:
        let tools = builtins.path { path = /. + directory; name = "tools"; filter = path: _: baseNameOf path == "busybox"; };
            b = "${tools}/busybox"; in
        derivation { name = "test-system"; system = builtins.currentSystem; builder = b; inherit script b;
                     args = [ "sh" "-ec" builder ]; }"#;
    let output = Command::new("nix-build")
        .args(["--no-out-link", "--option", "substituters", ""])
        .args([
            "--option",
            "build-users-group",
            "",
            "--option",
            "sandbox",
            "false",
        ])
        .args([
            "-E", expression, "--argstr", "script", script, "--argstr", "builder", builder,
        ])
        .args(["--argstr", "directory"])
        .arg(directory)
        .stdin(Stdio::null())
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let path = String::from_utf8(output.stdout)?;
    StorePath::new(path.trim()).context("nix-build names a store path")
}

/// What tells the builds of one leaf from those of every other: nothing of it was built before.
pub(crate) fn mark(leaf: &TestLeaf) -> String {
    let directory = leaf.scratch().file_name().and_then(|name| name.to_str());
    directory.expect("a name").replace('.', "-")
}

/// A derivation that runs this script in the sandbox; its builder has [`mark`] in its arguments.
pub(crate) fn derivation(leaf: &TestLeaf, name: &str, script: &str) -> String {
    let mark = mark(leaf);
    let system = std::env::consts::ARCH;
    format!(
        "derivation {{ name = \"{mark}-{name}\"; system = \"{system}-linux\"; builder = \"/bin/sh\"; \
         args = [ \"-c\" '': {mark}; {script}'' ]; }}"
    )
}

/// A file with this expression.
pub(crate) fn file(leaf: &TestLeaf, name: &str, expression: &str) -> anyhow::Result<Installable> {
    let path = leaf.scratch().join(format!("{name}.nix"));
    std::fs::write(&path, expression)?;
    Ok(Installable::File {
        path: path.to_str().context("UTF-8")?.to_owned(),
        attribute: None,
    })
}

/// A file with one derivation that runs this script.
pub(crate) fn script(leaf: &TestLeaf, name: &str, script: &str) -> anyhow::Result<Installable> {
    file(leaf, name, &derivation(leaf, name, script))
}
