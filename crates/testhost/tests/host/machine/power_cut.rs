//! What a power cut takes, and what not.

use testhost::{Device, Host};

use crate::{Outcome, Trials, ensure, until};

pub(crate) const TRIALS: Trials = &[
    ("a_power_cut_keeps_what_was_synced_and_loses_what_was_not", cut),
    ("a_reboot_keeps_files_and_plugged_devices", reboot),
];

fn cut() -> Outcome {
    let mut host = Host::options().name("leaf-7").restore()?;
    host.plug(Device::virtio_blk("DATA1"))?;
    until(&host, "ls /dev/disk/by-id", |seen| seen.contains("virtio-DATA1"))?;
    host.ok("mkfs.ext4 -q /dev/disk/by-id/virtio-DATA1 && mkdir /data && mount /dev/disk/by-id/virtio-DATA1 /data")?;
    let before = host.ok("cat /etc/machine-id /proc/sys/kernel/random/boot_id")?;
    for directory in ["/root", "/data"] {
        host.ok(&format!(
            "seq 100000 >{directory}/kept && sync --file-system {directory}"
        ))?;
        // Within the five seconds after which ext4 writes by itself.
        host.ok(&format!("seq 100000 >{directory}/lost"))?;
    }
    host.cut_power();
    ensure(!host.is_running() && host.run("true").is_err(), "it has no power")?;
    host.boot()?;
    host.ok("mount /dev/disk/by-id/virtio-DATA1 /data")?;
    for directory in ["/root", "/data"] {
        let kept = host.ok(&format!("md5sum <{directory}/kept; seq 100000 | md5sum"))?;
        let mut sums = kept.lines();
        ensure(
            sums.next() == sums.next(),
            format!("what was synced is whole: {kept}"),
        )?;
        let lost = host.run(&format!("stat -c %s {directory}/lost"))?;
        ensure(
            lost.stdout.trim() != "588895",
            format!("what was not synced is lost: {lost:?}"),
        )?;
    }
    let after = host.ok("cat /etc/machine-id /proc/sys/kernel/random/boot_id")?;
    ensure(
        before.lines().next() == after.lines().next(),
        "it is the same machine",
    )?;
    ensure(
        before.lines().nth(1) != after.lines().nth(1),
        "it was started anew",
    )?;
    ensure(host.ok("hostname")? == "leaf-7\n", "its name")
}

fn reboot() -> Outcome {
    let directory = tempfile::tempdir()?;
    std::fs::write(directory.path().join("here"), "")?;
    let mut host = Host::restore()?;
    host.share(directory.path(), "/mnt/shared")?;
    host.plug(Device::usb_keyboard("KBD07"))?;
    host.ok("echo not synced >/root/kept")?;
    host.reboot()?;
    ensure(
        host.ok("cat /root/kept")? == "not synced\n",
        "a file that was not synced",
    )?;
    ensure(host.ok("ls /mnt/shared")? == "here\n", "the shared directory")?;
    until(&host, "cat /sys/bus/usb/devices/*/serial", |seen| {
        seen.contains("KBD07")
    })?;
    let state = host.run("systemctl is-system-running --wait")?;
    ensure(state.stdout == "running\n", format!("{state:?}"))
}
