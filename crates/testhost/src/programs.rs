//! Our programs and the files of `nixos-modules/leaf/units/` on a machine.
//!
//! They are laid out as on the machine's disk, and copied there.
//!
//! | in the directory of units | on the machine |
//! |---|---|
//! | `*.service`, `*.socket`, … and `NAME.service.d/` | `/etc/systemd/system/` |
//! | `sysusers.d/`, `tmpfiles.d/`, `polkit-1/`, `dbus-1/`, `systemd/`, … | `/etc/` |
//! | `*.rules` | `/etc/polkit-1/rules.d/` |
//! | `sysusers.conf`, `tmpfiles.conf` | `/etc/sysusers.d/cim-leaf.conf`, `/etc/tmpfiles.d/cim-leaf.conf` |
//! | `*.nix`, `*.md` | – |
//!
//! `@package@` in a file stands for the directory of our programs, and `@NAME@` for a package's directory on Debian:
//! `/usr`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::command::{output, target, workspace};
use crate::files::{digest, each_file, hex};

/// Set to a directory of laid out programs, for tests, which don't build them.
pub const VARIABLE: &str = "CIM_LEAF_HOST_PROGRAMS";

/// Our programs: those of a leaf, and the agent of a hub.
const PROGRAMS: [&str; 6] = [
    "leafd",
    "leafctl",
    "leaf-helper",
    "leaf-init",
    "cim-leaf-generator",
    "leaf-hub",
];
/// The directory of our package (`bin/` and `share/`) on the machine.
const PREFIX: &str = "usr/local";
/// Our units that are enabled on a machine.
const STARTED: [&str; 2] = ["leafd.service", "leaf-change.service"];
const UNITS: [&str; 9] = [
    "automount",
    "mount",
    "path",
    "scope",
    "service",
    "slice",
    "socket",
    "target",
    "timer",
];
/// Directories that are copied unchanged to the machine.
const DIRECTORIES: [&str; 8] = [
    "binfmt.d",
    "dbus-1",
    "modules-load.d",
    "polkit-1",
    "sysctl.d",
    "systemd",
    "sysusers.d",
    "tmpfiles.d",
];
/// The packages that a unit may name, with their directories on Debian.
const PACKAGES: [&str; 10] = [
    "bash",
    "busybox",
    "coreutils",
    "dbus",
    "iproute2",
    "kmod",
    "nftables",
    "nix",
    "systemd",
    "util-linux",
];

/// The default settings of a leaf: an embedded NATS server.
const SETTINGS: &str = "[nats.embedded]\n";

/// Programs and units, ready to be copied to a machine.
#[derive(Debug, Clone)]
pub struct Programs {
    tree: PathBuf,
    /// The digest of the tree.
    key: String,
}

impl Programs {
    /// Returns the programs named by [`VARIABLE`].
    ///
    /// # Errors
    /// If it names none.
    pub fn here() -> Result<Self> {
        match std::env::var_os(VARIABLE) {
            Some(tree) if !tree.is_empty() => Self::of(tree.into()),
            _ => bail!("{VARIABLE} names no programs; `cargo xtask test` sets it"),
        }
    }

    /// Lays out the programs of a package (`bin/` and `share/`) with the units of this checkout in `target/NAME`.
    ///
    /// # Errors
    /// If the package lacks a program, or the place of a file on a machine is unknown.
    pub fn lay_out(package: &Path, name: &str) -> Result<Self> {
        let tree = target().join(name);
        // Built beside it, so that the old one stays complete for its users.
        let part = tempfile::Builder::new()
            .prefix("host-programs-")
            .tempdir_in(target())
            .context("can't make a temporary directory")?;
        lay_out(
            package,
            &workspace().join("nixos-modules/leaf/units"),
            part.path(),
        )?;
        let old = part.path().with_extension("old");
        let moved = tree.exists();
        if moved {
            fs::rename(&tree, &old).with_context(|| format!("can't replace {}", tree.display()))?;
        }
        fs::rename(part.keep(), &tree).with_context(|| format!("can't make {}", tree.display()))?;
        if moved {
            fs::remove_dir_all(&old).with_context(|| format!("can't remove {}", old.display()))?;
        }
        Self::of(tree)
    }

    /// Returns the programs of a directory that was laid out before.
    pub fn of(tree: PathBuf) -> Result<Self> {
        ensure!(
            tree.join(PREFIX).join("bin/leafd").is_file(),
            "{} has no {PREFIX}/bin/leafd",
            tree.display()
        );
        let mut hash = Sha256::new();
        digest(&tree, &tree, &mut hash)?;
        Ok(Self { tree, key: hex(hash) })
    }

