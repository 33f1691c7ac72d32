//! A container from its creation to its end, as the leaf, systemd and machined see it.

use anyhow::ensure;

use crate::leaf::Leaf;
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    (
        "a_container_runs_as_a_unit_that_systemd_and_machined_know",
        whole_life,
    ),
    ("leafd_runs_without_privileges_in_a_hardened_unit", sealed),
    ("a_template_is_built_by_the_jobs_user_and_runs", template),
];

fn whole_life() -> Outcome {
    let leaf = Leaf::up()?;
    let toplevel = leaf.running("web")?;
    let shown = leaf.show("web")?;
    ensure!(shown["phase"] == "running", "{shown}");
    ensure!(shown["desired"]["toplevel"] == toplevel.as_str(), "{shown}");
    leaf.host
        .ok("systemctl is-active container@web && machinectl show web --property=Leader")?;
    leaf.host
        .ok("grep -q SYSTEM_PATH= /etc/nixos-containers/web.conf")?;
    // Its root is nobody's on the host, and no socket of the Nix daemon is inside.
    let leader = leaf.host.ok("machinectl show web --property=Leader --value")?;
    let leader = leader.trim();
    leaf.host.ok(&format!("[ $(stat -c %u /proc/{leader}) != 0 ]"))?;
    leaf.host.ok(&format!(
        "! ls /proc/{leader}/root/nix/var/nix/daemon-socket/socket"
    ))?;
    let stopped = leaf.ctl("container stop web")?;
    ensure!(stopped["phase"] == "stopped", "{stopped}");
    leaf.host.ok("! systemctl is-active container@web")?;
    leaf.ctl("container start web")?;
    leaf.ctl("container restart web")?;
    leaf.ctl("container destroy web")?;
    leaf.nothing_left("web")?;
    leaf.agrees()?;
    Ok(())
}

fn sealed() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.host
        .ok("[ $(ps -o user= -p $(systemctl show -P MainPID leafd)) = leafd ]")?;
    leaf.host
        .ok("grep -q 'CapEff:.0000000000000000' /proc/$(systemctl show -P MainPID leafd)/status")?;
    let verdict = leaf
        .host
        .ok("systemd-analyze security --no-pager leafd.service | tail -n 1")?;
    let figure: Option<f64> = verdict.split_whitespace().find_map(|word| word.parse().ok());
    ensure!(figure.is_some_and(|figure| figure <= 1.5), "{verdict}");
    leaf.host
        .ok("varlinkctl introspect /run/cim-leaf/helper.sock cim.leaf.Helper | grep -q StartContainer")?;
    Ok(())
}

fn template() -> Outcome {
    let leaf = Leaf::up()?;
    leaf.ctl("container create mini --template minimal --start")?;
    let health = leaf.ctl("container health mini")?;
    ensure!(health["container"] == "mini", "{health}");
    leaf.ctl("container destroy mini")?;
    leaf.nothing_left("mini")?;
    Ok(())
}
