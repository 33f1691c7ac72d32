//! The payload's cgroup below a container's unit, and its limits (`Documentation/admin-guide/cgroup-v2.rst` of the
//! kernel).
//!
//! ```text
//! machine.slice/container@NAME.service     delegated by systemd
//!   supervisor                             leaf-helper run, and systemd-nspawn
//!   payload                                the container; the limits are here
//! ```
//!
//! So a container that exhausts its limits does not affect its supervisor.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use leaf_core::id::ContainerName;
use leaf_core::runtime::Runtime;
use leaf_core::spec::Limits;
use leaf_host::cgroup::{self, Cgroup, CgroupError};
use leaf_host::mounts::{self, Mount};

use crate::error::{Error, Result};

/// The controllers that limits and resource usage need.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// The period of `cpu.max`, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// The time limit for killed processes to disappear.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// The delegated cgroup of a container's unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnitCgroup(Cgroup);

impl UnitCgroup {
    /// Returns the cgroup of a container, which need not exist.
    pub(crate) fn of(name: &ContainerName) -> Result<Self> {
        let path = cgroup::mount()?.join("machine.slice").join(Runtime::unit(name));
        Ok(Self(Cgroup::at(path)))
    }

    /// Returns the cgroup of this process's unit.
    pub(crate) fn own() -> Result<Self> {
        let own = Cgroup::of_this_process()?;
        Ok(Self(Cgroup::at(unit_part(own.path()))))
    }

    /// Returns whether it exists: systemd removes it with the unit's last process.
    pub(crate) fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Returns the payload's cgroup.
    pub(crate) fn payload(&self) -> Cgroup {
        self.0.child("payload")
    }

    /// Creates the payload's cgroup with its limits, and moves this process to a sibling. No process is in the payload
    /// yet.
    pub(crate) fn make_payload(&self, limits: &Limits, root: &Path) -> Result<()> {
        let supervisor = self.0.child("supervisor");
        supervisor.create()?;
        self.payload().create()?;
        supervisor.attach_this_process()?;
        let file = self.0.path().join("cgroup.controllers");
        let there = std::fs::read_to_string(&file).map_err(Error::io(format!("read {}", file.display())))?;
        let wanted: String = CONTROLLERS
            .iter()
            .filter(|controller| there.split_whitespace().any(|t| t == **controller))
            .map(|controller| format!("+{controller} "))
            .collect();
        write(&self.0.path().join("cgroup.subtree_control"), wanted.trim())?;
        self.set_limits(limits, root)
    }

    /// Sets the payload's limits to those of the spec, and removes limits that the spec no longer has.
    pub(crate) fn set_limits(&self, limits: &Limits, root: &Path) -> Result<()> {
        let payload = self.payload();
        let payload = payload.path();
        for (file, wanted) in settings(limits) {
            let path = payload.join(file);
            if path.exists() {
                write(&path, &wanted)?;
            } else if wanted != "max" && file != "memory.swap.max" {
                return Err(Error::Unsupported(format!(
                    "limits: this host's kernel doesn't support {file} for containers"
                )));
            }
        }
        let io = (limits.io_read_bytes_per_second, limits.io_write_bytes_per_second);
        let path = payload.join("io.max");
        if io == (None, None) {
            // Removes the limits of all disks that were limited before.
            let before = std::fs::read_to_string(&path).unwrap_or_default();
            for device in before.lines().filter_map(|line| line.split(' ').next()) {
                write(&path, &format!("{device} rbps=max wbps=max"))?;
            }
            return Ok(());
        }
        if !path.exists() {
            return Err(Error::Unsupported(
                "limits: this host's kernel doesn't support io.max for containers".into(),
            ));
        }
        let of = |size: Option<leaf_core::spec::ByteSize>| size.map_or("max".into(), |s| s.0.to_string());
        let disk = disk_below(root)?;
        write(&path, &format!("{disk} rbps={} wbps={}", of(io.0), of(io.1)))
    }

    /// Returns whether a process is in this cgroup or below it.
    pub(crate) fn contains(&self, pid: u32) -> bool {
        self.0.contains(pid)
    }

    /// Returns the container's leader, if it runs: process 1 of the PID namespace below this program's.
    pub(crate) fn first_process(&self) -> Option<u32> {
        self.payload().first_process()
    }

    /// Returns the number of the container's processes that were killed for lack of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.payload().oom_kills().unwrap_or(0)
    }

    /// Kills every process of the container.
    pub(crate) async fn kill_payload(&self) -> Result<()> {
        Ok(self.payload().kill_and_wait(GONE_WITHIN).await?)
    }
}

