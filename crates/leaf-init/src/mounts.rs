//! The file systems that systemd-nspawn mounts before an init starts; mounts those that are missing.

use std::path::Path;

use anyhow::Context as _;
use rustix::mount::MountFlags;

/// The mount point, the file system type, and a file that exists once it is mounted.
const NEEDED: [(&str, &str, &str); 5] = [
    ("/proc", "proc", "self"),
    ("/sys", "sysfs", "class"),
    ("/dev", "devtmpfs", "null"),
    ("/run", "tmpfs", "."),
    ("/tmp", "tmpfs", "."),
];

/// Mounts the file systems that are missing.
pub(crate) fn mount_missing() -> anyhow::Result<()> {
    for (target, kind, marker) in NEEDED {
        let target = Path::new(target);
        if target.join(marker).exists() {
            continue;
        }
        std::fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
        let flags = MountFlags::NOSUID
            | MountFlags::NODEV.difference(if kind == "devtmpfs" {
                MountFlags::NODEV
            } else {
                MountFlags::empty()
            });
        rustix::mount::mount(kind, target, kind, flags, None::<&std::ffi::CStr>)
            .with_context(|| format!("mount {kind} on {}", target.display()))?;
    }
    Ok(())
}
