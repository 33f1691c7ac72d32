//! Another NixOS system for the leaf (docs/decisions/0029): what is checked before it is armed, and the process that activates it,
//! installs it once it is confirmed, and activates the one before otherwise.
//!
//! | module | contents |
//! |---|---|
//! | `check` | what a system must have to be armed |
//! | `generations` | the generations of the profile that a confirmed switch removes |
//! | `health` | what the host must show before the change can be confirmed |
//! | `programs` | the system's own `switch-to-configuration`, and Nix's profile |
//! | `switcher` | `leaf-helper change switch`: does what the files say |

mod check;
#[cfg(test)]
mod full_tests;
mod generations;
mod health;
mod programs;
mod switcher;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use leaf_core::change::{ArmedSystem, KeptGenerations, SavedFile, SystemChange, SystemMode};
use leaf_core::id::{LeafName, StorePath};

use super::store::{ROOTS, SAVED, Store};
use super::{Changes, Units};
use crate::error::{Error, Result};
use crate::files::Directory;

pub(crate) use switcher::switch;

/// The directory of GC roots.
const GC_ROOTS: &str = "/nix/var/nix/gcroots";
/// The profile of the host's system: a link to `system-N-link` beside it, which is a link to the system.
const PROFILE: &str = "/nix/var/nix/profiles/system";
/// The files of users and groups, which NixOS's activation writes (`update-users-groups.pl`): a system whose users are not mutable
/// removes passwords that the one before does not know.
const ACCOUNTS: [(&str, &str); 11] = [
    ("/etc", "passwd"),
    ("/etc", "group"),
    ("/etc", "shadow"),
    ("/etc", "gshadow"),
    ("/etc", "subuid"),
    ("/etc", "subgid"),
    ("/var/lib/nixos", "uid-map"),
    ("/var/lib/nixos", "gid-map"),
    ("/var/lib/nixos", "declarative-users"),
    ("/var/lib/nixos", "declarative-groups"),
    ("/var/lib/nixos", "auto-subuid-map"),
];
/// The link to the system that runs.
const CURRENT: &str = "/run/current-system";
/// The link to the system whose kernel runs.
const BOOTED: &str = "/run/booted-system";

/// What the helper's settings say of switches of the system: by default that there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Systems {
    /// Whether leafd may have the system switched at all.
    is_allowed: bool,
    /// The units that must be active in a new system, beside leafd.
    healthy_units: Vec<String>,
    /// Whether the host is rebooted where the system before can't be activated.
    reboot: bool,
    /// The `PATH` with Nix's programs, behind the programs of the system.
    path: String,
    /// The generations of the profile that a switch keeps.
    keep: Option<KeptGenerations>,
    /// The directory that stands for the host's root.
    root: Root,
}

impl Systems {
    /// Returns the settings of a leaf that may switch its system, with the units that must be active in a new one, whether the host is
    /// rebooted where the system before can't be activated, the `PATH` with Nix's programs, and the generations that a switch keeps.
    #[must_use]
    pub fn allowed(
        healthy_units: Vec<String>,
        reboot: bool,
        path: String,
        keep: Option<KeptGenerations>,
    ) -> Self {
        Self {
            is_allowed: true,
            healthy_units,
            reboot,
            path,
            keep,
            root: Root::default(),
        }
    }
}

/// The directory that stands for the host's root: `/`, but in tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self("/".into())
    }
}

impl Root {
    /// Returns a directory that stands for the host's root.
    #[cfg(test)]
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Returns where an absolute path is.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// Returns where something of a system is.
    pub(super) fn of(&self, system: &StorePath, name: &str) -> PathBuf {
        self.at(system.as_str()).join(name)
    }

    /// Returns the system that one of the links of `/run` leads to.
    pub(super) fn link(&self, link: &str) -> Result<StorePath> {
        let target = std::fs::read_link(self.at(link)).map_err(|error| {
            Error::Unsupported(format!(
                "this host runs no NixOS whose system could be switched: can't read {link}: {error}"
            ))
        })?;
        let text = target.to_string_lossy().into_owned();
        StorePath::new(text.clone())
            .map_err(|_| Error::Unsupported(format!("{link} leads to {text}, which is no store path")))
    }

    /// Returns the system that runs.
    pub(super) fn current(&self) -> Result<StorePath> {
        self.link(CURRENT)
    }

    /// Returns the system that the profile names, if it names one.
    pub(super) fn profile(&self) -> Option<StorePath> {
        let generation = std::fs::read_link(self.at(PROFILE)).ok()?;
        let link = self.at(PROFILE).with_file_name(generation);
        let target = std::fs::read_link(link).ok()?;
        StorePath::new(target.to_str()?).ok()
    }
}

impl Changes {
    /// Returns the settings with what they say of switches of the system.
    #[must_use]
    pub fn with_systems(self, systems: Systems) -> Self {
        Self { systems, ..self }
    }

    /// Checks another system, and returns what the record of the change has of it. Nothing is changed.
    pub(super) async fn checked(
        &self,
        leaf: &LeafName,
        change: &SystemChange,
        units: &impl Units,
    ) -> Result<ArmedSystem> {
        if !self.systems.is_allowed {
            return Err(Error::Refused(
                "switches of the system are not allowed on this leaf: set services.cim-leaf.system.switch (`switch = true` in [system] of \
                 the helper's settings)"
                    .to_owned(),
            ));
        }
        change
            .check()
            .map_err(|error| Error::Refused(leaf_core::error::chain(&error)))?;
        let root = &self.systems.root;
        let previous = root.current()?;
        let mut healthy_units = check::system(root, &self.directory, leaf, &previous, change)?;
        healthy_units.extend(self.systems.healthy_units.iter().cloned());
        healthy_units.sort_unstable();
        healthy_units.dedup();
        for name in ROOTS {
            check::gc_root(root, &self.directory, name)?;
        }
        let programs = root.of(&previous, "sw/bin");
        Ok(ArmedSystem {
            toplevel: change.toplevel.clone(),
            mode: change.mode,
            allow_failed: change.allow_failed.clone(),
            failed_before: units.failed_units().await?,
            healthy_units,
            reboot: self.systems.reboot,
            profile: root.profile(),
            path: format!("{}:{}", programs.display(), self.systems.path),
            keep: self.systems.keep,
            previous,
        })
    }
}

impl Changes {
    /// Makes both systems roots of the garbage collector, until the change is decided, and copies the files of accounts, which an
    /// activation changes and the one of the system before does not give back. Returns the copies.
    pub(super) fn hold(&self, store: &Store, system: &ArmedSystem) -> Result<Vec<SavedFile>> {
        for (name, path) in ROOTS.into_iter().zip([&system.toplevel, &system.previous]) {
            store.directory.link(name, path.as_str())?;
        }
        let mut saved = Vec::new();
        for (parent, name) in ACCOUNTS {
            let parent = self.systems.root.at(parent);
            let Some(directory) = Directory::open_root(&parent)? else {
                continue;
            };
            if !directory.has(name)? {
                continue;
            }
            let copy = format!("{SAVED}{}", saved.len());
            store.directory.copy_from(&directory, name, &copy)?;
            saved.push(SavedFile {
                path: parent.join(name).to_string_lossy().into_owned(),
                saved: Some(copy),
            });
        }
        store.directory.sync()?;
        Ok(saved)
    }
}

/// Returns whether a change of this mode is activated before it is decided.
pub(super) fn is_tried(mode: SystemMode) -> bool {
    mode != SystemMode::Boot
}
