//! The capabilities of this machine: whether it can run test hosts, and with which accelerator.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Result, bail, ensure};

use crate::command::find;

/// The accelerator of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// Virtualization by the kernel (KVM).
    Kvm,
    /// Emulation by QEMU.
    Emulation,
}

/// Checks that this machine can have test hosts.
///
/// # Errors
/// If it can't; the text says why.
pub fn can_run() -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the test host is available only on x86_64 so far; this machine is {}",
        std::env::consts::ARCH
    );
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the test host is built with debootstrap and chroot, which needs root; try: sudo \
             --preserve-env=PATH,HOME cargo xtask host build"
        );
    }
    Ok(())
}

impl Accelerator {
    /// Returns the default number of processors. Two emulated processors wait for each other if there are no more real
    /// ones, and at times forever.
    pub(crate) fn processors(self) -> u32 {
        match self {
            Self::Kvm => 2,
            Self::Emulation => 1,
        }
    }

    /// Returns KVM if it really works, which the existence of `/dev/kvm` does not show.
    pub(crate) fn of_here() -> Self {
        static OF_HERE: OnceLock<Accelerator> = OnceLock::new();
        *OF_HERE.get_or_init(|| {
            let has = Path::new("/dev/kvm").exists() && find("qemu-system-x86_64").is_some();
            if has && kvm_works() {
                Self::Kvm
            } else {
                Self::Emulation
            }
        })
    }
}

/// Tests KVM by starting a machine whose boot sector reports that it ran.
fn kvm_works() -> bool {
    // mov dx, 0xf4; mov al, 0x10; out dx, al; hlt; and the mark of a sector that can be started.
    let mut sector = [0; 512];
    sector[..7].copy_from_slice(&[0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4]);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let Ok(mut disk) = tempfile::NamedTempFile::new() else {
        return false;
    };
    if disk.write_all(&sector).is_err() {
        return false;
    }
    let mut command = Command::new("timeout");
    command
        .args([
            "--kill-after=1",
            "10",
            "qemu-system-x86_64",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "64",
        ])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-drive")
        .arg(format!("format=raw,if=ide,file={}", disk.path().display()))
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    // The device makes QEMU exit with twice the written value plus one.
    command
        .status()
        .is_ok_and(|status| status.code() == Some(0x10 * 2 + 1))
}
