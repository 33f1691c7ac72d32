//! Parts that die or refuse: the helper, leafd, systemd, D-Bus, NATS.

use anyhow::ensure;

use super::{Leaf, WAITS};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    (
        "no_container_notices_that_leafd_is_killed_or_restarted",
        leafd_killed,
    ),
    (
        "the_helper_killed_in_the_middle_of_an_operation_is_made_up_for",
        helper_killed,
    ),
    (
        "systemd_that_refuses_a_job_is_reported_and_tried_again",
        refused_job,
    ),
    ("the_bus_restarted_is_nothing_that_stays", bus_restarted),
    ("the_same_create_sent_a_hundred_times_at_once_makes_one", crowd),
    (
        "nspawn_that_was_killed_leaves_nothing_that_keeps_the_next_start",
        nspawn_killed,
    ),
];

fn leafd_killed() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.running("web")?;
    let before = leaf.host.ok("machinectl show web --property=Leader --value")?;
    for end in ["systemctl restart leafd", "systemctl kill --signal=KILL leafd"] {
        leaf.host.ok(end)?;
        leaf.answers()?;
        let shown = leaf.until_phase("web", "running")?;
        ensure!(shown["phase"] == "running", "{shown}");
        ensure!(
            leaf.host.ok("machinectl show web --property=Leader --value")? == before,
            "it was restarted"
        );
    }
    leaf.host.ok("systemctl stop leafd && systemctl is-active container@web && nft list ruleset | grep -q ve-web && systemctl start leafd")?;
    leaf.answers()?;
    leaf.agrees()?;
    Ok(())
}

fn helper_killed() -> Outcome {
    let leaf = Leaf::up()?;
    let toplevel = leaf.system("waits", WAITS)?;
    let kill = "for i in $(seq 40); do systemctl kill --signal=KILL leaf-helper 2>/dev/null && break; sleep 0.05; done";
    for (round, command) in [
        format!("container create web --toplevel {toplevel} --start"),
        "container stop web".to_owned(),
        "container start web".to_owned(),
        "container destroy web".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let running = leaf.host.start(&format!(
            "leafctl --json --context /var/lib/cim-leaf/context.json {command}"
        ))?;
        leaf.host.run(&format!("sleep 0.{}; {kill}", 1 + round))?;
        let _ = running.wait()?;
        // Whatever came of it: the same again leads there.
        let again = leaf.run(command)?;
        let fine = again.status == 0
            || again.stderr.contains("exists since")
            || again.stderr.contains("there is no container");
        ensure!(fine, "{command}: {again:?}");
    }
    let _ = leaf.run("container destroy web")?;
    leaf.nothing_left("web")?;
    leaf.agrees()?;
    Ok(())
}

fn refused_job() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.running("web")?;
    leaf.ctl("container stop web")?;
    leaf.host
        .ok("systemctl mask --runtime machine.slice && systemctl stop machine.slice; true")?;
    let problem = leaf.run("container start web")?;
    leaf.host.ok("systemctl unmask --runtime machine.slice")?;
    ensure!(problem.status != 0, "{problem:?}");
    leaf.ctl("container start web")?;
    leaf.agrees()?;
    Ok(())
}

fn bus_restarted() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.running("web")?;
    leaf.host.run("systemctl restart dbus.service dbus.socket")?;
    leaf.ctl("container stop web")?;
    leaf.ctl("container start web")?;
    leaf.host.ok("systemctl stop container@web")?;
    leaf.until_phase("web", "stopped")?;
    Ok(())
}

fn crowd() -> Outcome {
    let leaf = Leaf::up()?;
    let toplevel = leaf.system("waits", WAITS)?;
    // A hundred programs take their time on an emulated machine.
    let made = leaf.host.run_within(
        &format!(
            "for i in $(seq 100); do (leafctl --json --timeout 500s --context /var/lib/cim-leaf/context.json \
             container create web --toplevel {toplevel} >/dev/null 2>&1 && echo made) & done; wait"
        ),
        std::time::Duration::from_secs(600),
    )?;
    ensure!(made.stdout.lines().count() == 1, "{made:?}");
    leaf.agrees()?;
    Ok(())
}

fn nspawn_killed() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.running("web")?;
    leaf.host
        .ok("kill -KILL $(systemctl show -P MainPID container@web)")?;
    leaf.until_phase("web", "stopped")?;
    leaf.ctl("container start web")?;
    leaf.ctl("container destroy web")?;
    leaf.nothing_left("web")?;
    Ok(())
}
