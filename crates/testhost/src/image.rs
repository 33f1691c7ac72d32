//! Builds the machine's disk: a Debian with systemd, Nix and nats-server, and nothing of the house in it.
//!
//! All is in [`RECIPE`] and the files beside it: whoever changes one of them gets a new image by itself. Only the
//! version of a package depends on the day.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::line;
use crate::{cpio, say};

/// Changes with what this file does and no text below tells.
const VERSION: &str = "1";

const SUITE: &str = "trixie";

/// The disk's size; it is sparse.
const DISK_BYTES: u64 = 8 << 30;

/// What is installed, apart from Debian's least. `apt` and not debootstrap installs it: that one can't resolve what
/// `nix-bin` needs.
const PACKAGES: &str = "\
    systemd systemd-sysv systemd-container udev dbus polkitd kmod util-linux-extra procps \
    iproute2 nftables iputils-ping netcat-openbsd socat \
    nix-bin nix-setup-systemd busybox-static xz-utils \
    qemu-guest-agent jq strace usbutils pciutils lshw hwinfo e2fsprogs \
    perl libfile-slurp-perl ca-certificates";

/// Parts of the kernel that no test needs, below `kernel/` of its modules.
const UNUSED_MODULES: &str = "\
    drivers/gpu drivers/infiniband drivers/iio drivers/staging drivers/isdn drivers/edac drivers/platform \
    drivers/net/wireless drivers/net/ethernet/mellanox drivers/net/ethernet/broadcom drivers/net/ethernet/chelsio \
    drivers/net/ethernet/qlogic drivers/net/ethernet/sfc drivers/net/ethernet/cavium drivers/net/ethernet/marvell \
    drivers/media/dvb-core drivers/media/dvb-frontends drivers/media/i2c drivers/media/pci drivers/media/platform \
    drivers/media/radio drivers/media/tuners drivers/media/usb sound/soc \
    fs/xfs fs/btrfs fs/ocfs2 fs/gfs2 fs/f2fs fs/bcachefs fs/smb fs/nfs fs/nfsd fs/ceph";

/// Modules that would be loaded at each start, and do nothing here but take time.
const BLOCKED_MODULES: &str = "\
    kvm_amd kvm_intel kvm powernow_k8 acpi_cpufreq i2c_i801 lpc_ich iTCO_wdt drm bochs pcspkr joydev mousedev psmouse \
    serio_raw ccp rapl ppdev parport_pc";

/// Units that a machine for some minutes has no use for.
const MASKED_UNITS: &str = "\
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer e2scrub_all.timer e2scrub_reap.service \
    systemd-timesyncd.service systemd-pstore.service systemd-firstboot.service systemd-vconsole-setup.service \
    systemd-hwdb-update.service systemd-journal-catalog-update.service systemd-update-done.service ldconfig.service \
    systemd-binfmt.service systemd-modules-load.service systemd-tpm2-setup.service systemd-tpm2-setup-early.service \
    systemd-tpm2-clear.service systemd-pcrextend.socket modprobe@drm.service modprobe@configfs.service \
    getty@tty1.service getty-static.service serial-getty@ttyS0.service serial-getty@hvc0.service";

/// Units that are there to be started by who wants them.
const DISABLED_UNITS: &str =
    "systemd-networkd.service systemd-networkd.socket nix-daemon.service nftables.service";

/// Files of the machine: path, text.
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

const INIT: &str = include_str!("guest/init.sh");

/// All that decides what is on the disk, as text.
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

/// Builds `root.img`, `vmlinuz` and `initrd` in a folder.
pub(crate) fn build(folder: &Path, nats_server: &Path) -> Result<()> {
    let build = Build {
        root: folder.join("rootfs"),
        log: folder.join("build.log"),
    };
    say(format_args!("fetching Debian {SUITE}"));
    build.run(
        Command::new("debootstrap")
            .args(["--variant=minbase", SUITE])
            .arg(&build.root),
    )?;
    say(format_args!("installing its packages"));
    build.packages()?;
    let kernel = build.kernel()?;
    say(format_args!("making its disk"));
    build.settings(nats_server)?;
    build.start_files(&kernel, folder)?;
    build.disk(&folder.join("root.img"))?;
    fs::remove_dir_all(&build.root).with_context(|| format!("can't remove {}", build.root.display()))
}

/// The folder that becomes the disk, and what is printed meanwhile.
struct Build {
    root: PathBuf,
    log: PathBuf,
}

