//! A host that boots again, or whose power is cut: everything comes back, and no event is lost or doubled.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use testhost::{Host, LIVES};

use super::sample::Sample;
use super::{Leaf, WAITS};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    (
        "a_reboot_restores_all_containers_and_one_that_failed_at_boot_is_tried_once_more",
        reboot,
    ),
    ("a_power_cut_during_create_update_and_destroy", power_cut),
    ("a_reboot_during_create_update_and_destroy", reboot_now),
];

/// How many power cuts each; `cargo xtask soak` sets more.
const CUTS_VARIABLE: &str = "CIM_LEAF_CUTS";

fn reboot() -> Outcome {
    let mut leaf = Leaf::up()?;
    let toplevel = leaf.system("waits", WAITS)?;
    for (name, more) in [("early", "autostart = 'with_host'"), ("late", ""), ("still", "")] {
        let run = if name == "still" { "stopped" } else { "running" };
        let spec = leaf.spec(
            &format!("{name}.toml"),
            &format!(
                "name = '{name}'\nrun = '{run}'\nsource = {{ type = 'toplevel', path = '{toplevel}' }}\n\
                 limits = {{ tasks = 32 }}\n{more}\n"
            ),
        )?;
        leaf.ctl(&format!("container create -f {spec}"))?;
    }
    // It fails on its first start after the file has gone.
    let once = leaf.system(
        "once",
        &format!("[ -e /once/ok ] || {{ : >/once/ok; exit 7; }}; {WAITS}"),
    )?;
    for name in ["once", "seen"] {
        leaf.host
            .ok(&format!("mkdir -p /srv/{name} && touch /srv/{name}/ok"))?;
        let spec = leaf.spec(
            &format!("{name}.toml"),
            &format!(
                "name = '{name}'\nrun = 'running'\nsource = {{ type = 'toplevel', path = '{once}' }}\n\
                 autostart = 'with_host'\nbinds = [{{ source = '/srv/{name}', target = '/once', writable = true }}]\n"
            ),
        )?;
        leaf.ctl(&format!("container create -f {spec}"))?;
    }
    // The leaf sees this one end before the host does, as it may at any shutdown.
    leaf.host.ok("systemctl stop container@seen")?;
    leaf.until_phase("seen", "stopped")?;
    leaf.host.ok("rm /srv/once/ok /srv/seen/ok && sync")?;

    leaf.host.reboot()?;
    leaf.answers()?;
    for name in ["early", "late", "once", "seen"] {
        leaf.until_phase(name, "running")?;
    }
    let still = leaf.show("still")?;
    ensure!(still["phase"] == "stopped", "{still}");
    leaf.host
        .ok("[ $(cat /sys/fs/cgroup/machine.slice/container@early.service/payload/pids.max) = 32 ]")?;
    for name in ["once", "seen"] {
        leaf.host.ok(&format!("test -e /srv/{name}/ok"))?;
    }
    let events = leaf.events("*")?;
    let of_once = || events.iter().filter(|event| event["subject"] == "once");
    ensure!(
        of_once().any(has_failed) || of_once().any(has_ended_well),
        "a container that ran until the end of the host failed at boot, which is told: {events:?}"
    );
    leaf.agrees()?;
    Ok(())
}

/// Returns whether an event says that the container failed: as it ran, or as the leaf waited for it to be ready.
fn has_failed(event: &Value) -> bool {
    event["data"]["exit"] == json!({ "by": "code", "code": 7 })
        || event["type"] == "cim.leaf.container.failed.v1"
}

/// Returns whether an event says that the leaf saw the container end, as it may while the host is shut down.
fn has_ended_well(event: &Value) -> bool {
    event["data"]["exit"] == json!({ "by": "code", "code": 0 })
}

fn power_cut() -> Outcome {
    in_the_middle("power cuts", 0, |host| {
        host.cut_power();
        host.boot()
    })
}

fn reboot_now() -> Outcome {
    in_the_middle("reboots", 1, Host::reboot)
}

/// Ends the host in the middle of commands, of which a sample has one; `offset` makes it another one for each kind of end.
fn in_the_middle(what: &str, offset: u32, end: impl Fn(&mut Host) -> anyhow::Result<()>) -> Outcome {
    let cuts: u32 = std::env::var(CUTS_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    let sample = Sample::from_environment()?;
    eprintln!("{what} come at {}", sample.of("command and moment"));
    let began = Instant::now();
    let mut leaf = Leaf::up_for(LIVES + cuts * Duration::from_secs(5 * 60))?;
    let (one, two) = (leaf.system("one", WAITS)?, leaf.system("two", WAITS)?);
    leaf.host.ok("sync")?;
    let context = "leafctl --json --timeout 60s --context /var/lib/cim-leaf/context.json";
    leaf.ctl(&format!("container create still --toplevel {one}"))?;
    let (mut happened, mut acknowledged) = (0_u32, 0_u64);
    for cut in 0..cuts {
        let name = format!("web{cut}");
        for (nth, verb) in (offset..).zip(["create", "update", "destroy"]) {
            if !sample.takes_one_of(3, nth) {
                continue;
            }
            if verb != "create" && leaf.run(&format!("container show {name}"))?.status != 0 {
                leaf.ctl(&format!("container create {name} --toplevel {one} --start"))?;
            }
            // What was acknowledged before the cut is there after it, once.
            let label = format!("{verb}-{cut}");
            leaf.ctl(&format!("container set still labels.cut={label}"))?;
            acknowledged += 1;
            let command = match verb {
                "create" => format!("container create {name} --toplevel {one} --start"),
                "update" => format!("container update {name} --toplevel {two}"),
                _ => format!("container destroy {name}"),
            };
            {
                let running = leaf.host.start(&format!("{context} {command}"))?;
                // Anywhere between nothing done and all done; never the same place twice.
                #[allow(
                    clippy::disallowed_methods,
                    reason = "a cut comes at a moment, not on a state"
                )]
                std::thread::sleep(Duration::from_millis(u64::from(
                    150 + sample.number(happened, 1700),
                )));
                drop(running);
            }
            end(&mut leaf.host)?;
            leaf.answers()?;
            leaf.settled(&name)?;
            happened += 1;
            leaf.agrees()?;
            let still = leaf.show("still")?;
            let kept = &still["desired"]["options"]["labels"]["cut"];
            ensure!(*kept == label.as_str(), "{label} is lost: {still}");
            if verb == "create" && leaf.run(&format!("container show {name}"))?.status != 0 {
                // It was not accepted before the cut: then nothing of it is there.
                leaf.nothing_left(&name)?;
            }
        }
        if leaf.run(&format!("container show {name}"))?.status == 0 {
            leaf.ctl(&format!("container destroy {name}"))?;
        }
        leaf.nothing_left(&name)?;
    }
    let events = leaf.events("*")?;
    let wanted = events
        .iter()
        .filter(|event| event["type"] == "cim.leaf.container.desired.v1" && event["subject"] == "still")
        .count() as u64;
    // The first was its creation.
    ensure!(
        wanted == acknowledged + 1,
        "{acknowledged} changes of a container were acknowledged, and {wanted} events tell of it"
    );
    super::cycles::report(&serde_json::json!({
        "what": format!("{what} in the middle of create, update and destroy"),
        "times": happened,
        "seconds": began.elapsed().as_secs_f64(),
        "found": format!(
            "state and host agree after each; of {acknowledged} acknowledged changes none lost, none doubled; {} events in \
             the stream, none missing, none doubled",
            events.len()
        ),
    }))?;
    Ok(())
}
