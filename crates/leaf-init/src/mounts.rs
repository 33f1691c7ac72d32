//! The file systems that an init finds mounted by systemd-nspawn, and mounts itself where nobody did.

use std::path::Path;

use anyhow::Context as _;
use rustix::mount::MountFlags;

/// Where, which kind, and what there is once it is mounted.
const NEEDED: [(&str, &str, &str); 5] = [
    ("/proc", "proc", "self"),
    ("/sys", "sysfs", "class"),
    ("/dev", "devtmpfs", "null"),
    ("/run", "tmpfs", "."),
    ("/tmp", "tmpfs", "."),
];

/// Mounts what is missing.
pub(crate) fn mount_missing() -> anyhow::Result<()> {
    for (target, kind, sign) in NEEDED {
        let target = Path::new(target);
        if target.join(sign).exists() {
            continue;
        }
        std::fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
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
