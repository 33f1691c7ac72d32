//! What a system must have to be armed. Nothing here changes anything, and nothing of the system is run.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use leaf_core::change::{SystemChange, SystemMode, is_unit_name};
use leaf_core::id::{LeafName, StorePath};
use serde::Deserialize;

use super::{BOOTED, GC_ROOTS, Root};
use crate::error::{Error, Result};

/// The file of the NixOS module in which a system says what its leaf can do.
const MARK: &str = "etc/cim-leaf/system.json";
/// What makes a directory a NixOS system that can be switched to.
const PARTS: [&str; 4] = ["bin/switch-to-configuration", "activate", "init", "nixos-version"];
/// What comes into use at a boot only. The last one is a file of text; the others are links into the store.
const OF_THE_BOOT: [&str; 7] = [
    "kernel",
    "kernel-modules",
    "initrd",
    "append-initrd-secrets",
    "firmware",
    // A switch executes it in the place of the running one, which can go wrong for good.
    "systemd",
    "kernel-params",
];
/// The version of what [`MARK`] says, and of the mechanism that a system has.
const MARK_VERSION: u32 = 1;

/// What a system says of its leaf: [`MARK`].
#[derive(Debug, Deserialize)]
struct Mark {
    /// The version of the mechanism of switches that it has.
    version: u32,
    /// The name of its leaf.
    leaf: String,
    /// Whether its system may be switched again.
    switch: bool,
    /// The units that must be active in it.
    #[serde(default)]
    healthy_units: Vec<String>,
    /// The newest format of the journal that its leafd reads.
    journal_format: u64,
}

/// Checks that a system can be switched to from the one that runs, and back. Returns the units that must be active in it.
///
/// # Errors
/// [`Error::Refused`] with what is missing.
pub(super) fn system(
    root: &Root,
    state: &Path,
    leaf: &LeafName,
    running: &StorePath,
    change: &SystemChange,
) -> Result<Vec<String>> {
    let new = &change.toplevel;
    let refused = |why: String| Error::Refused(format!("{new} {why}"));
    let store = fs::metadata(root.at("/nix/store"))
        .map_err(|error| Error::Unsupported(format!("can't read /nix/store: {error}")))?;
    let directory = root.at(new.as_str());
    let found = fs::symlink_metadata(&directory).map_err(|error| {
        refused(format!(
            "is not in the store of this leaf ({error}): build it first"
        ))
    })?;
    if !found.is_dir() {
        return Err(refused("is no NixOS system: it is not a directory".to_owned()));
    }
    for part in PARTS {
        let found = fs::symlink_metadata(directory.join(part)).map_err(|_| {
            refused(format!(
                "is no NixOS system that can be switched to: it has no {part}"
            ))
        })?;
        // While Nix builds a path, it belongs to the user of the build.
        if found.uid() != store.uid() {
            return Err(refused(
                "does not belong to the owner of the store: it is still being built".to_owned(),
            ));
        }
    }
    if found.uid() != store.uid() {
        return Err(refused(
            "does not belong to the owner of the store: it is still being built".to_owned(),
        ));
    }
    let text = |system: &StorePath, name: &str| fs::read_to_string(root.of(system, name)).unwrap_or_default();
    let (theirs, ours) = (text(new, "system"), text(running, "system"));
    if theirs.trim() != ours.trim() {
        return Err(refused(format!(
            "is a system for {}, and this leaf is {}",
            shown(&theirs),
            shown(&ours)
        )));
    }
    for part in &PARTS[..2] {
        if !root.of(running, part).exists() {
            return Err(Error::Refused(format!(
                "the running system, {running}, has no {part}: there would be no way back to it"
            )));
        }
    }
    let interface = "init-interface-version";
    let is_activated = change.mode != SystemMode::Boot;
    if is_activated && text(new, interface) != text(running, interface) {
        return Err(refused(
            "has an init that is not compatible with the one that runs: it can only be booted (leafctl system boot --uncounted)".to_owned(),
        ));
    }
    let healthy_units = mark(root, leaf, change)?;
    if is_activated {
        same_mounts(root, state, running, new)?;
        if let Some(other) = root.profile().filter(|profile| profile != running)
            && !change.uncounted
        {
            return Err(Error::Refused(format!(
                "the running system is {running}, and the next boot is of another one, {other}: a power cut during the switch would boot \
                 that. With uncounted (leafctl: --uncounted) it is switched all the same"
            )));
        }
    }
    // A test ends with the boot, but executes its systemd now.
    if !change.uncounted {
        let differs: Vec<_> = OF_THE_BOOT
            .into_iter()
            .filter(|name| change.mode != SystemMode::Test || *name == "systemd")
            .filter(|name| !is_as_booted(root, new, name))
            .collect();
        if !differs.is_empty() {
            return Err(refused(format!(
                "has another {} than the system that was booted: that comes into use at the next boot, which nobody guards. With \
                 uncounted (leafctl: --uncounted) it is switched to all the same",
                differs.join(", ")
            )));
        }
    }
    Ok(healthy_units)
}

