//! The mount table of this process: `/proc/self/mountinfo`, proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

const FILE: &str = "/proc/self/mountinfo";

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its device number: `8:1`. The major number is 0 if the file system has no block device of its own.
    pub device: String,
    /// The mount point, as seen by this process.
    pub target: PathBuf,
    /// The type of the file system: `ext4`, `cgroup2`.
    pub fs_type: String,
    /// The mount source: a device, or another name given by the file system.
    pub source: String,
    /// The options of the file system, not of the mount.
    pub options: Vec<String>,
}

/// The mount table can't be read.
#[derive(Debug, thiserror::Error)]
#[error("can't read the mount table {FILE}")]
pub struct MountTableError(#[source] io::Error);

/// Returns the mounts in the order of the table. Lines that don't follow the documented format are left out.
///
/// # Errors
/// [`MountTableError`] when the table can't be read, for example because /proc is not mounted.
pub fn table() -> Result<Vec<Mount>, MountTableError> {
    let text = std::fs::read_to_string(FILE).map_err(MountTableError)?;
    Ok(parse(&text))
}

/// Parses a mount table.
pub(crate) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(2);
    let device = mount.next()?.to_owned();
    let target = unescaped(mount.nth(1)?);
    let mut file_system = file_system.split(' ');
    Some(Mount {
        device,
        target: OsString::from_vec(target).into(),
        fs_type: file_system.next()?.to_owned(),
        source: String::from_utf8_lossy(&unescaped(file_system.next()?)).into_owned(),
        options: file_system
            .next()
            .unwrap_or_default()
            .split(',')
            .map(str::to_owned)
            .collect(),
    })
}

/// Decodes a field: the kernel writes space, tab, line end and backslash as a backslash with three octal digits.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| *byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(code.unwrap_or(*byte));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed_with_and_without_optional_fields_and_with_escaped_spaces() {
        let text = "30 1 0:26 / / rw,relatime - btrfs /dev/vda2 rw,space_cache\n\
                    nonsense\n\
                    31 30 8:1 /sub /mnt/with\\040space\\134 rw shared:3 master:1 - ext4 /dev/sda1 rw\n\
                    - cgroup2\n";
        assert_eq!(
            parse(text),
            [
                Mount {
                    device: "0:26".into(),
                    target: "/".into(),
                    fs_type: "btrfs".into(),
                    source: "/dev/vda2".into(),
                    options: vec!["rw".into(), "space_cache".into()],
                },
                Mount {
                    device: "8:1".into(),
                    target: "/mnt/with space\\".into(),
                    fs_type: "ext4".into(),
                    source: "/dev/sda1".into(),
                    options: vec!["rw".into()],
                },
            ]
        );
    }

    #[test]
    fn the_table_of_this_process_has_proc() {
        let table = table().expect("a mount table");
        assert!(table.iter().any(|mount| mount.fs_type == "proc"), "{table:?}");
    }
}
