//! Directories of this machine in the other one, by 9p.
//!
//! A device for it can be plugged in, but its directory must be named when QEMU starts. So QEMU is given links that
//! lead nowhere yet; it follows one when its device is plugged in.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::ports;
use crate::qmp::Qmp;

/// How many directories one machine can have.
pub(crate) const SLOTS: usize = 8;

/// The name of a place for a directory, for QEMU and as the tag that the guest mounts.
pub(crate) fn id(slot: usize) -> String {
    format!("share{slot}")
}

pub(crate) fn slot(directory: &Path, slot: usize) -> PathBuf {
    directory.join(id(slot))
}

/// Lets a place lead to a directory.
pub(crate) fn lead(machine: &Path, number: usize, directory: &Path) -> Result<()> {
    ensure!(
        number < SLOTS,
        "a test host can have {SLOTS} shared directories, and has them"
    );
    let directory = directory
        .canonicalize()
        .with_context(|| format!("can't share {}", directory.display()))?;
    ensure!(directory.is_dir(), "{} is no directory", directory.display());
    let link = slot(machine, number);
    symlink(&directory, &link).with_context(|| format!("can't make {}", link.display()))
}

/// QEMU's name for the device of a place.
pub(crate) fn device_id(slot: usize) -> String {
    format!("{}-device", id(slot))
}

/// What QEMU is asked to plug in, at the last of the places for devices.
pub(crate) fn device(slot: usize) -> Value {
    let bus = ports::id(ports::COUNT - SLOTS + slot);
    json!({"driver": "virtio-9p-pci", "id": device_id(slot), "bus": bus, "fsdev": id(slot), "mount_tag": id(slot)})
}

/// What the guest runs; it waits for the device.
pub(crate) fn mount(slot: usize, guest: &str) -> String {
    let tag = id(slot);
    format!(
        "mkdir -p '{guest}' && modprobe -a 9p 9pnet_virtio && for i in $(seq 200); do \
         mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none {tag} '{guest}' 2>/run/{tag}.log && exit 0; \
         sleep 0.05; done; cat /run/{tag}.log >&2; exit 1"
    )
}

/// Takes a device away, and the link.
pub(crate) fn unplug(qmp: &mut Qmp, machine: &Path, number: usize) -> Result<()> {
    let device = device_id(number);
    qmp.execute("device_del", json!({"id": device}))?;
    qmp.wait("DEVICE_DELETED", Duration::from_secs(60), |data| {
        data["device"] == device.as_str()
    })?;
    let link = slot(machine, number);
    fs::remove_file(&link).with_context(|| format!("can't remove {}", link.display()))
}
