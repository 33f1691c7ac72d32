//! Trees of Debian packages, from which disks are made: debootstrap, apt and the kernel.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::{line, output};
use crate::{cpio, say};

pub(crate) const SUITE: &str = "trixie";

/// Parts of the kernel that no test needs, below `kernel/` of its modules.
pub(crate) const UNUSED_MODULES: &str = "\
    drivers/gpu drivers/infiniband drivers/iio drivers/staging drivers/isdn drivers/edac drivers/platform \
    drivers/net/wireless drivers/net/ethernet/mellanox drivers/net/ethernet/broadcom drivers/net/ethernet/chelsio \
    drivers/net/ethernet/qlogic drivers/net/ethernet/sfc drivers/net/ethernet/cavium drivers/net/ethernet/marvell \
    drivers/media/dvb-core drivers/media/dvb-frontends drivers/media/i2c drivers/media/pci drivers/media/platform \
    drivers/media/radio drivers/media/tuners drivers/media/usb sound/soc \
    fs/xfs fs/btrfs fs/ocfs2 fs/gfs2 fs/f2fs fs/bcachefs fs/smb fs/nfs fs/nfsd fs/ceph";

/// The first process of a machine.
pub(crate) const INIT: &str = include_str!("guest/init.sh");

/// The directory that becomes a disk, and the log of its build.
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    pub(crate) log: PathBuf,
}

impl Tree {
    /// Builds the tree `rootfs` in a directory: a minimal Debian with these packages.
    ///
    /// They are installed by `apt`, since debootstrap can't resolve the dependencies of `nix-bin`.
    pub(crate) fn fetch(directory: &Path, packages: &str) -> Result<Self> {
        let tree = Self {
            root: directory.join("rootfs"),
            log: directory.join("build.log"),
        };
        say(format_args!("fetching Debian {SUITE}"));
        tree.run(
            Command::new("debootstrap")
                .args(["--variant=minbase", SUITE])
                .arg(&tree.root),
        )?;
        say(format_args!("installing its packages"));
        tree.packages(packages)?;
        Ok(tree)
    }

    /// Removes the tree; its log is kept.
    pub(crate) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.root).with_context(|| format!("can't remove {}", self.root.display()))
    }

    /// Runs a command with its output in the log; an error contains the end of the log.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
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
                "{shown} ended with {status}; the end of its output:\n{}",
                last_lines(&text, 15)
            );
        }
        Ok(())
    }

    /// Runs a command in the new system.
    pub(crate) fn inside(&self, program: &str, arguments: &[&str]) -> Result<()> {
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
        output(self.chroot(program).args(arguments))
    }

    fn packages(&self, packages: &str) -> Result<()> {
        self.write(
            "etc/dpkg/dpkg.cfg.d/test-host",
            "path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n\
             force-unsafe-io\n",
        )?;
        // Prevents services from being started during installation.
        let policy = self.write("usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n")?;
        executable(&policy)?;
        let install = ["install", "--yes", "--quiet", "--no-install-recommends"];
        let packages = packages.split_whitespace();
        self.inside(
            "apt-get",
            &install.into_iter().chain(packages).collect::<Vec<_>>(),
        )?;
        fs::remove_file(&policy).with_context(|| format!("can't remove {}", policy.display()))
    }

    /// Unpacks the kernel without running its scripts, which would make an unused initrd. Returns its version.
    pub(crate) fn kernel(&self) -> Result<String> {
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
            remove_directory(&modules.join(unused))?;
        }
        // Under emulation, decompression at each start takes longer than reading the larger file.
        let unpack = format!(
            "find /usr/lib/modules/{version}/kernel -name '*.xz' -print0 | xargs -0 -r -n 64 -P 4 xz -d"
        );
        self.inside("sh", &["-ec", &unpack])?;
        self.inside("depmod", &[&version])?;
        Ok(version)
    }

    /// Copies the kernel, and makes a minimal initrd: busybox, and the modules that the disk needs.
    pub(crate) fn start_files(&self, kernel: &str, directory: &Path) -> Result<()> {
        let from = self.root.join("boot").join(format!("vmlinuz-{kernel}"));
        fs::copy(&from, directory.join("vmlinuz"))
            .with_context(|| format!("can't copy {}", from.display()))?;

        let mut archive = cpio::Archive::default();
        for name in ["bin", "dev", "modules", "root"] {
            archive.directory(name);
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
        fs::write(directory.join("initrd"), archive.end()).context("can't write the initrd")
    }

    pub(crate) fn write(&self, path: &str, content: &str) -> Result<PathBuf> {
        let file = self.root.join(path);
        let directory = file.parent().expect("a file of the machine is in a directory");
        fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
        // Debian's file may be a symbolic link.
        if fs::symlink_metadata(&file).is_ok_and(|file| file.is_symlink()) {
            fs::remove_file(&file).with_context(|| format!("can't replace {}", file.display()))?;
        }
        fs::write(&file, content).with_context(|| format!("can't write {}", file.display()))?;
        Ok(file)
    }
}

/// Makes a sparse disk image of this size with an ext4 file system of a directory's content.
pub(crate) fn make_disk(root: &Path, file: &Path, bytes: u64) -> Result<()> {
    fs::File::create(file)
        .and_then(|disk| disk.set_len(bytes))
        .with_context(|| format!("can't make {}", file.display()))?;
    let options = [
        "-q",
        "-F",
        "-m",
        "0",
        "-E",
        "lazy_itable_init=0,lazy_journal_init=0",
        "-d",
    ];
    output(Command::new("mkfs.ext4").args(options).arg(root).arg(file)).map(|_| ())
}

pub(crate) fn executable(file: &Path) -> Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("can't make {} executable", file.display()))
}

fn remove_directory(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

/// Returns the last lines of a text.
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
    fn the_error_of_a_failed_command_has_the_end_of_its_output() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let build = Tree {
            root: directory.path().to_owned(),
            log: directory.path().join("log"),
        };
        let error = build
            .run(Command::new("sh").args(["-c", "echo no space; exit 4"]))
            .expect_err("it fails");
        assert!(error.to_string().contains("no space"), "{error}");
    }
}
