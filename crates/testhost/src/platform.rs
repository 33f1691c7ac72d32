//! What this machine can run: whether test hosts can be here at all, and what runs their instructions.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Result, bail, ensure};

use crate::command::find;

/// What runs a machine's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// This machine's processor, by the kernel.
    Kvm,
    /// QEMU itself.
    Emulation,
}

/// Checks that test hosts can be here at all.
///
/// # Errors
/// Where they can't: the text says why.
pub fn can_run() -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the test host is built for x86_64 only so far; this machine is {}",
        std::env::consts::ARCH
    );
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the test host is built with debootstrap and chroot, and that needs root; try: sudo \
             --preserve-env=PATH,HOME cargo xtask host build"
        );
    }
    Ok(())
}

impl Accelerator {
    /// How many processors a machine has where nothing else is said. Two emulated ones wait for each other where there are
    /// no more real ones than that, and at times for ever.
    pub(crate) fn processors(self) -> u32 {
        match self {
            Self::Kvm => 2,
            Self::Emulation => 1,
        }
    }

    /// Returns KVM where it really works, which `/dev/kvm` alone does not tell.
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

/// Lets QEMU start a machine with KVM whose disk has one sector, which says that it was run.
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
    // The device ends QEMU with twice the value that is written, and one.
    command
        .status()
        .is_ok_and(|status| status.code() == Some(0x10 * 2 + 1))
}
