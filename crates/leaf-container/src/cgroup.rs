//! The control group of a container (version 2): `Documentation/admin-guide/cgroup-v2.rst` of the kernel.
//!
//! The container's processes are in `payload` below the group of its unit or supervisor; limits are set there, so
//! that is where they are counted.

use std::path::{Path, PathBuf};

use leaf_core::host_op::Runtime;
use leaf_core::id::ContainerName;

use crate::Containers;

/// Returns where cgroup version 2 is mounted, if it is.
pub(crate) fn mount() -> Option<PathBuf> {
    mount_in(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

/// See proc_pid_mountinfo(5).
fn mount_in(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let target = left.split(' ').nth(4)?;
        right.starts_with("cgroup2 ").then(|| target.into())
    })
}

impl Containers {
    /// Where the payload of a container is, below the mount, unless systemd says otherwise.
    pub(crate) fn payload(&self, mount: &Path, name: &ContainerName) -> PathBuf {
        match self.runtime {
            Runtime::Systemd => mount.join("machine.slice").join(Runtime::unit(name)),
            Runtime::Nspawn => mount
                .join("cim-leaf.slice")
                .join(self.leaf.as_str())
                .join(name.as_str()),
        }
        .join("payload")
    }
}

/// Whether there is any process in a group or below it.
pub(crate) fn is_populated(group: &Path) -> bool {
    std::fs::read_to_string(group.join("cgroup.events"))
        .is_ok_and(|text| keyed(&text, "populated") == Some(1))
}

/// How many processes of a group were killed for want of memory; nothing where that is not counted.
pub(crate) fn oom_kills(group: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(group.join("memory.events")).ok()?;
    keyed(&text, "oom_kill")
}

/// The first process of the container that runs in a group: the one whose own number, in a pid namespace right below
/// the host's, is 1.
pub(crate) fn leader(group: &Path) -> Option<u32> {
    let mut groups = vec![group.to_owned()];
    while let Some(group) = groups.pop() {
        let procs = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let found = procs
            .lines()
            .filter_map(|line| line.parse().ok())
            .find(|pid: &u32| {
                std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|text| is_leader(&text))
            });
        if found.is_some() {
            return found;
        }
        let below = std::fs::read_dir(&group).into_iter().flatten().flatten();
        groups.extend(
            below
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    None
}

/// See proc_pid_status(5), `NSpid`.
fn is_leader(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| {
        let mut numbers = numbers.split_ascii_whitespace();
        matches!(
            (numbers.next(), numbers.next(), numbers.next()),
            (Some(_), Some("1"), None)
        )
    })
}

/// The value of a key, in a file of one key and number a line.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(found, _)| *found == key)
        .and_then(|(_, value)| value.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_a_hybrid_and_in_a_unified_hierarchy() {
        let hybrid = "30 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      31 31 0:38 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_in(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let unified = "31 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount_in(unified), Some("/sys/fs/cgroup".into()));
        assert_eq!(mount_in("nonsense\n- cgroup2"), None);
    }

    #[test]
    fn the_first_process_of_a_container_is_number_one_one_level_down() {
        let status = |numbers: &str| format!("Name:\tinit\nNStgid:\t7\t7\nNSpid:\t{numbers}\nNSpgid:\t1\n");
        assert!(is_leader(&status("4711\t1")));
        assert!(!is_leader(&status("4711\t2")));
        assert!(!is_leader(&status("4711")));
        assert!(!is_leader(&status("1")));
        assert!(!is_leader(&status("4711\t20\t1")));
        assert!(!is_leader("Name:\tinit\n"));
    }

    #[test]
    fn a_key_is_not_taken_for_one_that_begins_alike() {
        let events = "low 0\nhigh 3\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(keyed(events, "oom_kill"), Some(1));
        assert_eq!(keyed(events, "oom"), Some(2));
        assert_eq!(keyed(events, "oom_"), None);
    }
}
