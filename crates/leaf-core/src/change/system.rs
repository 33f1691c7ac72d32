//! Another NixOS system for a leaf as a change (docs/decisions/0029): what is asked for, and what `armed.json` has of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::StorePath;

/// The maximum number of units that may fail by the word of a caller.
pub const MAX_ALLOWED_UNITS: usize = 32;
/// The longest name of a unit, in bytes (systemd.unit(5)).
const MAX_UNIT_BYTES: usize = 255;

/// The mode of a change of the system: whether it is activated now, and whether it is booted later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SystemMode {
    /// It is activated, and once it is confirmed it is the profile's and the boot loader's as well.
    Switch,
    /// It is activated, and stays until the next boot once it is confirmed.
    Test,
    /// It is the profile's and the boot loader's, and is not activated before the next boot.
    Boot,
}

/// Another system for a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SystemChange {
    /// The toplevel of the system.
    pub toplevel: StorePath,
    /// The mode of the change.
    pub mode: SystemMode,
    /// The units whose failure is no reason to go back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_failed: Vec<String>,
    /// Whether a boot that nobody guards is accepted: of another kernel, initrd or kernel parameters, or of the system itself.
    pub uncounted: bool,
    /// The format of the leaf's journal, which the leafd of the system must read.
    pub journal_format: u64,
}

/// Why another system is not accepted, before it is looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SystemChangeError {
    /// It names too many units.
    #[error("{0} units may fail, at most {MAX_ALLOWED_UNITS} can be named")]
    TooMany(usize),
    /// A name is none of a unit.
    #[error("{0:?} is not the name of a unit (systemd.unit(5)), such as nginx.service")]
    NotAUnit(String),
    /// Nothing guards a boot.
    #[error(
        "the system of the next boot is not tried before, and nobody guards that boot: say that you know it with uncounted (leafctl: --uncounted)"
    )]
    Uncounted,
}

impl SystemChange {
    /// Checks the form. It does not look at the system.
    ///
    /// # Errors
    /// [`SystemChangeError`].
    pub fn check(&self) -> Result<(), SystemChangeError> {
        let named = self.allow_failed.len();
        if named > MAX_ALLOWED_UNITS {
            return Err(SystemChangeError::TooMany(named));
        }
        if let Some(name) = self.allow_failed.iter().find(|name| !is_unit_name(name)) {
            return Err(SystemChangeError::NotAUnit(
                name.chars().take(MAX_UNIT_BYTES).collect(),
            ));
        }
        if self.mode == SystemMode::Boot && !self.uncounted {
            return Err(SystemChangeError::Uncounted);
        }
        Ok(())
    }
}

/// Returns whether a text is a unit's name (systemd.unit(5)).
#[must_use]
pub fn is_unit_name(name: &str) -> bool {
    name.len() <= MAX_UNIT_BYTES
        && !name.starts_with('-')
        && name.contains('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b))
}

/// The system of an open change. The process that switches takes all that it needs from here, and nothing from settings, which are
/// those of the new system after the switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmedSystem {
    /// The toplevel of the new system.
    pub toplevel: StorePath,
    /// The toplevel of the system that ran when the change was armed.
    pub previous: StorePath,
    /// The mode of the change.
    pub mode: SystemMode,
    /// The toplevel that the host's profile named when it was armed. Where it names neither this nor the new one at the end, somebody
    /// else has set it, and it stays.
    #[serde(default)]
    pub profile: Option<StorePath>,
    /// The units whose failure is no reason to go back.
    #[serde(default)]
    pub allow_failed: Vec<String>,
    /// The units that had failed when it was armed.
    #[serde(default)]
    pub failed_before: Vec<String>,
    /// The units that must be active in the new system, beside leafd.
    #[serde(default)]
    pub healthy_units: Vec<String>,
    /// Whether the host is rebooted where the system before can't be activated.
    #[serde(default)]
    pub reboot: bool,
    /// The `PATH` with Nix's programs.
    #[serde(default)]
    pub path: String,
    /// The generations of the profile that are kept once it is installed; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<KeptGenerations>,
}

/// The generations of a profile that are kept: what is beyond the newest goes, and what is too old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptGenerations {
    /// The number of the newest that are kept; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<u32>,
    /// The number of days for which one is kept; without it, for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub days: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(mode: SystemMode) -> SystemChange {
        SystemChange {
            toplevel: StorePath::new("/nix/store/00000000000000000000000000000000-nixos").expect("a path"),
            mode,
            allow_failed: vec!["getty@tty1.service".to_owned()],
            uncounted: false,
            journal_format: 1,
        }
    }

    #[test]
    fn a_change_of_the_system_names_units_and_a_boot_is_asked_for_by_name() {
        assert_eq!(change(SystemMode::Switch).check(), Ok(()));
        assert_eq!(
            change(SystemMode::Boot).check(),
            Err(SystemChangeError::Uncounted)
        );
        let known = SystemChange {
            uncounted: true,
            ..change(SystemMode::Boot)
        };
        assert_eq!(known.check(), Ok(()));
        for bad in [
            "nginx",
            "",
            "-x.service",
            "a b.service",
            "a/b.service",
            "a\n.service",
        ] {
            let named = SystemChange {
                allow_failed: vec![bad.to_owned()],
                ..change(SystemMode::Test)
            };
            assert_eq!(named.check(), Err(SystemChangeError::NotAUnit(bad.to_owned())));
        }
        let many = SystemChange {
            allow_failed: vec!["a.service".to_owned(); MAX_ALLOWED_UNITS + 1],
            ..change(SystemMode::Test)
        };
        assert_eq!(many.check(), Err(SystemChangeError::TooMany(33)));
    }
}
