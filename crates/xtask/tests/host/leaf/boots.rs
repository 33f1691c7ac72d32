//! A host that boots again, or whose power is cut: everything comes back, and no event is lost or doubled.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Leaf, WAITS};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    ("after_a_reboot_everything_is_as_it_was", reboot),
    ("power_cut_in_the_middle_of_create_update_and_destroy", power_cut),
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
    leaf.host.reboot()?;
    leaf.answers()?;
    leaf.until_phase("early", "running")?;
    leaf.until_phase("late", "running")?;
    let still = leaf.show("still")?;
    ensure!(still["phase"] == "stopped", "{still}");
    leaf.host
        .ok("[ $(cat /sys/fs/cgroup/machine.slice/container@early.service/payload/pids.max) = 32 ]")?;
    leaf.agrees()?;
    Ok(())
}

fn power_cut() -> Outcome {
    let cuts: u32 = std::env::var(CUTS_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    let began = Instant::now();
    let mut leaf = Leaf::up()?;
    let (one, two) = (leaf.system("one", WAITS)?, leaf.system("two", WAITS)?);
    leaf.host.ok("sync")?;
    let context = "leafctl --json --context /var/lib/cim-leaf/context.json";
    let mut accepted = 0;
    for cut in 0..cuts {
        for verb in ["create", "update", "destroy"] {
            let command = match verb {
                "create" => format!("container create web{cut} --toplevel {one} --start"),
                "update" => format!("container update web{cut} --toplevel {two}"),
                _ => format!("container destroy web{cut}"),
            };
            {
                let running = leaf.host.start(&format!("{context} {command}"))?;
                // Anywhere between nothing done and all done; never the same place twice.
                #[allow(
                    clippy::disallowed_methods,
                    reason = "a cut comes at a moment, not on a state"
                )]
                std::thread::sleep(Duration::from_millis(u64::from(150 + cut * 331 % 1700)));
                drop(running);
            }
            leaf.host.cut_power();
            leaf.host.boot()?;
            leaf.answers()?;
            let name = format!("web{cut}");
            leaf.until("the leaf has settled", || {
                let list = leaf.ctl("container list")?;
                let phase = list["containers"].as_array().and_then(|containers| {
                    containers
                        .iter()
                        .find(|c| c["name"] == name.as_str())
                        .map(|c| c["phase"].clone())
                });
                Ok(phase.is_none_or(|phase| ["running", "stopped", "failed"].iter().any(|p| phase == *p)))
            })?;
            accepted += 1;
            leaf.agrees()?;
            if verb == "create" && leaf.run(&format!("container show {name}"))?.status != 0 {
                // It was not accepted before the cut: then nothing of it is there.
                leaf.nothing_left(&name)?;
                leaf.ctl(&format!("container create {name} --toplevel {one} --start"))?;
            }
        }
        let name = format!("web{cut}");
        if leaf.run(&format!("container show {name}"))?.status == 0 {
            leaf.ctl(&format!("container destroy {name}"))?;
        }
        leaf.nothing_left(&name)?;
    }
    ensure!(accepted == cuts * 3, "{accepted} cuts");
    super::cycles::report(&serde_json::json!({
        "what": "power cuts in the middle of create, update and destroy",
        "times": accepted,
        "seconds": began.elapsed().as_secs_f64(),
        "found": format!(
            "state and host agree after each; {} events in the stream, none missing, none doubled",
            leaf.events("*")?.len()
        ),
    }))?;
    Ok(())
}
