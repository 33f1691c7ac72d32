//! A container's own cgroup (version 2): `cim-leaf.slice/LEAF/NAME`, with `helper` for this program below it, and
//! `supervisor` and `payload`, which systemd-nspawn makes for itself and for the container. Limits belong on the payload, and killing it leaves the supervisor to tell of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use leaf_core::id::{ContainerName, LeafName};

use crate::error::{Error, Result};

/// A container's cgroup.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    /// Where cgroup version 2 is mounted.
    mount: PathBuf,
    /// Where systemd's hierarchy of version 1 is mounted, if it is: systemd-nspawn makes the same groups there.
    legacy: Option<PathBuf>,
    /// The group's path below either.
    relative: PathBuf,
}

impl Cgroup {
    /// Returns the cgroup of a container, which need not be there.
    pub(crate) fn of(leaf: &LeafName, name: &ContainerName) -> Result<Self> {
        let table = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(Error::io("read /proc/self/mountinfo"))?;
        let (mount, legacy) = mounts(&table);
        Ok(Self {
            mount: mount.ok_or_else(no_cgroups)?,
            legacy,
            relative: Path::new("cim-leaf.slice")
                .join(leaf.as_str())
                .join(name.as_str()),
        })
    }

    fn path(&self) -> PathBuf {
        self.mount.join(&self.relative)
    }

    /// Makes the cgroup and moves this process into it.
    pub(crate) fn enter(&self) -> Result<()> {
        let path = self.path();
        let mut tries = 0;
        loop {
            match std::fs::create_dir_all(&path) {
                // The last container but this one just took the leaf's group with it.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && tries < 100 => tries += 1,
                other => {
                    other.map_err(Error::io(format!("make the cgroup {}", path.display())))?;
                    return join(&path);
                }
            }
        }
    }

    /// Moves this process into the group's `helper`, so that the group itself holds no process.
    pub(crate) fn step_aside(&self) -> Result<()> {
        let path = self.path().join("helper");
        std::fs::create_dir_all(&path).map_err(Error::io(format!("make the cgroup {}", path.display())))?;
        join(&path)
    }

    /// Moves this process out, into the root group, so that the cgroup can be removed.
    pub(crate) fn leave(&self) -> Result<()> {
        join(&self.mount)
    }

    /// Returns whether a process is in the group or below it.
    pub(crate) fn holds(&self, pid: u32) -> bool {
        let own = Path::new("/").join(&self.relative);
        std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| {
            text.lines()
                .filter_map(|line| line.strip_prefix("0::"))
                .any(|group| Path::new(group).starts_with(&own))
        })
    }

    /// Ends every process of the container, however many it makes, and returns when none is left.
    pub(crate) async fn kill_payload(&self) -> Result<()> {
        kill(&self.path().join("payload")).await
    }

    /// Ends every process in the group, the supervisor included, and returns when none is left.
    pub(crate) async fn kill_all(&self) -> Result<()> {
        kill(&self.path()).await
    }

    /// Removes the group and those below it; no process may be in them.
    pub(crate) fn remove(&self) -> Result<()> {
        for root in std::iter::once(&self.mount).chain(&self.legacy) {
            let path = root.join(&self.relative);
            remove(&path).map_err(Error::io(format!("remove the cgroup {}", path.display())))?;
            // The leaf's and the slice's groups go with the last container; another one in them keeps them.
            for parent in path.ancestors().skip(1).take(2) {
                let _ = std::fs::remove_dir(parent);
            }
        }
        Ok(())
    }
}

/// Returns where cgroup version 2 and systemd's hierarchy of version 1 are mounted; see proc_pid_mountinfo(5).
fn mounts(table: &str) -> (Option<PathBuf>, Option<PathBuf>) {
    let mut found = (None, None);
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(target) = left.split(' ').nth(4) else {
            continue;
        };
        let mut right = right.split(' ');
        match (right.next(), right.next_back()) {
            (Some("cgroup2"), _) if found.0.is_none() => found.0 = Some(target.into()),
            (Some("cgroup"), Some(options)) if options.split(',').any(|o| o == "name=systemd") => {
                found.1 = Some(target.into());
            }
            _ => {}
        }
    }
    found
}

/// Returns where cgroup version 2 is mounted.
pub(crate) fn mount() -> Result<PathBuf> {
    let table =
        std::fs::read_to_string("/proc/self/mountinfo").map_err(Error::io("read /proc/self/mountinfo"))?;
    mounts(&table).0.ok_or_else(no_cgroups)
}

fn no_cgroups() -> Error {
    Error::Unsupported("cgroup version 2 is not mounted on this host; mount it on /sys/fs/cgroup".into())
}

/// Moves this process into a group.
pub(crate) fn join(group: &Path) -> Result<()> {
    std::fs::write(group.join("cgroup.procs"), "0")
        .map_err(Error::io(format!("move into the cgroup {}", group.display())))
}

/// Ends every process in a group and below it, and returns when none is left.
pub(crate) async fn kill(group: &Path) -> Result<()> {
    match std::fs::write(group.join("cgroup.kill"), "1") {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::io(format!("end the processes of {}", group.display())))?,
    }
    for _ in 0..1000 {
        match std::fs::read_to_string(group.join("cgroup.events")) {
            Ok(events) if events.lines().any(|line| line == "populated 0") => return Ok(()),
            Err(_) => return Ok(()),
            Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    Err(Error::Failed(format!(
        "processes of {} are still there 5 s after they were killed",
        group.display()
    )))
}

fn remove(group: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(group) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match std::fs::remove_dir(group) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mounts_are_found_in_a_hybrid_and_in_a_unified_hierarchy() {
        let hybrid = "30 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
                      31 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            mounts(hybrid),
            (
                Some("/sys/fs/cgroup/unified".into()),
                Some("/sys/fs/cgroup/systemd".into())
            )
        );
        let unified = "31 31 0:38 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mounts(unified), (Some("/sys/fs/cgroup".into()), None));
        assert_eq!(mounts("nonsense\n"), (None, None));
    }
}
