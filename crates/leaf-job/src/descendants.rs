//! The processes below the runner.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use leaf_host::cgroup::{Cgroup, CgroupError};
use leaf_host::process;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};
use tokio::time::{Instant, sleep};

/// How long processes may take to end once they are killed.
const KILL_PATIENCE: Duration = Duration::from_secs(20);

/// Moves this process, a child of it and all processes below them into a cgroup.
pub(crate) fn enter_cgroup(cgroup: &Cgroup, child: Option<u32>) -> Result<(), CgroupError> {
    cgroup.attach_this_process()?;
    let mut moved = Vec::new();
    let mut others: Vec<u32> = child.into_iter().collect();
    loop {
        for pid in others {
            match cgroup.attach(pid) {
                // It has ended in the meantime.
                Err(CgroupError::Io { source, .. })
                    if source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                other => other?,
            }
            moved.push(pid);
        }
        others = descendants()
            .into_iter()
            .map(|pid| pid.as_raw_nonzero().get().unsigned_abs())
            .filter(|pid| !moved.contains(pid))
            .collect();
        if others.is_empty() {
            return Ok(());
        }
    }
}

/// Returns every process below this one, whatever its session, group or namespace (proc_pid_stat(5)).
fn descendants() -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for process in process::all() {
        let pid = process.as_raw_nonzero().get();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name in parentheses may contain any character.
        let Some((_, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        if let Some(parent) = rest.split(' ').nth(1).and_then(|text| text.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut todo = vec![getpid().as_raw_nonzero().get()];
    while let Some(pid) = todo.pop() {
        let below = children.remove(&pid).unwrap_or_default();
        todo.extend(&below);
        found.extend(below.into_iter().filter_map(Pid::from_raw));
    }
    found
}

/// Kills every process below this one and reaps it, within [`KILL_PATIENCE`]; this process must be a subreaper, and must have
/// waited for its own child. Returns whether none is left.
pub(crate) async fn kill_descendants() -> bool {
    let deadline = Instant::now() + KILL_PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => break,
                // A running descendant would have an ancestor among this process's children.
                Err(_) => return true,
            }
        }
        for pid in descendants() {
            let _ = kill_process(pid, Signal::KILL);
        }
        if Instant::now() >= deadline {
            return false;
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