    /// Returns the directory, laid out as on the machine's disk.
    pub fn tree(&self) -> &Path {
        &self.tree
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Returns the installation script for a machine that has the directory mounted at `at`.
    pub(crate) fn script(&self, at: &str) -> Result<String> {
        let units = self.tree.join("etc/systemd/system");
        let mut names = Vec::new();
        if units.is_dir() {
            for entry in fs::read_dir(&units).with_context(|| format!("can't read {}", units.display()))? {
                let name = entry.context("a directory can't be read")?.file_name();
                names.push(name.to_string_lossy().into_owned());
            }
        }
        names.sort_unstable();
        let sockets: Vec<&str> = names
            .iter()
            .filter(|name| name.ends_with(".socket"))
            .map(String::as_str)
            .collect();
        let started = STARTED.iter().filter(|name| names.iter().any(|n| n == *name));
        let mut script = format!(
            "set -e; cp --recursive --no-dereference --remove-destination {at}/. /\n\
             mkdir -p /etc/cim-leaf; [ -e /etc/cim-leaf/leafd.toml ] || printf '{SETTINGS}' >/etc/cim-leaf/leafd.toml\n\
             systemd-sysusers; systemctl daemon-reload; systemd-tmpfiles --create\n",
        );
        for unit in started {
            script.push_str(&format!("systemctl --quiet add-wants multi-user.target {unit}\n"));
        }
        if !sockets.is_empty() {
            let sockets = sockets.join(" ");
            script.push_str(&format!(
                "systemctl --quiet add-wants sockets.target {sockets}\nsystemctl start {sockets}\n"
            ));
        }
        // Fails early and clearly if the program was built for a newer system than the machine's.
        script.push_str("leafd --version\n");
        Ok(script)
    }
}

/// Lays out a package and the files of its units.
fn lay_out(package: &Path, units: &Path, tree: &Path) -> Result<()> {
    let prefix = tree.join(PREFIX);
    let bin = prefix.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("can't make {}", bin.display()))?;
    for program in PROGRAMS {
        // Nine tenths of a program are debugging information.
        output(
            Command::new("strip")
                .arg("--strip-debug")
                .arg("-o")
                .arg(bin.join(program))
                .arg(package.join("bin").join(program)),
        )?;
    }
    // systemd looks for generators there (systemd.generator(7)).
    let generators = tree.join("usr/lib/systemd/system-generators");
    fs::create_dir_all(&generators).with_context(|| format!("can't make {}", generators.display()))?;
    fs::copy(bin.join("cim-leaf-generator"), generators.join("cim-leaf"))
        .context("can't copy the generator")?;
    let share = package.join("share");
    each_file(&share, &mut |file| {
        let path = file.strip_prefix(&share).expect("it is below the directory");
        place(&prefix.join("share").join(path), &read(file)?)
    })?;
    each_file(units, &mut |file| {
        let path = file.strip_prefix(units).expect("it is below the directory");
        let Some(path) = destination(path)? else {
            return Ok(());
        };
        let text =
            String::from_utf8(read(file)?).with_context(|| format!("{} is not UTF-8", file.display()))?;
        let text = fill(&text).with_context(|| format!("in {}", file.display()))?;
        place(&tree.join(path), text.as_bytes())
    })
}

/// Returns the place of a file of the units' directory on the machine, if it is installed.
fn destination(path: &Path) -> Result<Option<PathBuf>> {
    let first = path
        .components()
        .next()
        .map(|name| name.as_os_str().to_string_lossy().into_owned());
    let first = first.unwrap_or_default();
    let extension = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let is_unit = |name: &str| UNITS.contains(&extension(name).as_str());
    let alone = path.components().count() == 1;
    Ok(Some(if DIRECTORIES.contains(&first.as_str()) {
        Path::new("etc").join(path)
    } else if is_unit(&first) || first.strip_suffix(".d").is_some_and(is_unit) {
        Path::new("etc/systemd/system").join(path)
    } else if alone && extension(&first) == "rules" {
        Path::new("etc/polkit-1/rules.d").join(path)
    } else if alone && (first == "sysusers.conf" || first == "tmpfiles.conf") {
        Path::new("etc")
            .join(first.replace(".conf", ".d"))
            .join("cim-leaf.conf")
    } else if ["nix", "md"].contains(&extension(&path.to_string_lossy()).as_str()) {
        return Ok(None);
    } else {
        bail!(
            "the place of {} on a machine is unknown; see testhost/src/programs.rs",
            path.display()
        )
    }))
}

