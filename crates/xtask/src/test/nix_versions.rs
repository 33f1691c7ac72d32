//! Further versions of Nix, with which the tests of `leaf-nix`, and those of uploads, run as well: Debian's packages of other suites, unpacked in `target/tools`.
//!
//! Nothing of them is installed. Each program is a script that starts the unpacked one with its own dynamic linker and libraries, and without
//! a build hook, for which it would start itself without them.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::command::{find, output, run, target};

/// The suites, whose Nix is newer than that of the oldest supported Debian.
pub(super) const SUITES: [&str; 2] = ["trixie", "sid"];
/// The keys that Debian's suites are signed with, as the package `debian-archive-keyring` has them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A version of Nix.
pub(super) struct NixVersion {
    /// Its number, such as `2.26.3`.
    pub(super) number: String,
    /// The directory of its programs.
    pub(super) programs: PathBuf,
    /// The value of `PATH` with its programs in front.
    pub(super) path: OsString,
}

/// The variable with the directories of the programs of further versions, for tests that need several at once.
pub(super) const VARIABLE: &str = "CIM_LEAF_FURTHER_NIX";

/// Returns the directories of the programs of those versions that can be had, as in `PATH`; nothing if there is none.
pub(super) fn directories() -> Option<OsString> {
    let programs: Vec<PathBuf> = SUITES
        .iter()
        .filter_map(|suite| Some(of(suite).ok()?.programs))
        .collect();
    let joined = std::env::join_paths(programs).ok()?;
    (!joined.is_empty()).then_some(joined)
}

/// Returns the Nix of a suite: the one that was unpacked before, or a new one.
///
/// # Errors
/// It can't be fetched here, or does not run.
pub(super) fn of(suite: &str) -> Result<NixVersion> {
    let tools = target().join("tools");
    let kept = tools.join(format!("nix-of-{suite}"));
    if !kept.is_dir() {
        ensure!(
            find("apt-get").is_some() && Path::new(KEYRING).is_file(),
            "it is fetched with Debian's apt and debian-archive-keyring only"
        );
        std::fs::create_dir_all(&tools).with_context(|| format!("can't make {}", tools.display()))?;
        let directory = tempfile::tempdir_in(&tools).context("can't make a temporary directory")?;
        fetch(suite, directory.path()).with_context(|| format!("can't fetch Debian's nix-bin of {suite}"))?;
        let unpacked = directory.path().join("unpacked");
        std::fs::rename(&unpacked, &kept).with_context(|| format!("can't install {}", kept.display()))?;
    }
    let programs = kept.join("programs");
    wrap(&kept, &programs)?;
    let said = output(Command::new(programs.join("nix")).arg("--version"))?;
    let number = said
        .split_whitespace()
        .last()
        .context("nix --version says nothing")?;
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(programs.clone()).chain(std::env::split_paths(&rest)))?;
    Ok(NixVersion {
        number: number.to_owned(),
        programs,
        path,
    })
}

/// Downloads the package with all that it depends on, as for a system that has nothing, and unpacks them into `unpacked`.
fn fetch(suite: &str, directory: &Path) -> Result<()> {
    let at = |name: &str| directory.join(name).display().to_string();
    for part in ["lists/partial", "archives/partial", "unpacked"] {
        std::fs::create_dir_all(directory.join(part))?;
    }
    std::fs::write(directory.join("status"), "")?;
    let mirror = mirror()?;
    std::fs::write(
        directory.join("sources.list"),
        format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"),
    )?;
    let options = [
        format!("Dir::Etc::sourcelist={}", at("sources.list")),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        "Dir::Etc::preferencesparts=/dev/null".to_owned(),
        format!("Dir::State::lists={}", at("lists")),
        format!("Dir::State::status={}", at("status")),
        format!("Dir::Cache::archives={}", at("archives")),
        "Dir::Cache::pkgcache=".to_owned(),
        "Dir::Cache::srcpkgcache=".to_owned(),
        "APT::Install-Recommends=false".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
    ];
    let apt = |words: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.arg("--quiet=2")
            .args(options.iter().flat_map(|option| ["-o", option]))
            .args(words);
        // What it says goes into the error.
        output(&mut apt)
    };
    apt(&["update"])?;
    apt(&["--yes", "--download-only", "install", "nix-bin"])?;
    for entry in std::fs::read_dir(directory.join("archives"))? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb")
                .arg("--extract")
                .arg(package)
                .arg(directory.join("unpacked")))?;
        }
    }
    Ok(())
}

/// Returns the address of the mirror of Debian that this host uses.
fn mirror() -> Result<String> {
    let format = "$(REPO_URI) $(ORIGIN) $(LABEL)";
    let said =
        output(Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]))?;
    said.lines()
        .find_map(|line| line.strip_suffix(" Debian Debian"))
        .map(str::to_owned)
        .context("this host's apt names no mirror of Debian, or has not been updated yet (`apt-get update`)")
}

/// Writes a script for each of Nix's programs, which are all one.
fn wrap(unpacked: &Path, programs: &Path) -> Result<()> {
    std::fs::create_dir_all(programs).with_context(|| format!("can't make {}", programs.display()))?;
    let libraries = unpacked
        .join("usr/lib")
        .join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let linker = linker(&libraries)?;
    for entry in std::fs::read_dir(unpacked.join("usr/bin")).context("no program was unpacked")? {
        let name = entry.context("can't list the programs")?.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with("nix")) else {
            continue;
        };
        let text = format!(
            "#!/bin/sh\nexport NIX_CONFIG=\"${{NIX_CONFIG:-}}\nbuild-hook =\"\nexec '{linker}' --argv0 '{name}' --library-path '{libraries}:{libraries}/nix' '{nix}' \"$@\"\n",
            linker = linker.display(),
            libraries = libraries.display(),
            nix = unpacked.join("usr/bin/nix").display(),
        );
        let file = programs.join(name);
        std::fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("can't change {}", file.display()))?;
    }
    Ok(())
}

/// Returns the dynamic linker among the libraries.
fn linker(libraries: &Path) -> Result<PathBuf> {
    let entries =
        std::fs::read_dir(libraries).with_context(|| format!("can't list {}", libraries.display()))?;
    entries
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with("ld-linux"))
        .map(|entry| entry.path())
        .context("the packages have no dynamic linker")
}
