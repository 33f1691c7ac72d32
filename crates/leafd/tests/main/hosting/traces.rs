//! What containers and jobs leave on a host, looked for where they could have left it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use leaf_core::id::{ContainerName, JobId, LeafName};
use leaf_host::contract::{HostPaths, RunStatus};

use crate::support::TestLeaf;

/// Everything on the host that has to do with a container.
pub(crate) fn of_container(leaf: &LeafName, name: &ContainerName) -> Vec<String> {
    let paths = HostPaths::new(leaf);
    let name = name.as_str();
    let mut places = vec![
        paths.confs.join(format!("{name}.conf")),
        paths.roots.join(name),
        paths.gc_roots.join(name),
        paths.state.join(name),
        paths.run.join(name),
        PathBuf::from("/sys/class/net").join(format!("ve-{name}")),
        PathBuf::from("/run/systemd/nspawn/unix-export").join(name),
        PathBuf::from("/run/systemd/nspawn/propagate").join(name),
    ];
    for root in [
        "/sys/fs/cgroup",
        "/sys/fs/cgroup/unified",
        "/sys/fs/cgroup/systemd",
    ] {
        places.push(
            Path::new(root)
                .join("cim-leaf.slice")
                .join(leaf.as_str())
                .join(name),
        );
    }
    let mut found: Vec<String> = places
        .iter()
        .filter(|place| fs::symlink_metadata(place).is_ok())
        .map(|place| place.display().to_string())
        .collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounted = mounts.lines().filter(|line| line.contains(&format!("/{name} ")));
    found.extend(mounted.map(|line| format!("mount {line}")));
    let rules = rules(leaf);
    let elements = rules
        .lines()
        .filter(|line| line.contains(&format!("ve-{name}\"")));
    found.extend(elements.map(|line| format!("rule {line}")));
    for (pid, line) in command_lines() {
        if line.split(' ').any(|word| word == name) || line.contains(&format!("--machine={name} ")) {
            found.push(format!("process {pid} {line}"));
        }
    }
    found
}

/// The leaf's nftables, as `nft` shows them.
pub(crate) fn rules(leaf: &LeafName) -> String {
    let output = Command::new("nft")
        .args(["list", "table", "inet", &format!("leaf_{leaf}")])
        .output()
        .expect("nft runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What the supervisor of a container says, if it says something.
pub(crate) fn status(leaf: &LeafName, name: &ContainerName) -> Option<RunStatus> {
    let text = fs::read(HostPaths::new(leaf).status(name)).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Processes whose arguments have this text: the builders of a leaf have its mark.
pub(crate) fn processes_with(text: &str) -> Vec<String> {
    let with = command_lines()
        .into_iter()
        .filter(|(_, line)| line.contains(text));
    with.map(|(pid, line)| format!("{pid} {line}")).collect()
}

/// The process of a job's runner, if it runs.
pub(crate) fn runner(leaf: &TestLeaf, job: JobId) -> Option<u32> {
    let directory = leaf.state_dir.join("jobs").join(job.to_string());
    let directory = directory.display().to_string();
    let runs = |line: &str| line.split(' ').any(|word| word == "nix-job") && line.contains(&directory);
    let found = command_lines().into_iter().find(|(_, line)| runs(line));
    found.map(|(pid, _)| pid)
}

/// The GC root of a job's result.
pub(crate) fn gc_root(leaf: &TestLeaf, job: JobId) -> PathBuf {
    let roots = Path::new("/nix/var/nix/gcroots/cim-leaf").join(leaf.name.as_str());
    roots.join(job.to_string()).join("result")
}

fn command_lines() -> Vec<(u32, String)> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let lines = entries.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    lines.filter(|(_, line)| !line.is_empty()).collect()
}
