//! ID-mapped mounts, by which files of the host are root's own in a container.

use crate::error::{Error, Result};

/// Returns whether a file system supports ID-mapped mounts (mount_setattr(2)).
pub(crate) fn maps_users(fd: impl std::os::fd::AsFd) -> Result<bool> {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const F2FS: u64 = 0xf2f5_2010;
    const TMPFS: u64 = 0x0102_1994;
    let stat = rustix::fs::fstatfs(fd).map_err(Error::io("read the metadata of a file system"))?;
    let kind = u64::try_from(stat.f_type).unwrap_or(0) & 0xffff_ffff;
    let release = || rustix::system::uname().release().to_string_lossy().into_owned();
    Ok([EXT, XFS, BTRFS, F2FS].contains(&kind) || (kind == TMPFS && is_since(&release(), TMPFS_SINCE)))
}

/// The first version of Linux with ID-mapped mounts of a tmpfs.
const TMPFS_SINCE: (u32, u32) = (6, 3);

/// Returns whether the release of a kernel is of this version or a later one. One that can't be read is not.
fn is_since(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    numbers.next().zip(numbers.next()) >= Some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_kernel_is_that_of_its_release() {
        for (release, is_new) in [
            ("6.3.0", true),
            ("6.18.44-fc-v857", true),
            ("10.0", true),
            ("6.2.16", false),
            ("5.15.0-91-generic", false),
            ("6", false),
            ("rc", false),
        ] {
            assert_eq!(is_since(release, TMPFS_SINCE), is_new, "{release}");
        }
    }
}
