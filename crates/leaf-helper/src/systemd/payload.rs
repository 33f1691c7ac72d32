//! The cgroup of a container's own processes below its unit, and the limits there
//! (`Documentation/admin-guide/cgroup-v2.rst` of the kernel).
//!
//! ```text
//! machine.slice/container@NAME.service     delegated by systemd
//!   supervisor                             leaf-helper run, and systemd-nspawn
//!   payload                                the container; the limits are here
//! ```
//!
//! A container that uses up its limits so does not take along what runs it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use leaf_core::host_op::Runtime;
use leaf_core::id::ContainerName;
use leaf_core::spec::Limits;

use crate::error::{Error, Result};
use crate::nspawn::cgroup;

/// The controllers that limits and figures need.
const CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];
/// The period of `cpu.max`, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// The delegated cgroup of a container's unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnitCgroup(PathBuf);

impl UnitCgroup {
    /// Returns that of a container, which need not be there.
    pub(crate) fn of(name: &ContainerName) -> Result<Self> {
        Ok(Self(
            cgroup::mount()?.join("machine.slice").join(Runtime::unit(name)),
        ))
    }

    /// Returns that of the unit that this process is in.
    pub(crate) fn own() -> Result<Self> {
        let text =
            std::fs::read_to_string("/proc/self/cgroup").map_err(Error::io("read /proc/self/cgroup"))?;
        let own = text
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .ok_or_else(|| Error::Unsupported("cgroup version 2 is not mounted on this host".into()))?;
        Ok(Self(cgroup::mount()?.join(unit_part(own))))
    }

    /// Whether it is there: systemd removes it with the unit's last process.
    pub(crate) fn is_there(&self) -> bool {
        self.0.is_dir()
    }

    /// The cgroup of the container's own processes.
    pub(crate) fn payload(&self) -> PathBuf {
        self.0.join("payload")
    }

    /// Makes the payload's cgroup with its limits. Nothing runs in it yet; this process moves beside it.
    pub(crate) fn make_payload(&self, limits: &Limits, root: &Path) -> Result<()> {
        let supervisor = self.0.join("supervisor");
        for folder in [&supervisor, &self.payload()] {
            std::fs::create_dir_all(folder)
                .map_err(Error::io(format!("make the cgroup {}", folder.display())))?;
        }
        cgroup::join(&supervisor)?;
        let file = self.0.join("cgroup.controllers");
        let there = std::fs::read_to_string(&file).map_err(Error::io(format!("read {}", file.display())))?;
        let wanted: String = CONTROLLERS
            .iter()
            .filter(|controller| there.split_whitespace().any(|t| t == **controller))
            .map(|controller| format!("+{controller} "))
            .collect();
        write(&self.0.join("cgroup.subtree_control"), wanted.trim())?;
        self.set_limits(limits, root)
    }

    /// Sets the limits of the payload as they are wanted; what is not limited any more is free again.
    pub(crate) fn set_limits(&self, limits: &Limits, root: &Path) -> Result<()> {
        let payload = self.payload();
        for (file, wanted) in settings(limits) {
            let path = payload.join(file);
            if path.exists() {
                write(&path, &wanted)?;
            } else if wanted != "max" && file != "memory.swap.max" {
                return Err(Error::Unsupported(format!(
                    "limits: this host's kernel has no {file} for containers"
                )));
            }
        }
        let io = (limits.io_read_bytes_per_second, limits.io_write_bytes_per_second);
        let path = payload.join("io.max");
        if io == (None, None) {
            // Whatever disk was limited before is not any more.
            let before = std::fs::read_to_string(&path).unwrap_or_default();
            for device in before.lines().filter_map(|line| line.split(' ').next()) {
                write(&path, &format!("{device} rbps=max wbps=max"))?;
            }
            return Ok(());
        }
        if !path.exists() {
            return Err(Error::Unsupported(
                "limits: this host's kernel has no io.max for containers".into(),
            ));
        }
        let of = |size: Option<leaf_core::spec::ByteSize>| size.map_or("max".into(), |s| s.0.to_string());
        let disk = disk_below(root)?;
        write(&path, &format!("{disk} rbps={} wbps={}", of(io.0), of(io.1)))
    }

    /// Returns whether a process is in this cgroup or below it.
    pub(crate) fn holds(&self, pid: u32) -> bool {
        cgroup_of(pid).is_some_and(|group| group.starts_with(&self.0))
    }

