//! Containers that end, or won't: by themselves, for want of memory, by too many processes, and not at all.

use anyhow::ensure;

use super::{Leaf, WAITS};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    (
        "a_container_that_ignores_signals_is_killed_after_its_grace_time",
        stubborn,
    ),
    (
        "a_container_out_of_memory_is_killed_and_the_event_has_the_cause",
        eater,
    ),
    (
        "a_container_that_fills_the_disk_can_be_destroyed_and_the_leaf_continues",
        full,
    ),
    ("a_fork_bomb_in_a_container_is_stopped_by_its_limit", bomb),
    ("a_failed_container_is_restarted_with_a_growing_delay", restarts),
    ("a_container_that_requests_a_reboot_is_started_again", reboots),
    (
        "a_system_without_an_init_is_refused_and_one_that_ends_at_once_is_reported",
        unready,
    ),
];

fn create(leaf: &Leaf, main: &str, more: &str) -> anyhow::Result<serde_json::Value> {
    let toplevel = leaf.system("system", main)?;
    let spec = leaf.spec(
        "web.toml",
        &format!(
            "name = 'web'\nrun = 'running'\nsource = {{ type = 'toplevel', path = '{toplevel}' }}\n{more}\n"
        ),
    )?;
    leaf.ctl(&format!("container create -f {spec}"))
}

fn stubborn() -> Outcome {
    let leaf = Leaf::up()?;
    create(&leaf, "trap '' 37 15; while :; do sleep 3600 & wait $!; done", "")?;
    let stopped = leaf.ctl("--timeout 100s container stop web")?;
    ensure!(stopped["phase"] == "stopped", "{stopped}");
    leaf.ctl("container destroy web")?;
    leaf.nothing_left("web")?;
    Ok(())
}

fn eater() -> Outcome {
    let leaf = Leaf::up()?;
    // It begins at once: the limit is there before the first instruction.
    create(
        &leaf,
        "sleep 3; exec tail /dev/zero",
        "limits = { memory_bytes = '32 MiB' }",
    )?;
    let ended = leaf.until_phase("web", "stopped")?;
    ensure!(
        ended["error"].as_str().is_some_and(|e| e.contains("memory")),
        "{ended}"
    );
    let events = leaf.events("container.stopped")?;
    ensure!(
        events.iter().any(|e| e["data"]["cause"] == "out_of_memory"),
        "{events:?}"
    );
    // What ran it is whole: it can be started again at once.
    leaf.ctl("container start web")?;
    Ok(())
}

fn bomb() -> Outcome {
    let leaf = Leaf::up()?;
    create(
        &leaf,
        "f() { f & f & wait; }; (sleep 1; f) & trap 'exit 0' 37; while :; do wait; sleep 1; done",
        "limits = { tasks = 40, memory_bytes = '64 MiB' }",
    )?;
    leaf.until("the limit is met", || {
        let events = "/sys/fs/cgroup/machine.slice/container@web.service/payload/pids.events";
        Ok(leaf.host.run(&format!("grep -q 'max [1-9]' {events}"))?.status == 0)
    })?;
    // The leaf answers, and ends it.
    leaf.ctl("leaf show")?;
    leaf.ctl("--timeout 100s container destroy web")?;
    leaf.nothing_left("web")?;
    Ok(())
}

fn restarts() -> Outcome {
    let leaf = Leaf::up()?;
    create(
        &leaf,
        &format!(
            "n=$(cat /n 2>/dev/null || echo 0); echo $((n+1)) >/n; [ $n -ge 2 ] && {{ {WAITS}; }}; sleep 2; exit 1"
        ),
        "restart = { when = 'on_failure', delay_seconds = 1, max_delay_seconds = 5 }",
    )?;
    leaf.until("it was started three times", || {
        Ok(leaf
            .host
            .run("cat /var/lib/nixos-containers/web/n")?
            .stdout
            .trim()
            == "3")
    })?;
    leaf.until_phase("web", "running")?;
    let stops = leaf.events("container.stopped")?;
    ensure!(!stops.is_empty(), "its ends are recorded");
    leaf.ctl("container stop web")?;
    leaf.agrees()?;
    Ok(())
}

fn full() -> Outcome {
    let leaf = Leaf::up()?;
    let fills = "fallocate -l $(($(df -kP / | awk 'END { print $4 }') - 12288))k /big; echo >/full";
    create(&leaf, &format!("{fills}; {WAITS}"), "")?;
    leaf.until("the disk is full", || {
        Ok(leaf
            .host
            .run("test -e /var/lib/nixos-containers/web/full")?
            .status
            == 0)
    })?;
    let problem = leaf.refused("container set web labels.a=b")?;
    ensure!(
        problem["detail"]
            .as_str()
            .is_some_and(|d| d.contains("free some space")),
        "{problem}"
    );
    // It runs on, and the way out is open.
    ensure!(leaf.show("web")?["phase"] == "running", "it runs");
    leaf.ctl("container destroy web")?;
    leaf.nothing_left("web")?;
    leaf.running("next")?;
    leaf.agrees()?;
    Ok(())
}

fn reboots() -> Outcome {
    let leaf = Leaf::up()?;
    create(
        &leaf,
        &format!("[ -e /again ] && {{ {WAITS}; }}; echo >/again; sleep 2; reboot -f"),
        "",
    )?;
    leaf.until("it was started again", || {
        Ok(leaf
            .host
            .run("systemctl show -P NRestarts container@web")?
            .stdout
            .trim()
            == "1"
            && leaf.show("web")?["phase"] == "running")
    })?;
    Ok(())
}

fn unready() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.host.ok("mkdir -p /var/tmp/noinit /var/tmp/dirinit/init")?;
    for directory in ["noinit", "dirinit"] {
        let path = leaf.host.ok(&format!("nix-store --add /var/tmp/{directory}"))?;
        let problem = leaf.refused(&format!(
            "container create web --toplevel {} --start",
            path.trim()
        ))?;
        ensure!(
            problem["detail"].as_str().is_some_and(|d| d.contains("init")),
            "{problem}"
        );
        leaf.ctl("container destroy web")?;
        leaf.nothing_left("web")?;
    }
    let path = leaf.build("ends", "--argstr main 'echo over; exit 5' --arg ready false")?;
    let problem = leaf.refused(&format!("container create web --toplevel {path} --start"))?;
    ensure!(
        problem["detail"]
            .as_str()
            .is_some_and(|d| d.contains("code 5") || d.contains("before it was ready")),
        "{problem}"
    );
    leaf.ctl("container destroy web")?;
    leaf.nothing_left("web")?;
    Ok(())
}