/// Returns the unit's own cgroup, given that cgroup or one below it.
fn unit_part(group: &Path) -> &Path {
    let is_below = |group: &&Path| group.ends_with("supervisor") || group.ends_with(".control");
    match group.parent() {
        Some(unit) if is_below(&group) => unit,
        _ => group,
    }
}

/// Returns the files of the cgroup with the values to write.
fn settings(limits: &Limits) -> [(&'static str, String); 4] {
    let max = || "max".to_owned();
    let memory = limits.memory_bytes;
    let cpu = limits
        .cpu_percent
        .map_or_else(max, |percent| (u64::from(percent) * CPU_PERIOD / 100).to_string());
    [
        ("memory.max", memory.map_or_else(max, |bytes| bytes.0.to_string())),
        ("memory.swap.max", memory.map_or_else(max, |_| "0".into())),
        (
            "cpu.max",
            if cpu == "max" {
                cpu
            } else {
                format!("{cpu} {CPU_PERIOD}")
            },
        ),
        (
            "pids.max",
            limits.tasks.map_or_else(max, |tasks| tasks.to_string()),
        ),
    ]
}

/// Returns the disk of a directory's file system, in the form of `io.max`.
fn disk_below(directory: &Path) -> Result<String> {
    let unsupported = |why: String| {
        Error::Unsupported(format!(
            "limits: can't determine the disk of {}: {why}",
            directory.display()
        ))
    };
    let stat = std::fs::metadata(directory)
        .map_err(Error::io(format!("read the metadata of {}", directory.display())))?;
    let mut device = stat.dev();
    if rustix::fs::major(device) == 0 {
        // btrfs, for example, has an anonymous device number; its source is in the mount table.
        let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let table = mounts::table().map_err(CgroupError::MountTable)?;
        let source =
            device_of(&table, &number).ok_or_else(|| unsupported("its file system is on no disk".into()))?;
        let stat = std::fs::metadata(source).map_err(|e| unsupported(format!("{source}: {e}")))?;
        device = stat.rdev();
        if rustix::fs::major(device) == 0 {
            return Err(unsupported(format!("its file system is on {source}")));
        }
    }
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let own = std::fs::canonicalize(format!("/sys/dev/block/{number}"))
        .map_err(|e| unsupported(format!("device {number}: {e}")))?;
    if !own.join("partition").exists() {
        return Ok(number);
    }
    // Limits apply to whole disks.
    let whole = own.parent().map(|disk| disk.join("dev")).unwrap_or_default();
    std::fs::read_to_string(&whole)
        .map(|text| text.trim().to_owned())
        .map_err(|e| unsupported(format!("{}: {e}", whole.display())))
}

/// Returns the device of the mounted file system with this device number, if it has one.
fn device_of<'a>(table: &'a [Mount], number: &str) -> Option<&'a str> {
    let on_device = |mount: &&Mount| mount.device == number && mount.source.starts_with("/dev/");
    table.iter().find(on_device).map(|mount| &*mount.source)
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).map_err(Error::io(format!("write {text:?} to {}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_in_the_kernels_format() {
        let limits: Limits =
            serde_json::from_str(r#"{"memory_bytes":"64 MiB","cpu_percent":250,"tasks":7}"#).expect("limits");
        assert_eq!(
            settings(&limits),
            [
                ("memory.max", "67108864".to_owned()),
                ("memory.swap.max", "0".to_owned()),
                ("cpu.max", "250000 100000".to_owned()),
                ("pids.max", "7".to_owned()),
            ]
        );
        assert!(
            settings(&Limits::default())
                .iter()
                .all(|(_, value)| value == "max")
        );
    }

    #[test]
    fn the_units_own_group_is_found_from_below_it() {
        let unit = Path::new("machine.slice/container@web.service");
        assert_eq!(unit_part(unit), unit);
        for below in ["supervisor", ".control"] {
            assert_eq!(unit_part(&unit.join(below)), unit);
        }
    }

    #[test]
    fn the_disk_of_a_file_system_with_an_anonymous_device_is_found_in_the_mount_table() {
        let mount = |device: &str, source: &str| Mount {
            device: device.into(),
            target: "/".into(),
            fs_type: "btrfs".into(),
            source: source.into(),
            options: Vec::new(),
        };
        let table = [mount("0:26", "/dev/vda2"), mount("0:27", "tmpfs")];
        assert_eq!(device_of(&table, "0:26"), Some("/dev/vda2"));
        assert_eq!(device_of(&table, "0:27"), None);
    }
}