/// Checks that no other file system would be mounted where the records of the change are.
fn same_mounts(root: &Root, state: &Path, running: &StorePath, new: &StorePath) -> Result<()> {
    let mounts = |system| {
        let fstab = fs::read_to_string(root.of(system, "etc/fstab")).unwrap_or_default();
        let mut mounts: Vec<String> = fstab
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .filter(|line| {
                let at = line.split_whitespace().nth(1);
                at.is_some_and(|at| at.starts_with('/') && state.starts_with(at))
            })
            .map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
            .collect();
        mounts.sort_unstable();
        mounts
    };
    if mounts(running) == mounts(new) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{new} mounts another file system at or above {}, where the way back is kept: install it for the next boot (leafctl system boot \
         --uncounted)",
        state.display()
    )))
}

/// Checks what the system says of its leaf, and returns the units that must be active in it.
fn mark(root: &Root, leaf: &LeafName, change: &SystemChange) -> Result<Vec<String>> {
    let new = &change.toplevel;
    let refused = |why: String| Error::Refused(format!("{new} {why}"));
    let text = fs::read_to_string(root.of(new, MARK)).map_err(|_| {
        refused(format!(
            "has no {MARK}: it has no cim-leaf, or one that is older than switches, and could neither be confirmed nor be taken back"
        ))
    })?;
    let mark: Mark = serde_json::from_str(&text)
        .map_err(|error| refused(format!("has a {MARK} that can't be read: {error}")))?;
    if mark.version < MARK_VERSION {
        return Err(refused(format!(
            "has switches of version {}, and this leaf needs {MARK_VERSION} to take them back",
            mark.version
        )));
    }
    if mark.leaf != leaf.as_str() {
        return Err(refused(format!(
            "is the system of leaf {}, and this one is {leaf}",
            mark.leaf
        )));
    }
    if !mark.switch {
        return Err(refused(
            "does not allow switches (services.cim-leaf.system.switch), so nobody could switch this leaf again: if that is meant, use \
             nixos-rebuild on the leaf"
                .to_owned(),
        ));
    }
    if mark.journal_format < change.journal_format {
        return Err(refused(format!(
            "has a leafd that reads journals of the formats up to {}, and this leaf's journal has format {}",
            mark.journal_format, change.journal_format
        )));
    }
    let units = mark.healthy_units.into_iter();
    Ok(units.filter(|name| is_unit_name(name)).collect())
}

/// Returns whether a part of a system that comes into use at a boot is that of the booted system. What neither has is the same.
fn is_as_booted(root: &Root, new: &StorePath, name: &str) -> bool {
    let new = root.of(new, name);
    let booted = root.link(BOOTED).map(|booted| root.of(&booted, name));
    let Ok(booted) = booted else { return false };
    if name == "kernel-params" {
        return fs::read(&new).ok() == fs::read(&booted).ok();
    }
    fs::canonicalize(&new).ok() == fs::canonicalize(&booted).ok()
}

/// Checks that a link among the GC roots leads to one of the state directory.
pub(super) fn gc_root(root: &Root, directory: &Path, name: &str) -> Result<()> {
    let link = root.at(GC_ROOTS).join(format!("cim-leaf-{name}"));
    let leads_to = directory.join(name);
    match fs::read_link(&link) {
        Ok(target) if target == leads_to => Ok(()),
        _ => Err(Error::Failed(format!(
            "{} is no link to {}, which keeps the systems of a change from being collected; run systemd-tmpfiles --create",
            link.display(),
            leads_to.display()
        ))),
    }
}

fn shown(system: &str) -> &str {
    let system = system.trim();
    if system.is_empty() {
        "an unknown platform"
    } else {
        system
    }
}
