//! The cgroup of a job, and the end of every process below the runner.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};
use tokio::time::{Instant, sleep};

/// A cgroup v2 folder of one job.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup(PathBuf);

impl Cgroup {
    pub(crate) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        if self.0.join("cgroup.procs").exists() {
            return Ok(());
        }
        fs::remove_dir(&self.0)?;
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this is not a cgroup v2 file system",
        ))
    }

    /// Moves a process in. Its children made before stay where they are.
    fn add(&self, pid: Pid) -> io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.as_raw_nonzero().to_string())
    }

    /// Moves a child and all below it in, and this process.
    pub(crate) fn adopt(&self, child: Option<Pid>) -> io::Result<()> {
        self.add(getpid())?;
        let mut moved = Vec::new();
        let mut strangers: Vec<Pid> = child.into_iter().collect();
        loop {
            for pid in strangers {
                match self.add(pid) {
                    // It has ended meanwhile.
                    Err(e) if e.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                    other => other?,
                }
                moved.push(pid);
            }
            strangers = descendants();
            strangers.retain(|pid| !moved.contains(pid));
            if strangers.is_empty() {
                return Ok(());
            }
        }
    }

    /// Kills all that is in it, and removes it when it is empty. One that is not there is fine.
    pub(crate) async fn end(&self, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        let mut pause = Duration::from_millis(1);
        loop {
            match fs::remove_dir(&self.0) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) if Instant::now() >= deadline => return Err(e),
                Err(_) => self.kill(),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Kills all that is in it, also a process that forks meanwhile (Linux 5.14; before, one after the other).
    pub(crate) fn kill(&self) {
        if fs::write(self.0.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        for pid in pids(&self.0.join("cgroup.procs")) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn pids(file: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.split_ascii_whitespace()
        .filter_map(|pid| Pid::from_raw(pid.parse().ok()?))
        .collect()
}

/// Returns every process below this one, whatever its session, group or namespace (proc_pid_stat(5)).
fn descendants() -> Vec<Pid> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name in parentheses may hold anything.
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

/// Kills every process below this one and reaps it; this process must be a subreaper. Returns whether none is left.
/// To be called when the own child was waited for.
pub(crate) async fn kill_descendants(patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    loop {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                Ok(None) => break,
                // A living descendant would have an ancestor among our children.
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
