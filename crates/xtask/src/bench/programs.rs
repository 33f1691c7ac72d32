//! The release builds to measure.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::command::{cargo, find, line};
use crate::install::{Profile, install};
use crate::setup::Tools;

/// The programs to run.
pub(super) struct Programs {
    /// The directory in which they are installed as by a package.
    pub(super) tree: PathBuf,
    pub(super) leafd: PathBuf,
    pub(super) requests: PathBuf,
    pub(super) publishes: PathBuf,
    pub(super) durable: PathBuf,
    pub(super) signed: PathBuf,
    pub(super) renewals: PathBuf,
    pub(super) fleet: PathBuf,
    pub(super) leaf_hub: PathBuf,
    pub(super) nats_server: PathBuf,
    pub(super) nix: PathBuf,
}

impl Programs {
    pub(super) fn build(tools: &Tools) -> Result<Self> {
        // Separately from the benches, whose libraries have more features enabled.
        let tree = install(tools, Profile::Release)?;
        eprintln!("building the benches");
        let benches =
            ["requests", "publishes", "durable", "signed", "renewals", "fleet"].map(|name| ["--bench", name]);
        let mut build = cargo();
        build
            .args([
                "build",
                "--release",
                "--message-format",
                "json-render-diagnostics",
            ])
            .args([
                "--package",
                "leaf-bus",
                "--package",
                "leafd",
                "--package",
                "leaf-hub",
            ])
            .args(benches.as_flattened());
        let built = executables(&mut build)?;
        let bench = |name: &str| {
            let found = built.iter().find(|(built, _)| built == name);
            found
                .map(|(_, file)| file.clone())
                .with_context(|| format!("cargo built no bench {name}"))
        };
        Ok(Self {
            leafd: tree.join("bin/leafd"),
            leaf_hub: tree.join("bin/leaf-hub"),
            tree,
            requests: bench("requests")?,
            publishes: bench("publishes")?,
            durable: bench("durable")?,
            signed: bench("signed")?,
            renewals: bench("renewals")?,
            fleet: bench("fleet")?,
            nats_server: tools.nats_server.clone(),
            nix: find("nix").context("nix is not installed")?,
        })
    }
}

/// Runs cargo, and returns the benches that it built.
fn executables(build: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    let shown = line(build);
    let output = build
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("can't run {shown}"))?;
    if !output.status.success() {
        bail!("{shown} ended with {}", output.status);
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let bench = |message: Value| {
        let target = message.get("target")?;
        let is_bench = target.get("kind")?.as_array()?.iter().any(|kind| kind == "bench");
        let file = Path::new(message.get("executable")?.as_str()?).to_owned();
        is_bench.then_some((target.get("name")?.as_str()?.to_owned(), file))
    };
    Ok(said
        .lines()
        .filter_map(|line| bench(serde_json::from_str(line).ok()?))
        .collect())
}
