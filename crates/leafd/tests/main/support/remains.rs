//! What a leaf leaves on the host when it is killed, and how a test takes it away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use leaf_core::host_op::HostOp;
use leaf_core::id::{ContainerName, LeafName};
use leaf_helper::{Helper, Settings};
use leaf_host::contract::HostPaths;
use rustix::process::{Pid, Signal, kill_process};

use super::host::{helper, static_init};

/// Processes that work in the directory or name it in their arguments.
pub(crate) fn processes_of(directory: &Path) -> Vec<u32> {
    let named = directory.as_os_str().as_encoded_bytes();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let works = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
            let names = fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| line.windows(named.len()).any(|part| part == named));
            let ended = fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| {
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with('Z'))
            });
            ((works || names) && !ended).then_some(pid)
        })
        .collect()
}

/// A process's program.
pub(crate) fn name_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

/// Waits for a killed child.
pub(crate) fn wait_for(child: &mut tokio::process::Child) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
        pause();
    }
}

/// Ends and removes everything of a leaf that does not run any more.
pub(crate) fn clear(leaf: &LeafName, state_dir: &Path, pool: Option<&str>) {
    let jobs: Vec<String> = names_in(&state_dir.join("jobs"));
    end_processes(state_dir);
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
        for job in &jobs {
            end_cgroup(&Path::new(root).join("cim-leaf-nix.slice").join(job));
        }
    }
    if let Some(pool) = pool {
        clear_containers(leaf, pool);
    }
    let _ = fs::remove_dir_all(HostPaths::new(leaf).secrets);
    let _ = fs::remove_dir_all(Path::new("/nix/var/nix/gcroots/cim-leaf").join(leaf.as_str()));
}

/// Ends the processes of a directory.
pub(crate) fn end_processes(directory: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left = processes_of(directory);
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for pid in left {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        pause();
    }
}

fn end_cgroup(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while path.exists() && Instant::now() < deadline {
        let _ = fs::write(path.join("cgroup.kill"), "1");
        let _ = fs::remove_dir(path);
        pause();
    }
}

/// Stops and destroys the leaf's containers as the helper does it, and takes its rules and its address away.
fn clear_containers(leaf: &LeafName, pool: &str) {
    let paths = HostPaths::new(leaf);
    let mut names: Vec<String> = names_in(&paths.run);
    names.extend(names_in(&paths.state));
    names.sort();
    names.dedup();
    let init = static_init().unwrap_or_else(|| PathBuf::from("/leaf-init"));
    let settings = pool
        .parse()
        .ok()
        .and_then(|pool| Settings::find(helper(), init, pool).ok());
    if let Some(settings) = settings {
        let helper = Helper::new(leaf.clone(), paths.clone(), settings);
        let work = async {
            for name in names.into_iter().filter_map(|name| ContainerName::new(name).ok()) {
                let stop = HostOp::StopContainer {
                    name: name.clone(),
                    grace_seconds: 0,
                };
                let _ = helper.carry_out(&stop).await;
                let _ = helper.carry_out(&HostOp::DestroyContainer { name }).await;
            }
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(work));
    }
    let address = pool
        .split_once(".0.0/")
        .map(|(start, _)| format!("{start}.0.1/32"));
    for family in ["inet", "arp"] {
        quietly("nft", &["delete", "table", family, &format!("leaf_{leaf}")]);
    }
    quietly("ip", &["addr", "del", &address.unwrap_or_default(), "dev", "lo"]);
    let _ = fs::remove_dir_all(&paths.run);
    let _ = fs::remove_dir_all(&paths.state);
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn quietly(program: &str, arguments: &[&str]) {
    let _ = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
}

#[allow(clippy::disallowed_methods, reason = "a drop can't wait in another way")]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}
