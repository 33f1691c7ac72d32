//! Containers as units of systemd, from create to destroy, and what may go wrong on the way.

use serde_json::{Value, json};

use super::{Leaf, WAITS, starting};
use crate::{Outcome, Trials, ensure, until};

pub(crate) const TRIALS: Trials = &[
    (
        "a_container_is_a_unit_and_a_machine_and_leaves_nothing",
        lifecycle,
    ),
    (
        "a_container_that_does_not_become_ready_is_reported_with_the_cause",
        unready,
    ),
    ("a_container_whose_nspawn_was_killed_starts_again", killed),
    (
        "a_container_that_an_operator_stops_before_it_handles_signals_is_asked_again",
        deaf_at_first,
    ),
    ("a_container_starts_while_the_bus_is_restarted", bus),
    ("a_failing_container_is_restarted_with_a_growing_delay", restarts),
];

fn lifecycle() -> Outcome {
    let leaf = Leaf::new()?;
    let system = leaf.system("waits", WAITS)?;
    leaf.create("web", &system, 1, json!({}))?;
    leaf.start("web")?;
    ensure(leaf.unit("web", "ActiveState")? == "active", "it runs")?;
    let machines = leaf
        .host
        .ok("machinectl list --no-legend; machinectl status web --no-pager")?;
    ensure(
        machines.contains("web") && machines.contains("container@web.service"),
        machines,
    )?;
    // By the contract of NixOS's containers.
    let conf = leaf.host.ok("cat /etc/nixos-containers/web.conf")?;
    ensure(conf.contains(&format!("SYSTEM_PATH={system}\n")), &*conf)?;
    for link in [
        "/nix/var/nix/profiles/per-container/web/system",
        "/nix/var/nix/gcroots/per-container/web/system",
    ] {
        ensure(leaf.host.ok(&format!("readlink {link}"))?.trim() == system, link)?;
    }
    let inside = leaf.host.ok(
        "p=$(machinectl show -P Leader web); cat /proc/$p/uid_map; ls /proc/$p/root/nix/var/nix /proc/$p/root/run",
    )?;
    ensure(
        !inside.contains("daemon-socket"),
        format!("no daemon's socket: {inside}"),
    )?;
    let first = inside.split_whitespace().nth(1).unwrap_or_default().to_owned();
    ensure(first != "0", format!("users of its own: {inside}"))?;
    leaf.fails(
        "DestroyContainer",
        &json!({"name": "web"}),
        "Failed",
        "it is running; stop it first",
    )?;
    // Again is the same as once.
    leaf.start("web")?;
    leaf.stop("web", 20)?;
    leaf.stop("web", 20)?;
    ensure(
        leaf.status("web")?["exit"] == json!({"by": "code", "code": 0}),
        "a clean end",
    )?;
    leaf.start("web")?;
    // Who else asks systemd gets the same.
    leaf.host.ok("systemctl stop container@web.service")?;
    ensure(leaf.unit("web", "ActiveState")? == "inactive", "it was stopped")?;
    leaf.destroy("web")?;
    leaf.destroy("web")?;
    leaf.nothing_is_left("web")
}

fn unready() -> Outcome {
    let leaf = Leaf::new()?;
    let exits = leaf.system("exits", "echo dying words; exit 3")?;
    let never = leaf.system("never", "while :; do $b sleep 1; done")?;
    let deaf = leaf.system(
        "deaf",
        r#"trap "" 37 15; exec /run/leaf/init ready -- $b sh -c 'trap "" 37 15; while :; do $b sleep 1; done'"#,
    )?;
    leaf.create("exits", &exits, 1, json!({}))?;
    leaf.fails(
        "StartContainer",
        &starting("exits", 90),
        "NotReady",
        "exit code 3",
    )?;
    leaf.fails(
        "StartContainer",
        &starting("exits", 90),
        "NotReady",
        "dying words",
    )?;
    leaf.create("never", &never, 2, json!({}))?;
    leaf.fails(
        "StartContainer",
        &starting("never", 10),
        "NotReady",
        "not ready within 10 s",
    )?;
    ensure(leaf.unit("never", "ActiveState")? == "inactive", "it was ended")?;
    leaf.create("deaf", &deaf, 3, json!({}))?;
    leaf.start("deaf")?;
    leaf.stop("deaf", 3)?;
    ensure(
        leaf.unit("deaf", "ActiveState")? == "inactive",
        "it was ended by force",
    )?;
    // A unit that somebody put before ours is never started.
    let other = "/etc/systemd/system/container@other.service";
    leaf.host.ok(&format!(
        "printf '[Service]\\nExecStart=/bin/sleep 1000\\n' >{other}"
    ))?;
    leaf.create("other", &exits, 4, json!({}))?;
    leaf.fails("StartContainer", &starting("other", 90), "Refused", other)?;
    for name in ["exits", "never", "deaf", "other"] {
        leaf.destroy(name)?;
    }
    leaf.host.ok(&format!("rm {other}; systemctl daemon-reload"))?;
    for name in ["exits", "never", "deaf", "other"] {
        leaf.nothing_is_left(name)?;
    }
    Ok(())
}

