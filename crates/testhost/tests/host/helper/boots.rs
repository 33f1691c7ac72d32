//! After a boot: what was wanted with the host runs before anybody asks, in its order; the rest waits.

use serde_json::json;

use super::{Leaf, WAITS};
use crate::{Outcome, Trials, ensure, until};

pub(crate) const TRIALS: Trials = &[("only_containers_with_autostart_start_at_boot", boots)];

fn boots() -> Outcome {
    let mut leaf = Leaf::new()?;
    let system = leaf.system("waits", WAITS)?;
    let with_host = json!({"autostart": "with_host"});
    leaf.create("db", &system, 1, with_host.clone())?;
    leaf.create(
        "web",
        &system,
        2,
        json!({"autostart": "with_host", "after": ["db"], "limits": {"tasks": 50}}),
    )?;
    leaf.create("later", &system, 3, json!({}))?;
    leaf.create("idle", &system, 4, with_host)?;
    for name in ["db", "web", "later", "idle"] {
        leaf.start(name)?;
    }
    leaf.stop("idle", 20)?;
    leaf.host.ok(
        "systemctl disable leafd.service 2>/dev/null; rm -f /etc/systemd/system/*.wants/leafd.service; sync",
    )?;
    leaf.host.cut_power();
    leaf.host.boot()?;
    for name in ["db", "web"] {
        let state = format!("systemctl show -P ActiveState container@{name}.service");
        if let Err(e) = until(&leaf.host, &state, |state| state.trim() == "active") {
            let log = leaf
                .host
                .run(&format!("journalctl --no-pager -b -u container@{name}.service"))?;
            return Err(anyhow::Error::msg(format!(
                "{name}: {e:?}; its log: {}",
                log.stdout
            )));
        }
    }
    let at =
        |leaf: &Leaf, name: &str, when: &str| -> anyhow::Result<u64> { Ok(leaf.unit(name, when)?.parse()?) };
    ensure(
        at(&leaf, "db", "ActiveEnterTimestampMonotonic")?
            <= at(&leaf, "web", "InactiveExitTimestampMonotonic")?,
        "the one after the other",
    )?;
    let tasks = leaf
        .host
        .ok("cat /sys/fs/cgroup/machine.slice/container@web.service/payload/pids.max")?;
    ensure(tasks.trim() == "50", format!("limited as before: {tasks}"))?;
    for name in ["later", "idle"] {
        ensure(
            leaf.unit(name, "ActiveState")? == "inactive",
            format!("{name} waits"),
        )?;
        ensure(
            leaf.unit(name, "LoadState")? == "loaded",
            format!("{name} is known"),
        )?;
    }
    let rules = leaf.host.ok("nft list ruleset")?;
    ensure(
        rules.contains("\"ve-web\""),
        "the rules are there, before anybody prepared them",
    )?;
    leaf.start("later")?;
    for name in ["db", "web", "later", "idle"] {
        leaf.stop(name, 20)?;
        leaf.destroy(name)?;
    }
    let units = leaf.host.ok("ls /run/systemd/generator /run/systemd/system")?;
    ensure(!units.contains("container@"), format!("no unit is left: {units}"))
}
