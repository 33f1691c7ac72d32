//! Shares directories of this machine with a test host by 9p.
//!
//! The device can be plugged in later, but its directory must be given when QEMU starts. So QEMU is given dangling
//! links, and follows one when its device is plugged in.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::ports;
use crate::qmp::Qmp;

/// The maximum number of shared directories of a machine.
pub(crate) const SLOTS: usize = 8;

/// Returns the name of a slot, for QEMU and as the tag that the guest mounts.
pub(crate) fn id(slot: usize) -> String {
    format!("share{slot}")
}

pub(crate) fn slot(directory: &Path, slot: usize) -> PathBuf {
    directory.join(id(slot))
}

/// Makes the link of a slot point to a directory.
pub(crate) fn lead(machine: &Path, number: usize, directory: &Path) -> Result<()> {
    ensure!(
        number < SLOTS,
        "a test host can have only {SLOTS} shared directories"
    );
    let directory = directory
        .canonicalize()
        .with_context(|| format!("can't share {}", directory.display()))?;
    ensure!(directory.is_dir(), "{} is not a directory", directory.display());
    let link = slot(machine, number);
    symlink(&directory, &link).with_context(|| format!("can't make {}", link.display()))
}

/// Returns QEMU's name for the device of a slot.
pub(crate) fn device_id(slot: usize) -> String {
    format!("{}-device", id(slot))
}

/// Returns the device to plug in, at one of the last device slots.
pub(crate) fn device(slot: usize) -> Value {
    let bus = ports::id(ports::COUNT - SLOTS + slot);
    json!({"driver": "virtio-9p-pci", "id": device_id(slot), "bus": bus, "fsdev": id(slot), "mount_tag": id(slot)})
}

/// Returns the command that waits for the device and mounts it in the guest.
pub(crate) fn mount(slot: usize, guest: &str) -> String {
    let tag = id(slot);
    format!(
        "mkdir -p '{guest}' && modprobe -a 9p 9pnet_virtio && for i in $(seq 200); do \
         mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none {tag} '{guest}' 2>/run/{tag}.log && exit 0; \
         sleep 0.05; done; cat /run/{tag}.log >&2; exit 1"
    )
}

/// Unplugs the device, and removes the link.
pub(crate) fn unplug(qmp: &mut Qmp, machine: &Path, number: usize) -> Result<()> {
    let device = device_id(number);
    qmp.execute("device_del", json!({"id": device}))?;
    qmp.wait("DEVICE_DELETED", Duration::from_secs(60), |data| {
        data["device"] == device.as_str()
    })?;
    let link = slot(machine, number);
    fs::remove_file(&link).with_context(|| format!("can't remove {}", link.display()))
}