/// Replaces placeholders of packages by their directories.
fn fill(text: &str) -> Result<String> {
    let mut text = text.replace("@package@", &format!("/{PREFIX}"));
    for package in PACKAGES {
        text = text.replace(&format!("@{package}@"), "/usr");
    }
    // `user@1000.service` and `@system-service` are not placeholders.
    let open = text.split('@').skip(1).step_by(2).find(|name| {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        !name.is_empty() && name.chars().all(plain)
    });
    match open {
        Some(name) if text.contains(&format!("@{name}@")) => bail!("unknown package @{name}@"),
        _ => Ok(text),
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("can't read {}", file.display()))
}

fn place(file: &Path, bytes: &[u8]) -> Result<()> {
    let directory = file.parent().expect("a file is in a directory");
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(file, bytes))
        .with_context(|| format!("can't write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn goes_to(path: &str) -> Option<String> {
        let destination = destination(Path::new(path)).expect("it is known");
        destination.map(|path| path.display().to_string())
    }

    #[test]
    fn each_kind_of_file_has_its_place() {
        for (path, place) in [
            ("leafd.service", Some("etc/systemd/system/leafd.service")),
            (
                "container@.service",
                Some("etc/systemd/system/container@.service"),
            ),
            (
                "leafd.service.d/a.conf",
                Some("etc/systemd/system/leafd.service.d/a.conf"),
            ),
            ("sysusers.d/leaf.conf", Some("etc/sysusers.d/leaf.conf")),
            ("sysusers.conf", Some("etc/sysusers.d/cim-leaf.conf")),
            ("50-leafd.rules", Some("etc/polkit-1/rules.d/50-leafd.rules")),
            ("polkit-1/rules.d/a.rules", Some("etc/polkit-1/rules.d/a.rules")),
            ("default.nix", None),
        ] {
            assert_eq!(goes_to(path).as_deref(), place, "{path}");
        }
        assert!(destination(Path::new("odd.bin")).is_err());
    }

    #[test]
    fn names_of_packages_are_filled_in_and_unknown_ones_refused() {
        let text = "ExecStart=@package@/bin/leafd\nExecStop=@systemd@/bin/systemctl\nSystemCallFilter=@system-service ~@privileged\n";
        let filled = fill(text).expect("all are known");
        assert!(
            filled.starts_with("ExecStart=/usr/local/bin/leafd\nExecStop=/usr/bin/systemctl\n"),
            "{filled}"
        );
        assert!(filled.ends_with("@system-service ~@privileged\n"), "{filled}");
        let error = fill("ExecStart=@mystery@/bin/x").expect_err("nobody knows it");
        assert!(error.to_string().contains("@mystery@"), "{error}");
    }

    #[test]
    fn our_units_have_their_places_and_are_enabled() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let package = directory.path().join("package");
        let program = crate::command::find("true").expect("every system has it");
        for name in PROGRAMS {
            place(
                &package.join("bin").join(name),
                &read(&program).expect("a program"),
            )
            .expect("written");
        }
        place(&package.join("share/cim-leaf/containers/x.nix"), b"{ }").expect("written");
        let tree = directory.path().join("tree");
        lay_out(&package, &workspace().join("nixos-modules/leaf/units"), &tree).expect("all is known");
        assert!(tree.join("usr/local/share/cim-leaf/containers/x.nix").is_file());
        let unit = tree.join("etc/systemd/system/leafd.service");
        let unit = fs::read_to_string(unit).expect("leafd's unit");
        assert!(
            unit.contains("/usr/local/bin/leafd") && !unit.contains("@package@"),
            "{unit}"
        );
        let programs = Programs::of(tree).expect("a tree");
        let script = programs.script("/x").expect("a script");
        assert!(
            script.contains("add-wants multi-user.target leafd.service"),
            "{script}"
        );
        assert!(script.contains("systemctl start leaf-helper.socket"), "{script}");
    }

    #[test]
    fn a_key_changes_with_a_file_and_its_name() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let leafd = directory.path().join(PREFIX).join("bin/leafd");
        place(&leafd, b"1").expect("written");
        let first = Programs::of(directory.path().to_owned())
            .expect("a directory")
            .key;
        assert_eq!(
            Programs::of(directory.path().to_owned())
                .expect("a directory")
                .key,
            first
        );
        place(&leafd, b"2").expect("written");
        let second = Programs::of(directory.path().to_owned())
            .expect("a directory")
            .key;
        fs::rename(&leafd, leafd.with_file_name("x")).expect("renamed");
        assert_ne!(first, second);
        assert!(
            Programs::of(directory.path().to_owned()).is_err(),
            "it has no leafd"
        );
    }
}