    /// Returns the container's first process, if it runs: the one that is process 1 in the namespace below this program's.
    pub(crate) fn first_process(&self) -> Option<u32> {
        let mut groups = vec![self.payload()];
        while let Some(group) = groups.pop() {
            // One that ends meanwhile is not looked for.
            let processes = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            let first = processes.lines().filter_map(|pid| pid.parse().ok()).find(|pid| {
                is_first(&std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default())
            });
            if first.is_some() {
                return first;
            }
            let below = std::fs::read_dir(&group).into_iter().flatten().flatten();
            groups.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
        None
    }

    /// How many processes of the container were killed for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        std::fs::read_to_string(self.payload().join("memory.events"))
            .ok()
            .and_then(|text| {
                let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
                line.parse().ok()
            })
            .unwrap_or(0)
    }

    /// Ends every process of the container at once.
    pub(crate) async fn kill_payload(&self) -> Result<()> {
        cgroup::kill(&self.payload()).await
    }
}

/// Whether a process is the first of a namespace below the reader's, as its `/proc/PID/status` tells (proc_pid_status(5),
/// `NSpid`).
fn is_first(status: &str) -> bool {
    status.lines().any(|line| {
        line.strip_prefix("NSpid:")
            .is_some_and(|pids| matches!(pids.split_whitespace().collect::<Vec<_>>()[..], [_, "1"]))
    })
}

/// Returns the cgroup that a process is in.
pub(crate) fn cgroup_of(pid: u32) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(cgroup::mount().ok()?.join(own))
}

/// The unit's own group, of one that is in it or in a group of systemd's below it.
fn unit_part(group: &str) -> &str {
    ["/supervisor", "/.control"]
        .iter()
        .find_map(|sub| group.strip_suffix(sub))
        .unwrap_or(group)
}

/// What is written into which file of the cgroup.
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

/// Returns the disk that a folder's file system is on, as `io.max` names it.
fn disk_below(folder: &Path) -> Result<String> {
    let unsupported = |why: String| {
        Error::Unsupported(format!(
            "limits: the disk below {} can't be told: {why}",
            folder.display()
        ))
    };
    let stat = std::fs::metadata(folder).map_err(Error::io(format!("look at {}", folder.display())))?;
    let mut device = stat.dev();
    if rustix::fs::major(device) == 0 {
        // Such as btrfs: its device has no number of its own here, and its source is in the table of mounts.
        let table = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(Error::io("read /proc/self/mountinfo"))?;
        let source = source_of(
            &table,
            &format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device)),
        )
        .ok_or_else(|| unsupported("its file system is on no disk".into()))?;
        let stat = std::fs::metadata(&source).map_err(|e| unsupported(format!("{source}: {e}")))?;
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
    // Limits are for whole disks.
    let whole = own.parent().map(|disk| disk.join("dev")).unwrap_or_default();
    std::fs::read_to_string(&whole)
        .map(|text| text.trim().to_owned())
        .map_err(|e| unsupported(format!("{}: {e}", whole.display())))
}

fn source_of(table: &str, device: &str) -> Option<String> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let source = right.split(' ').nth(1)?;
        (left.split(' ').nth(2) == Some(device) && source.starts_with("/dev/")).then(|| source.to_owned())
    })
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).map_err(Error::io(format!("write {text:?} to {}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_kernels_words() {
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
    fn the_first_process_of_a_container_is_no_other_and_no_containers_within_it() {
        assert!(is_first("Name:\tsystemd\nNSpid:\t402\t1\nNSpgid:\t402\t1\n"));
        for other in [
            "NSpid:\t1\n",
            "NSpid:\t402\n",
            "NSpid:\t402\t7\n",
            "NSpid:\t402\t7\t1\n",
            "NSpid:\t402\t11\nNSpgid:\t402\t1\n",
            "",
        ] {
            assert!(!is_first(other), "{other:?}");
        }
    }

    #[test]
    fn the_units_own_group_is_found_from_below_it() {
        let unit = "machine.slice/container@web.service";
        for group in [
            unit,
            "machine.slice/container@web.service/supervisor",
            "machine.slice/container@web.service/.control",
        ] {
            assert_eq!(unit_part(group), unit);
        }
    }

    #[test]
    fn the_disk_of_a_file_system_without_a_number_is_found_in_the_table_of_mounts() {
        let table = "30 1 0:26 / / rw - btrfs /dev/vda2 rw\n31 1 0:27 / /run rw - tmpfs tmpfs rw\n";
        assert_eq!(source_of(table, "0:26").as_deref(), Some("/dev/vda2"));
        assert_eq!(source_of(table, "0:27"), None);
    }
}