impl Build {
    /// Runs a command; its output goes to the log, the end of which is in the error.
    fn run(&self, command: &mut Command) -> Result<()> {
        let shown = line(command);
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("can't open {}", self.log.display()))?;
        let status = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("a log can't be shared")?)
            .stderr(log)
            .status()
            .with_context(|| format!("can't run {shown}"))?;
        if !status.success() {
            let text = fs::read(&self.log).unwrap_or_default();
            bail!(
                "{shown} ended with {status}; its last words:\n{}",
                last_lines(&text, 15)
            );
        }
        Ok(())
    }

    /// Runs a command in the new system.
    fn inside(&self, program: &str, arguments: &[&str]) -> Result<()> {
        self.run(self.chroot(program).args(arguments))
    }

    fn chroot(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command
            .arg(&self.root)
            .arg(program)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("LC_ALL", "C");
        command
    }

    fn inside_output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        crate::command::output(self.chroot(program).args(arguments))
    }

    fn packages(&self) -> Result<()> {
        self.write(
            "etc/dpkg/dpkg.cfg.d/test-host",
            "path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n\
             force-unsafe-io\n",
        )?;
        // Nothing is started while it is installed.
        let policy = self.write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
        executable(&policy)?;
        let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
        let packages = PACKAGES.split_whitespace();
        self.inside(
            "apt-get",
            &install.into_iter().chain(packages).collect::<Vec<_>>(),
        )?;
        fs::remove_file(&policy).with_context(|| format!("can't remove {}", policy.display()))
    }

    /// Unpacks the kernel, without its scripts: they would make an initrd that nobody uses. Returns its version.
    fn kernel(&self) -> Result<String> {
        let depends = self.inside_output("apt-cache", &["depends", "linux-image-amd64"])?;
        let package = depends
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .filter(|name| name.starts_with("linux-image-"))
            .with_context(|| format!("linux-image-amd64 names no kernel: {depends}"))?;
        let version = package.trim_start_matches("linux-image-").to_owned();
        let unpack = format!(
            "cd /tmp; apt-get --quiet download {package}; dpkg-deb --extract {package}_*.deb kernel; \
             mv kernel/boot/vmlinuz-* /boot/; mkdir -p /usr/lib/modules; \
             if [ -d kernel/usr/lib/modules ]; then mv kernel/usr/lib/modules/* /usr/lib/modules/; \
             else mv kernel/lib/modules/* /usr/lib/modules/; fi; rm -r kernel {package}_*.deb"
        );
        self.inside("sh", &["-ec", &unpack])?;
        let modules = self.root.join("usr/lib/modules").join(&version).join("kernel");
        ensure!(
            modules.is_dir(),
            "{package} has no modules in {}",
            modules.display()
        );
        for unused in UNUSED_MODULES.split_whitespace() {
            remove_folder(&modules.join(unused))?;
        }
        // Emulated, the unpacking at each start takes longer than the larger file.
        let unpack = format!(
            "find /usr/lib/modules/{version}/kernel -name '*.xz' -print0 | xargs -0 -r -n 64 -P 4 xz -d"
        );
        self.inside("sh", &["-ec", &unpack])?;
        self.inside("depmod", &[&version])?;
        Ok(version)
    }

    fn settings(&self, nats_server: &Path) -> Result<()> {
        for (path, content) in FILES {
            self.write(path, content)?;
        }
        let blocked: String = BLOCKED_MODULES
            .split_whitespace()
            .map(|name| format!("blacklist {name}\n"))
            .collect();
        self.write("etc/modprobe.d/test-host.conf", &blocked)?;
        self.inside("sh", &["-ec", "sed -i 's/^root:[^:]*:/root::/' /etc/shadow"])?;

        let units = self.root.join("etc/systemd/system");
        for unit in DISABLED_UNITS
            .split_whitespace()
            .chain(MASKED_UNITS.split_whitespace())
        {
            self.disable(&units, unit)?;
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

        let program = self.root.join("usr/local/bin/nats-server");
        fs::copy(nats_server, &program).with_context(|| format!("can't copy {}", nats_server.display()))?;
        executable(&program)?;
        // The store belongs to the builders' group, as the daemon wants it; what NixOS has beside it is there too.
        self.inside(
            "sh",
            &["-ec", "mkdir -p /nix/store /nix/var/nix /etc/nixos-containers /var/lib/nixos-containers /var/log/journal; \
                chown root:nixbld /nix/store; chmod 1775 /nix/store; chmod 700 /var/lib/nixos-containers; \
                rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/apt/archives/*.deb \
                /usr/share/doc/* /usr/share/man/* /usr/share/locale/*"],
        )
    }

    /// Removes a unit's links from the folders of what wants it.
    fn disable(&self, units: &Path, unit: &str) -> Result<()> {
        let folders = fs::read_dir(units).with_context(|| format!("can't read {}", units.display()))?;
        let links = folders
            .filter_map(Result::ok)
            .map(|entry| entry.path().join(unit));
        for link in links.chain([units.join(unit)]) {
            if fs::symlink_metadata(&link).is_ok_and(|file| file.is_symlink()) {
                fs::remove_file(&link).with_context(|| format!("can't remove {}", link.display()))?;
            }
        }
        Ok(())
    }

    /// The kernel, and the least of a first root: busybox, and the modules between it and the disk.
    fn start_files(&self, kernel: &str, folder: &Path) -> Result<()> {
        let from = self.root.join("boot").join(format!("vmlinuz-{kernel}"));
        fs::copy(&from, folder.join("vmlinuz")).with_context(|| format!("can't copy {}", from.display()))?;

        let mut archive = cpio::Archive::default();
        for name in ["bin", "dev", "modules", "root"] {
            archive.folder(name);
        }
        let busybox = self.root.join("usr/bin/busybox");
        let read = |file: &Path| fs::read(file).with_context(|| format!("can't read {}", file.display()));
        archive.file("bin/busybox", 0o755, &read(&busybox)?);
        archive.link("bin/sh", "busybox");
        archive.file("init", 0o755, INIT.as_bytes());
        let mut seen = Vec::new();
        for module in ["virtio_pci", "virtio_blk", "ext4"] {
            let needs =
                self.inside_output("modprobe", &["--set-version", kernel, "--show-depends", module])?;
            for file in needs.lines().filter_map(|line| line.strip_prefix("insmod ")) {
                let file = file.trim().to_owned();
                if !seen.contains(&file) {
                    let name = format!("modules/{:02}.ko", seen.len());
                    archive.file(
                        &name,
                        0o644,
                        &read(&self.root.join(file.trim_start_matches('/')))?,
                    );
                    seen.push(file);
                }
            }
        }
        fs::write(folder.join("initrd"), archive.end()).context("can't write the initrd")
    }

    fn disk(&self, file: &Path) -> Result<()> {
        fs::File::create(file)
            .and_then(|disk| disk.set_len(DISK_BYTES))
            .with_context(|| format!("can't make {}", file.display()))?;
        self.run(
            Command::new("mkfs.ext4")
                .args([
                    "-q",
                    "-F",
                    "-m",
                    "0",
                    "-E",
                    "lazy_itable_init=0,lazy_journal_init=0",
                    "-d",
                ])
                .arg(&self.root)
                .arg(file),
        )
    }

    fn write(&self, path: &str, content: &str) -> Result<PathBuf> {
        let file = self.root.join(path);
        let folder = file.parent().expect("a file of the machine is in a folder");
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        // Debian's may be a link to elsewhere.
        if fs::symlink_metadata(&file).is_ok_and(|file| file.is_symlink()) {
            fs::remove_file(&file).with_context(|| format!("can't replace {}", file.display()))?;
        }
        fs::write(&file, content).with_context(|| format!("can't write {}", file.display()))?;
        Ok(file)
    }
}

