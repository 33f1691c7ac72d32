//! Finds the programs and files that are installed with `leafd`.

use std::path::{Path, PathBuf};

use leaf_host::program;

/// Returns the program named by a setting, or the one beside `leafd`, or the one on `PATH`.
#[must_use]
pub fn find(setting: Option<&Path>, name: &str) -> Option<PathBuf> {
    if let Some(path) = setting {
        return if path.components().count() > 1 {
            Some(path.to_owned())
        } else {
            program::find(path)
        };
    }
    let beside = beside_leafd()
        .map(|dir| dir.join(name))
        .filter(|program| program.is_file());
    beside.or_else(|| program::find(name))
}

/// Returns the directory of the container templates: the setting, or `share/cim-leaf/containers` of the installation.
#[must_use]
pub fn templates(setting: Option<&Path>) -> Option<PathBuf> {
    if let Some(path) = setting {
        return Some(path.to_owned());
    }
    let dir = beside_leafd()?.parent()?.join("share/cim-leaf/containers");
    dir.is_dir().then_some(dir)
}

fn beside_leafd() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.to_owned())
}