fn killed() -> Outcome {
    let leaf = Leaf::new()?;
    let system = leaf.system("waits", WAITS)?;
    leaf.create("web", &system, 1, json!({"binds": [{"source": "/srv"}]}))?;
    leaf.start("web")?;
    leaf.host
        .ok("pkill -KILL --parent $(systemctl show -P MainPID container@web.service) systemd-nspawn")?;
    until(
        &leaf.host,
        "systemctl show -P ActiveState container@web.service",
        |state| state.trim() == "failed",
    )?;
    ensure(
        leaf.status("web")?["exit"] == json!({"by": "signal", "signal": 9}),
        "its end is told",
    )?;
    // Whoever would have noted the end is killed; systemd sees to it that nothing runs on.
    leaf.start("web")?;
    leaf.host
        .ok("kill -KILL $(systemctl show -P MainPID container@web.service)")?;
    until(
        &leaf.host,
        "systemctl show -P ActiveState container@web.service",
        |state| state.trim() == "failed",
    )?;
    leaf.host
        .ok("[ ! -e /sys/fs/cgroup/machine.slice/container@web.service ]")?;
    ensure(leaf.status("web")?["exit"] == Value::Null, "nobody saw its end")?;
    leaf.start("web")?;
    leaf.stop("web", 20)?;
    leaf.destroy("web")?;
    leaf.nothing_is_left("web")
}

fn deaf_at_first() -> Outcome {
    let leaf = Leaf::new()?;
    let system = leaf.system("late", &format!("$b sleep 4; {WAITS}"))?;
    leaf.create("web", &system, 1, json!({}))?;
    // The unit must be there for a person to start it.
    leaf.start("web")?;
    leaf.stop("web", 20)?;
    leaf.host.ok(
        "systemctl start --no-block container@web; until machinectl show web >/dev/null 2>&1; do sleep 0.1; done; \
         timeout 60 systemctl stop container@web",
    )?;
    ensure(leaf.unit("web", "Result")? == "success", "it halted by itself")?;
    let exit = &leaf.status("web")?["exit"];
    ensure(*exit == json!({"by": "code", "code": 0}), format!("{exit}"))?;
    // Before there is anything that could halt.
    leaf.host
        .ok("systemctl start --no-block container@web; timeout 60 systemctl stop container@web")?;
    ensure(leaf.unit("web", "ActiveState")? == "inactive", "it does not run")?;
    leaf.destroy("web")?;
    leaf.nothing_is_left("web")
}

fn bus() -> Outcome {
    let leaf = Leaf::new()?;
    let system = leaf.system("waits", WAITS)?;
    leaf.create("web", &system, 1, json!({}))?;
    let restarts = leaf
        .host
        .start("for n in 1 2 3; do systemctl restart dbus.service; sleep 0.5; done")?;
    let started = leaf.start("web");
    restarts.wait()?;
    if let Err(error) = started {
        // systemd-nspawn asked machined while the bus went away, and gives up after 25 s: then it is told, and the next start works.
        let why = format!("{error:?}");
        ensure(why.contains("Failed to register machine"), why)?;
        leaf.start("web")?;
    }
    ensure(leaf.unit("web", "ActiveState")? == "active", "it runs")?;
    leaf.stop("web", 20)?;
    leaf.destroy("web")?;
    leaf.nothing_is_left("web")
}

fn restarts() -> Outcome {
    let leaf = Leaf::new()?;
    let exits = leaf.system("exits", "exit 3")?;
    let policy = json!({"restart": {"when": "on_failure", "delay_seconds": 1, "max_delay_seconds": 4}});
    leaf.create("bad", &exits, 1, policy)?;
    leaf.fails(
        "StartContainer",
        &starting("bad", 90),
        "NotReady",
        "will start it again",
    )?;
    until(
        &leaf.host,
        "systemctl show -P NRestarts container@bad.service",
        |number| number.trim().parse().is_ok_and(|number: u32| number >= 2),
    )?;
    let delay = leaf.unit("bad", "RestartUSecNext")?;
    ensure(delay == "4s", format!("the longest delay: {delay}"))?;
    leaf.stop("bad", 5)?;
    ensure(leaf.unit("bad", "ActiveState")? == "inactive", "no more of it")?;
    // A reboot inside is a restart, whatever the policy; an exit with the number that stands for it is none.
    let reboots = leaf.system(
        "reboots",
        &format!("[ -e /again ] || {{ : >/again; $b reboot -f; }}; {WAITS}"),
    )?;
    let pretends = leaf.system("pretends", "exit 133")?;
    leaf.create("bad", &pretends, 1, json!({}))?;
    leaf.fails(
        "StartContainer",
        &starting("bad", 90),
        "NotReady",
        "it ended before it was ready",
    )?;
    ensure(
        leaf.unit("bad", "ActiveState")? == "failed",
        "it is not started again",
    )?;
    leaf.create("bad", &reboots, 1, json!({}))?;
    let _ = leaf.ask("StartContainer", &starting("bad", 90))?;
    until(
        &leaf.host,
        "systemctl show -P ActiveState container@bad.service",
        |state| state.trim() == "active",
    )?;
    leaf.stop("bad", 20)?;
    leaf.destroy("bad")?;
    leaf.nothing_is_left("bad")
}