fn executable(file: &Path) -> Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("can't make {} executable", file.display()))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The end of a text.
pub(crate) fn last_lines(text: &[u8], count: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_text_is_its_last_lines() {
        assert_eq!(last_lines(b"a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines(b"a", 2), "a");
        assert_eq!(last_lines(b"", 2), "");
    }

    #[test]
    fn a_unit_is_disabled_wherever_it_is_wanted() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let build = Build {
            root: folder.path().to_owned(),
            log: folder.path().join("log"),
        };
        let wants = folder.path().join("a.target.wants");
        fs::create_dir(&wants).expect("a folder");
        symlink("/x", wants.join("a.service")).expect("a link");
        symlink("/x", wants.join("b.service")).expect("a link");
        build.disable(folder.path(), "a.service").expect("disabled");
        let left: Vec<_> = fs::read_dir(&wants)
            .expect("a folder")
            .map(|e| e.expect("an entry").file_name())
            .collect();
        assert_eq!(left, ["b.service"]);
    }

    #[test]
    fn a_command_that_fails_says_its_last_words() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let build = Build {
            root: folder.path().to_owned(),
            log: folder.path().join("log"),
        };
        let error = build
            .run(Command::new("sh").args(["-c", "echo no space; exit 4"]))
            .expect_err("it fails");
        assert!(error.to_string().contains("no space"), "{error}");
    }
}
