//! Limits hold for a container's own processes, from their first instruction on, and change while it runs.

use serde_json::json;

use super::{Leaf, WAITS};
use crate::{Outcome, Trials, ensure};

pub(crate) const TRIALS: Trials = &[
    (
        "limits_apply_from_the_first_instruction_and_not_to_the_supervisor",
        first,
    ),
    ("limits_change_while_a_container_runs", live),
];

const PAYLOAD: &str = "/sys/fs/cgroup/machine.slice/container@hog.service/payload";

/// The limits in the kernel's words, one a line.
fn limits(leaf: &Leaf) -> anyhow::Result<Vec<String>> {
    let text = leaf.host.ok(&format!(
        "cd {PAYLOAD} && for f in memory.max memory.swap.max cpu.max pids.max io.max; do echo $(cat $f); done"
    ))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn first() -> Outcome {
    let leaf = Leaf::new()?;
    // Its init allocates and forks before anything else.
    let hog = leaf.system(
        "hog",
        &format!(
            "$b dd if=/dev/zero of=/dev/null bs=200M count=1; echo big $? >/result; \
             n=0; while $b sleep 1000 & [ $n -lt 60 ]; do n=$((n+1)); done 2>/forks; {WAITS}"
        ),
    )?;
    leaf.create("hog", &hog, 1, json!({"limits": {"memory_bytes": "64 MiB"}}))?;
    let output = leaf.host.run("true")?;
    ensure(output.status == 0, "the machine answers")?;
    leaf.start("hog")?;
    let result = leaf.host.ok("cat /var/lib/nixos-containers/hog/result")?;
    ensure(
        result.trim() == "big 137",
        format!("200 MiB were too much: {result}"),
    )?;
    let kills = leaf
        .host
        .ok(&format!("grep '^oom_kill ' {PAYLOAD}/memory.events"))?;
    ensure(kills.trim() == "oom_kill 1", format!("it was the limit: {kills}"))?;
    leaf.stop("hog", 20)?;
    ensure(
        leaf.status("hog")?["oom_kills"] == json!(1),
        "and its end tells so",
    )?;
    leaf.create("hog", &hog, 1, json!({"limits": {"tasks": 30}}))?;
    // The init itself can't go on without processes, or does with fewer: what counts is what the kernel saw.
    let _ = leaf.ask("StartContainer", &super::starting("hog", 30))?;
    let forks = leaf.host.ok("cat /var/lib/nixos-containers/hog/forks")?;
    ensure(
        forks.contains("fork"),
        format!("60 processes were too many: {forks}"),
    )?;
    leaf.stop("hog", 3)?;
    leaf.destroy("hog")?;
    leaf.nothing_is_left("hog")
}

fn live() -> Outcome {
    let leaf = Leaf::new()?;
    let waits = leaf.system("waits", WAITS)?;
    let all = json!({"limits": {"memory_bytes": "64 MiB", "tasks": 20, "cpu_percent": 50,
        "io_read_bytes_per_second": "2 MiB", "io_write_bytes_per_second": "1 MiB"}});
    leaf.create("hog", &waits, 1, all)?;
    leaf.start("hog")?;
    let before = leaf.unit("hog", "MainPID")?;
    let seen = limits(&leaf)?;
    ensure(
        seen[..4] == ["67108864", "0", "50000 100000", "20"] && seen[4].contains("rbps=2097152 wbps=1048576"),
        format!("{seen:?}"),
    )?;
    leaf.create("hog", &waits, 1, json!({"limits": {"memory_bytes": "128 MiB"}}))?;
    let seen = limits(&leaf)?;
    ensure(
        seen == ["134217728", "0", "max 100000", "max", ""],
        format!("{seen:?}"),
    )?;
    ensure(leaf.unit("hog", "MainPID")? == before, "it was not started anew")?;
    leaf.stop("hog", 20)?;
    leaf.destroy("hog")?;
    leaf.nothing_is_left("hog")
}
