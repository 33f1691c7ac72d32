//! Control groups, version 2: `Documentation/admin-guide/cgroup-v2.rst` of the kernel, and cgroups(7).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::mounts::{self, Mount, MountTableError};

/// An error of an operation on a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Cgroup version 2 is not mounted.
    #[error("cgroup version 2 is not mounted on this host; mount it on /sys/fs/cgroup")]
    NotMounted,
    /// The mount table can't be read.
    #[error("can't find the mount point of cgroup version 2")]
    MountTable(#[from] MountTableError),
    /// No hierarchy has a controller.
    #[error(
        "this host has no cgroup controller {name}: the kernel lacks it, or its hierarchy is not mounted"
    )]
    NoController {
        /// Its name.
        name: &'static str,
    },
    /// The directory is not in a cgroup file system.
    #[error("{} is not a cgroup of version 2", path.display())]
    NotACgroup {
        /// The directory.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("can't {what} the cgroup {}", path.display())]
    Io {
        /// The attempted action: `remove`.
        what: &'static str,
        /// The cgroup, or its file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Killed processes still exist.
    #[error("processes of the cgroup {} still exist {} s after they were killed", path.display(), after.as_secs())]
    StillPopulated {
        /// The cgroup.
        path: PathBuf,
        /// How long the caller waited.
        after: Duration,
    },
}

/// Returns the mount point of cgroup version 2.
///
/// # Errors
/// [`CgroupError::NotMounted`] if it is not mounted; [`CgroupError::MountTable`] if the mount table can't be read.
pub fn mount() -> Result<PathBuf, CgroupError> {
    mount_in(&mounts::table()?).ok_or(CgroupError::NotMounted)
}

/// Returns the mount point of systemd's hierarchy of cgroup version 1, if it is mounted: systemd-nspawn creates its
/// groups there as well.
///
/// # Errors
/// [`CgroupError::MountTable`] if the mount table can't be read.
pub fn legacy_mount() -> Result<Option<PathBuf>, CgroupError> {
    Ok(legacy_mount_in(&mounts::table()?))
}

fn mount_in(table: &[Mount]) -> Option<PathBuf> {
    let mount = table.iter().find(|mount| mount.fs_type == "cgroup2")?;
    Some(mount.target.clone())
}

fn legacy_mount_in(table: &[Mount]) -> Option<PathBuf> {
    let is_systemds =
        |mount: &&Mount| mount.fs_type == "cgroup" && mount.options.iter().any(|o| o == "name=systemd");
    table.iter().find(is_systemds).map(|mount| mount.target.clone())
}

/// A cgroup of version 2, which need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Returns the cgroup in this directory.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Returns the cgroup of a process, if the process exists.
    ///
    /// # Errors
    /// [`CgroupError`] if cgroup version 2 is not mounted.
    pub fn of_process(pid: u32) -> Result<Option<Self>, CgroupError> {
        let mount = mount()?;
        Ok(path_of(&pid.to_string()).map(|path| Self(mount.join(path))))
    }

    /// Returns the cgroup of this process.
    ///
    /// # Errors
    /// [`CgroupError`] if cgroup version 2 is not mounted.
    pub fn of_this_process() -> Result<Self, CgroupError> {
        let mount = mount()?;
        path_of("self")
            .map(|path| Self(mount.join(path)))
            .ok_or(CgroupError::NotMounted)
    }

    /// Returns the cgroup's directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the child cgroup with this name.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    /// Returns whether it exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.0.is_dir()
    }

    /// Creates the cgroup and its missing parents. Idempotent.
    ///
    /// # Errors
    /// [`CgroupError`] if the kernel refuses, or the directory is not in a cgroup file system.
    pub fn create(&self) -> Result<(), CgroupError> {
        std::fs::create_dir_all(&self.0).map_err(self.failed("create"))?;
        if self.0.join("cgroup.procs").exists() {
            return Ok(());
        }
        // The directory was just created outside a cgroup file system.
        let _ = std::fs::remove_dir(&self.0);
        Err(CgroupError::NotACgroup { path: self.0.clone() })
    }

    /// Moves a process into the cgroup. Its children are not moved.
    ///
    /// # Errors
    /// [`CgroupError::Io`]; its source is `ESRCH` if the process does not exist.
    pub fn attach(&self, pid: u32) -> Result<(), CgroupError> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string())
            .map_err(self.failed("move a process into"))
    }

    /// Moves this process into the cgroup.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn attach_this_process(&self) -> Result<(), CgroupError> {
        // The kernel takes 0 for the writing process.
        self.attach(0)
    }

    /// Returns whether the cgroup or its descendants contain a process; false if it doesn't exist.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn is_populated(&self) -> Result<bool, CgroupError> {
        let path = self.0.join("cgroup.events");
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(keyed(&text, "populated") == Some(1)),
            Err(e) if is_gone(&e) => Ok(false),
            Err(source) => Err(CgroupError::Io {
                what: "read the events of",
                path,
                source,
            }),
        }
    }

    /// Returns whether a process is in the cgroup or its descendants.
    #[must_use]
    pub fn contains(&self, pid: u32) -> bool {
        matches!(Self::of_process(pid), Ok(Some(group)) if group.0.starts_with(&self.0))
    }

    /// Returns the ids of the processes in the cgroup, without its descendants; none if it doesn't exist.
    #[must_use]
    pub fn processes(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Returns the leader of the container in the cgroup or its descendants: process 1 of a PID namespace directly
    /// below this process's.
    #[must_use]
    pub fn first_process(&self) -> Option<u32> {
        let mut groups = vec![self.clone()];
        while let Some(group) = groups.pop() {
            // A process may end in the meantime.
            let is_first = |pid: &u32| {
                std::fs::read_to_string(format!("/proc/{pid}/status"))
                    .is_ok_and(|status| is_first_of_a_namespace(&status))
            };
            if let Some(first) = group.processes().into_iter().find(is_first) {
                return Some(first);
            }
            groups.extend(group.children());
        }
        None
    }

    /// Returns the child cgroups.
    fn children(&self) -> Vec<Self> {
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| Self(entry.path()))
            .collect()
    }

    /// Returns the value of a key in a flat keyed file, such as `oom_kill` in `memory.events`; `None` if it is not
    /// counted.
    #[must_use]
    pub fn counter(&self, file: &str, key: &str) -> Option<u64> {
        keyed(&std::fs::read_to_string(self.0.join(file)).ok()?, key)
    }

    /// Returns the number of its processes killed for lack of memory; `None` if it is not counted.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        self.counter("memory.events", "oom_kill")
    }

    /// Sends SIGKILL to every process in the cgroup and its descendants, including newly forked ones. Idempotent; does
    /// nothing if it doesn't exist.
    ///
    /// # Errors
    /// [`CgroupError::Io`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        match std::fs::write(self.0.join("cgroup.kill"), "1") {
            Err(e) if is_gone(&e) && !self.exists() => Ok(()),
            // The file exists since Linux 5.14.
            Err(e) if is_gone(&e) => {
                self.kill_one_by_one();
                Ok(())
            }
            other => other.map_err(self.failed("kill the processes of")),
        }
    }

    fn kill_one_by_one(&self) {
        for pid in self.processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // It may have ended in the meantime.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        for child in self.children() {
            child.kill_one_by_one();
        }
    }

    /// Returns whether the cgroup and its descendants are frozen; false if it doesn't exist.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.counter("cgroup.events", "frozen") == Some(1)
    }

    /// Freezes or thaws every process in the cgroup and its descendants, and returns when that is done. Idempotent.
    ///
    /// # Errors
    /// [`CgroupError`] if the kernel refuses, or it is not done after `patience`.
    pub async fn set_frozen(&self, frozen: bool, patience: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + patience;
        let file = self.0.join("cgroup.freeze");
        std::fs::write(file, if frozen { "1" } else { "0" }).map_err(self.failed("freeze or thaw"))?;
        while self.is_frozen() != frozen {
            if Instant::now() >= deadline {
                return Err(self.failed("freeze or thaw")(io::ErrorKind::TimedOut.into()));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Kills every process in the cgroup and its descendants, and returns when none is left. Idempotent.
    ///
    /// # Errors
    /// [`CgroupError`] if the kernel refuses, or processes still exist after `patience`.
    pub async fn kill_and_wait(&self, patience: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + patience;
        self.kill()?;
        let mut pause = Duration::from_millis(1);
        while self.is_populated()? {
            if Instant::now() >= deadline {
                return Err(CgroupError::StillPopulated {
                    path: self.0.clone(),
                    after: patience,
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(10));
            self.kill()?;
        }
        Ok(())
    }

    /// Removes the cgroup and its descendants, which must be empty. Idempotent.
    ///
    /// # Errors
    /// [`CgroupError::Io`], also if it contains a process.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for child in self.children() {
            child.remove()?;
        }
        match std::fs::remove_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(self.failed("remove")),
        }
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> CgroupError {
        let path = self.0.clone();
        move |source| CgroupError::Io { what, path, source }
    }
}

/// Returns whether an error means that the cgroup was removed before or while its file was read.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

/// Returns the path of a process's cgroup below the mount.
fn path_of(process: &str) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(path.into())
}

/// Returns the value of a key in a flat keyed text: one key and number per line.
#[must_use]
pub fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(found, _)| *found == key)
        .and_then(|(_, value)| value.parse().ok())
}

