//! `cargo xtask demo`: shows the main features step by step, on a leaf that is started and stopped for it.
//!
//! This module has the steps; [`leaf`] prints and runs their commands, and [`fleet`] shows a hub with two leaves.

mod fleet;
mod leaf;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::build_shell::BUILD_SHELL;
use crate::install::{Profile, install};
use crate::setup;
use leaf::Shown;

/// The container that is created and destroyed.
const CONTAINER: &str = "demo";

/// Install what is missing, start a leaf with an embedded NATS server, and show the main features
///
/// Each step is printed as the command that you would type, with its real output. Exits with 0 only if every step
/// worked, and stops what it started.
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// Leave the leaf running, and print what to try next
    #[arg(long)]
    keep: bool,
}

impl Demo {
    pub(crate) fn run(self) -> Result<ExitCode> {
        ensure!(
            setup::is_root(),
            "the demo runs a container, which needs root; try: sudo --preserve-env=PATH,HOME cargo xtask demo"
        );
        let tools = setup::prepare(false)?;
        let tree = install(&tools, Profile::Debug)?;
        let directory = tempfile::Builder::new()
            .prefix("cim-leaf-demo-")
            .tempdir()
            .context("can't make a temporary directory")?;

        title("A leaf with an embedded NATS server");
        let mut leaf = Shown::start(&tree, directory.path())?;
        let shown = tour(&mut leaf, directory.path()).and_then(|()| fleet::show(&tree, directory.path()));
        if let Err(error) = shown {
            leaf.print_log_end();
            return Err(error);
        }
        if self.keep {
            let directory = directory.keep();
            leaf.keep(&tree, &directory);
        } else {
            leaf.stop()?;
            println!("\nEvery step worked. The leaf is stopped, and its files are removed.");
            println!("To leave it running and try more: cargo xtask demo --keep");
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn tour(leaf: &mut Shown, directory: &Path) -> Result<()> {
    title("The leaf and its lease");
    leaf.step(&["leaf", "list"])?;
    leaf.step(&["leaf", "show"])?;

    title("Its hardware, as inputs and outputs");
    leaf.step(&["hardware", "list"])?;
    let hardware = leaf.ask(&["hardware", "list"])?;
    ensure!(
        find(&hardware, "devices")
            .and_then(Value::as_array)
            .is_some_and(|d| !d.is_empty()),
        "the leaf has no devices"
    );

    title("The event log");
    leaf.step(&["events"])?;

    title("A container's system, built by the leaf");
    leaf.step(&["--timeout", "5m", "nix", "build", "--template", "minimal"])?;
    let jobs = leaf.ask(&["nix", "jobs"])?;
    let toplevel = find(&jobs, "store_path")
        .and_then(Value::as_str)
        .context("no job has a result with a store path")?
        .to_owned();

    title("A container with its own NATS credentials");
    leaf.owns_container(CONTAINER);
    leaf.step(&["container", "create", CONTAINER, "--toplevel", &toplevel])?;
    leaf.step(&["--timeout", "2m", "container", "start", CONTAINER])?;
    expect_phase(leaf, "running")?;
    leaf.step(&["container", "show", CONTAINER])?;
    leaf.step(&["container", "health", CONTAINER])?;
    leaf.step(&["container", "logs", CONTAINER])?;
    leaf.step(&["--timeout", "2m", "container", "stop", CONTAINER])?;
    expect_phase(leaf, "stopped")?;
    leaf.step(&["--timeout", "2m", "container", "destroy", CONTAINER])?;
    leaf.step(&["container", "list"])?;
    let left = leaf.ask(&["container", "list"])?;
    ensure!(
        !has_text(&left, CONTAINER),
        "the container was destroyed, but is still listed"
    );
    leaf.owns_no_container();

    title("A Nix build of several steps, with its progress");
    let file = directory.join("demo.nix");
    std::fs::write(&file, format!("({BUILD}) {BUILD_SHELL}"))
        .with_context(|| format!("can't write {}", file.display()))?;
    let file = file
        .to_str()
        .context("the temporary directory's name is not UTF-8")?;
    leaf.step(&["--timeout", "5m", "nix", "build", "--file", file])?;
    leaf.step(&["nix", "jobs"])?;

    title("Who built it, from what: signed by the leaf, and checked");
    let jobs = leaf.ask(&["nix", "jobs"])?;
    let built = find(&jobs, "store_path")
        .and_then(Value::as_str)
        .context("no job has a result with a store path")?
        .to_owned();
    leaf.step(&["nix", "verify", &built])?;

    if let Some(flake) = working_tree(directory)? {
        title("A working tree of this machine, sent to the leaf and built there");
        leaf.step(&["--timeout", "5m", "nix", "build", "--local", &flake])?;
    }

    title("A value, evaluated without building anything");
    leaf.step(&["nix", "eval", "--file", file, "name"])?;

    title("The events of all these steps");
    leaf.step(&["events"])?;
    expect_whole_history(leaf)
}

/// Makes a flake whose builder is a part of it, and returns the reference of its derivation; `None` where there is no static shell.
fn working_tree(directory: &Path) -> Result<Option<String>> {
    let shell = Path::new("/usr/bin/busybox");
    if !shell.is_file() {
        return Ok(None);
    }
    let tree = directory.join("tree");
    std::fs::create_dir_all(tree.join("bin")).with_context(|| format!("can't make {}", tree.display()))?;
    std::fs::copy(shell, tree.join("bin/busybox")).context("can't copy the shell")?;
    let text = format!("{{ outputs = _: {{ greeting = {TREE} }}; }}\n")
        .replace("SYSTEM", &format!("{}-linux", std::env::consts::ARCH));
    std::fs::write(tree.join("flake.nix"), text).context("can't write the flake")?;
    Ok(Some(format!("path:{}#greeting", tree.display())))
}

const TREE: &str = r#"derivation {
  name = "greeting";
  system = "SYSTEM";
  builder = "${./bin}/busybox";
  allowSubstitutes = false;
  preferLocalBuild = true;
  args = [ "sh" "-c" "echo built from a working tree; echo hello > $out" ];
};"#;

/// Eight derivations that take a moment each, different in every second, and one that needs them all.
const BUILD: &str = r#"shell:
let
  run = name: script: derivation {
    inherit name;
    inherit (shell) builder;
    system = builtins.currentSystem;
    args = shell.args ++ [ script ];
    now = builtins.currentTime;
    allowSubstitutes = false;
    preferLocalBuild = true;
  };
  part = n: run "part-${toString n}" ''
    echo "part ${toString n} of 8"
    i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done
    echo ${toString n} > $out
  '';
in
run "whole" ''
  for part in ${toString (builtins.genList (n: part (n + 1)) 8)}; do
    read line < $part; echo "$line" >> $out
  done
''
"#;

fn expect_phase(leaf: &Shown, phase: &str) -> Result<()> {
    let container = leaf.ask(&["container", "show", CONTAINER])?;
    match find(&container, "phase").and_then(Value::as_str) {
        Some(found) if found == phase => Ok(()),
        found => bail!("the container is {}, not {phase}", found.unwrap_or("nowhere")),
    }
}

/// Checks that every sequence number exists once and in order, with the events of the container and the builds.
fn expect_whole_history(leaf: &Shown) -> Result<()> {
    let events = leaf.ask(&["events"])?;
    let events = events.as_array().context("the events are not a list")?;
    let sequences: Vec<u64> = events
        .iter()
        .filter_map(|event| match find(event, "sequence")? {
            Value::String(text) => text.parse().ok(),
            number => number.as_u64(),
        })
        .collect();
    let expected: Vec<u64> = (1..).take(events.len()).collect();
    ensure!(sequences == expected, "the history has gaps: {sequences:?}");
    for kind in [
        "container.started",
        "container.stopped",
        "container.destroyed",
        "job.succeeded",
        "job.attested",
    ] {
        let kind = format!("cim.leaf.{kind}.v1");
        ensure!(
            events.iter().any(|event| has_text(event, &kind)),
            "the history has no event {kind}"
        );
    }
    Ok(())
}

/// Returns the first value with this key, at any depth.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => fields
            .get(key)
            .filter(|value| !value.is_null())
            .or_else(|| fields.values().find_map(|value| find(value, key))),
        Value::Array(items) => items.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

fn has_text(value: &Value, text: &str) -> bool {
    match value {
        Value::String(found) => found == text,
        Value::Object(fields) => fields.values().any(|value| has_text(value, text)),
        Value::Array(items) => items.iter().any(|value| has_text(value, text)),
        _ => false,
    }
}

fn title(text: &str) {
    println!(
        "\n── {text} {}",
        "─".repeat(76usize.saturating_sub(text.chars().count()))
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_and_a_text_are_found_at_any_depth() {
        let value = serde_json::json!([{"job": {"result": null}}, {"job": {"result": {"store_path": "/nix/store/x"}}}]);
        assert_eq!(
            find(&value, "store_path").and_then(Value::as_str),
            Some("/nix/store/x")
        );
        assert_eq!(find(&value, "absent"), None);
        assert!(has_text(&value, "/nix/store/x") && !has_text(&value, "/nix/store"));
    }
}
