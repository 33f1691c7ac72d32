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
        "events_of_containers_while_nats_is_down_are_published_when_it_is_back",
        nats_gone,
    ),
    ("flushed_rules_are_restored_while_containers_run", flushed),
    (
        "systemd_that_refuses_a_job_is_reported_and_tried_again",
        refused_job,
    ),
    ("a_restart_of_the_bus_has_no_lasting_effect", bus_restarted),
    (
        "a_hundred_concurrent_copies_of_a_create_make_one_container",
        crowd,
    ),
    (
        "a_killed_nspawn_leaves_nothing_that_prevents_the_next_start",
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

fn nats_gone() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.running("web")?;
    let ends = leaf.system("ends", "while [ ! -e /go ]; do sleep 1; done; exit 3")?;
    leaf.ctl(&format!("container create short --toplevel {ends} --start"))?;
    leaf.host
        .ok("cd /usr/local/bin && mv nats-server away && pkill -KILL -x nats-server")?;
    leaf.host
        .ok("systemctl stop container@web && touch /var/lib/nixos-containers/short/go")?;
    // As long as a person might take to notice.
    leaf.host.run("sleep 75")?;
    leaf.host
        .ok("systemctl is-active leafd && ! systemctl is-active container@short")?;
    leaf.host.ok("cd /usr/local/bin && mv away nats-server")?;
    leaf.answers()?;
    leaf.until_phase("web", "stopped")?;
    leaf.until_phase("short", "stopped")?;
    let stops = leaf.events("container.stopped")?;
    for name in ["web", "short"] {
        let told = stops.iter().filter(|event| event["subject"] == name).count();
        ensure!(told == 1, "the end of {name} is told {told} times: {stops:?}");
    }
    leaf.agrees()?;
    leaf.ctl("container start web")?;
    Ok(())
}

fn flushed() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.running("web")?;
    leaf.host
        .ok("printf '\\n[containers]\\nnetwork_check_seconds = 5\\n' >>/etc/cim-leaf/leafd.toml && systemctl restart leafd")?;
    leaf.answers()?;
    leaf.host
        .ok("nft list ruleset | grep -q ve-web && nft flush ruleset")?;
    leaf.until("the rules are there again", || {
        Ok(leaf.host.run("nft list ruleset | grep -q ve-web")?.status == 0)
    })?;
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
    let main = "$(systemctl show -P MainPID container@web)";
    let nspawn = format!("pkill -KILL --parent {main} systemd-nspawn");
    for kill in [nspawn, format!("kill -KILL {main}")] {
        leaf.host.ok(&kill)?;
        leaf.until_phase("web", "stopped")?;
        let why = &leaf.show("web")?["error"];
        ensure!(*why == "it ended by itself: signal 9", "{why}");
        leaf.ctl("container start web")?;
    }
    leaf.ctl("container destroy web")?;
    leaf.nothing_left("web")?;
    Ok(())
}
