//! Builds the machine's disk: a Debian with systemd, Nix and nats-server, without our programs.
//!
//! Everything is in the constants here and the files beside it: a change of one makes a new image. Only the versions of
//! packages depend on the day.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::debian::{INIT, SUITE, Tree, UNUSED_MODULES, executable, make_disk};
use crate::say;

/// Changes with what this file does and no text below tells.
const VERSION: &str = "1";

/// The size of the sparse disk, in bytes.
const DISK_BYTES: u64 = 8 << 30;

/// The packages in addition to a minimal Debian. They are installed by `apt`, since debootstrap can't resolve the
/// dependencies of `nix-bin`.
const PACKAGES: &str = "\
    systemd systemd-sysv systemd-container udev dbus polkitd kmod util-linux-extra procps \
    iproute2 nftables iputils-ping netcat-openbsd socat \
    nix-bin nix-setup-systemd busybox-static xz-utils \
    qemu-guest-agent jq strace usbutils pciutils lshw hwinfo e2fsprogs \
    perl libfile-slurp-perl ca-certificates";

/// Modules that would be loaded at each start without any use here.
const BLOCKED_MODULES: &str = "\
    kvm_amd kvm_intel kvm powernow_k8 acpi_cpufreq i2c_i801 lpc_ich iTCO_wdt drm bochs pcspkr joydev mousedev psmouse \
    serio_raw ccp rapl ppdev parport_pc";

/// Units that a short-lived machine doesn't need.
const MASKED_UNITS: &str = "\
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service \
    systemd-timesyncd.service systemd-pstore.service systemd-firstboot.service systemd-vconsole-setup.service \
    systemd-hwdb-update.service systemd-journal-catalog-update.service systemd-update-done.service ldconfig.service \
    systemd-binfmt.service systemd-modules-load.service systemd-tpm2-setup.service systemd-tpm2-setup-early.service \
    systemd-tpm2-clear.service systemd-pcrextend.socket modprobe@drm.service modprobe@configfs.service \
    getty@tty1.service getty-static.service serial-getty@ttyS0.service serial-getty@hvc0.service";

/// Units that are installed but not enabled.
const DISABLED_UNITS: &str =
    "systemd-networkd.service systemd-networkd.socket nix-daemon.service nftables.service";

/// Files of the machine: path and text.
const FILES: &[(&str, &str)] = &[
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    ("etc/hostname", "leaf\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/resolv.conf", "nameserver 10.0.2.3\n"),
    ("etc/fstab", ""),
    (
        "etc/systemd/journald.conf.d/test-host.conf",
        "[Journal]\nStorage=persistent\nSystemMaxUse=256M\n",
    ),
    (
        "etc/systemd/system/test-host-network.service",
        include_str!("guest/test-host-network.service"),
    ),
    ("etc/test-host.network", include_str!("guest/network.batch")),
    (
        "etc/systemd/system/qemu-guest-agent.service.d/test-host.conf",
        include_str!("guest/qemu-guest-agent.conf"),
    ),
    (
        "etc/udev/rules.d/99-test-host.rules",
        include_str!("guest/test-host.rules"),
    ),
    ("etc/nix/nix.conf", include_str!("guest/nix.conf")),
];

/// Returns everything that determines the disk's content, as text.
pub(crate) fn recipe() -> String {
    let mut text = [
        VERSION,
        SUITE,
        PACKAGES,
        UNUSED_MODULES,
        BLOCKED_MODULES,
        MASKED_UNITS,
        DISABLED_UNITS,
        INIT,
    ]
    .join("\n");
    text.push_str(&DISK_BYTES.to_string());
    for (path, content) in FILES {
        text.push_str(path);
        text.push_str(content);
    }
    text
}

/// Builds `root.img`, `vmlinuz` and `initrd` in a directory.
pub(crate) fn build(directory: &Path, nats_server: &Path) -> Result<()> {
    let tree = Tree::fetch(directory, PACKAGES)?;
    let kernel = tree.kernel()?;
    say(format_args!("making its disk"));
    settings(&tree, nats_server)?;
    tree.start_files(&kernel, directory)?;
    make_disk(&tree.root, &directory.join("root.img"), DISK_BYTES)?;
    tree.remove()
}

fn settings(tree: &Tree, nats_server: &Path) -> Result<()> {
    for (path, content) in FILES {
        tree.write(path, content)?;
    }
    let blocked: String = BLOCKED_MODULES
        .split_whitespace()
        .map(|name| format!("blacklist {name}\n"))
        .collect();
    tree.write("etc/modprobe.d/test-host.conf", &blocked)?;
    tree.inside("sh", &["-ec", "sed -i 's/^root:[^:]*:/root::/' /etc/shadow"])?;

    let units = tree.root.join("etc/systemd/system");
    for unit in DISABLED_UNITS
        .split_whitespace()
        .chain(MASKED_UNITS.split_whitespace())
    {
        disable(&units, unit)?;
    }
    for unit in MASKED_UNITS.split_whitespace() {
        symlink("/dev/null", units.join(unit)).with_context(|| format!("can't mask {unit}"))?;
    }
    let wants = units.join("sockets.target.wants");
    fs::create_dir_all(&wants).with_context(|| format!("can't make {}", wants.display()))?;
    let socket = wants.join("nix-daemon.socket");
    if fs::symlink_metadata(&socket).is_err() {
        symlink("/usr/lib/systemd/system/nix-daemon.socket", &socket)
            .context("can't enable nix-daemon.socket")?;
    }

    let program = tree.root.join("usr/local/bin/nats-server");
    fs::copy(nats_server, &program).with_context(|| format!("can't copy {}", nats_server.display()))?;
    executable(&program)?;
    // The store belongs to the builders' group, as the daemon requires; NixOS's other directories exist as well.
    tree.inside(
        "sh",
        &["-ec", "mkdir -p /nix/store /nix/var/nix /etc/nixos-containers /var/lib/nixos-containers /var/log/journal; \
            chown root:nixbld /nix/store; chmod 1775 /nix/store; chmod 700 /var/lib/nixos-containers; \
            rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb \
            /usr/share/doc/* /usr/share/man/* /usr/share/locale/*"],
    )
}

/// Removes a unit's links from all `*.wants` directories.
fn disable(units: &Path, unit: &str) -> Result<()> {
    let directories = fs::read_dir(units).with_context(|| format!("can't read {}", units.display()))?;
    let links = directories
        .filter_map(Result::ok)
        .map(|entry| entry.path().join(unit));
    for link in links.chain([units.join(unit)]) {
        if fs::symlink_metadata(&link).is_ok_and(|file| file.is_symlink()) {
            fs::remove_file(&link).with_context(|| format!("can't remove {}", link.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_disabled_wherever_it_is_wanted() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let wants = directory.path().join("a.target.wants");
        fs::create_dir(&wants).expect("a directory");
        symlink("/x", wants.join("a.service")).expect("a link");
        symlink("/x", wants.join("b.service")).expect("a link");
        disable(directory.path(), "a.service").expect("disabled");
        let left: Vec<_> = fs::read_dir(&wants)
            .expect("a directory")
            .map(|e| e.expect("an entry").file_name())
            .collect();
        assert_eq!(left, ["b.service"]);
    }
}