/// Returns whether a process is process 1 of a PID namespace directly below the reader's, given its `/proc/PID/status`:
/// see proc_pid_status(5), `NSpid`.
fn is_first_of_a_namespace(status: &str) -> bool {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| {
        let mut numbers = numbers.split_ascii_whitespace();
        matches!(
            (numbers.next(), numbers.next(), numbers.next()),
            (Some(_), Some("1"), None)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mounts_are_found_in_a_hybrid_and_in_a_unified_hierarchy() {
        let hybrid = mounts::parse(
            "30 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
             31 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(mount_in(&hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(legacy_mount_in(&hybrid), Some("/sys/fs/cgroup/systemd".into()));
        let unified =
            mounts::parse("31 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(mount_in(&unified), Some("/sys/fs/cgroup".into()));
        assert_eq!(legacy_mount_in(&unified), None);
        assert_eq!(mount_in(&mounts::parse("nonsense\n- cgroup2\n")), None);
    }

    #[test]
    fn the_leader_is_found_and_not_that_of_a_nested_container() {
        let status = |numbers: &str| format!("Name:\tinit\nNStgid:\t7\t7\nNSpid:\t{numbers}\nNSpgid:\t1\n");
        assert!(is_first_of_a_namespace(&status("4711\t1")));
        for other in ["4711\t2", "4711\t11", "4711", "1", "4711\t20\t1", "4711\t7\t1"] {
            assert!(!is_first_of_a_namespace(&status(other)), "{other:?}");
        }
        assert!(!is_first_of_a_namespace("Name:\tinit\n"));
    }

    #[test]
    fn a_key_does_not_match_one_with_the_same_beginning() {
        let events = "low 0\nhigh 3\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(keyed(events, "oom_kill"), Some(1));
        assert_eq!(keyed(events, "oom"), Some(2));
        assert_eq!(keyed(events, "oom_"), None);
    }

    #[test]
    fn a_directory_outside_is_refused_and_not_left_behind() {
        let place = tempfile::tempdir().expect("a directory");
        let group = Cgroup::at(place.path().join("group"));
        assert!(matches!(group.create(), Err(CgroupError::NotACgroup { .. })));
        assert!(!group.exists());
        assert!(!group.is_populated().expect("a missing cgroup is empty"));
        group.kill().expect("nothing to kill");
        group.remove().expect("nothing to remove");
        assert_eq!(group.first_process(), None);
        assert_eq!(group.oom_kills(), None);
    }
}
