//! A paused container as a unit of systemd: frozen again after a boot, and stopped like any other.

use anyhow::ensure;

use super::Leaf;
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[(
    "a_paused_container_is_frozen_again_after_a_reboot_and_an_operator_can_stop_it",
    paused,
)];

/// Succeeds where the processes of the container are frozen.
const FROZEN: &str =
    "grep -qx 'frozen 1' /sys/fs/cgroup/machine.slice/container@web.service/payload/cgroup.events";

fn paused() -> Outcome {
    let mut leaf = Leaf::up()?;
    leaf.running("web")?;
    let paused = leaf.ctl("container pause web")?;
    ensure!(
        paused["phase"] == "running" && paused["desired"]["paused"] == true,
        "{paused}"
    );
    leaf.host.ok(FROZEN)?;

    // A shutdown thaws it: it halts when it is asked to, and not when it is killed two minutes later.
    leaf.host.reboot()?;
    leaf.answers()?;
    leaf.until("it is frozen again", || {
        Ok(leaf.host.run(FROZEN)?.status == 0 && leaf.show("web")?["phase"] == "running")
    })?;
    leaf.host
        .ok("timeout 30 systemctl stop container@web && ! systemctl is-failed container@web")?;
    leaf.until_phase("web", "stopped")?;

    leaf.ctl("container start web")?;
    leaf.host.ok(FROZEN)?;
    let resumed = leaf.ctl("container resume web")?;
    ensure!(resumed["desired"]["paused"].is_null(), "{resumed}");
    leaf.host.ok(&format!("! {FROZEN}"))?;
    leaf.agrees()?;
    leaf.ctl("container pause web")?;
    leaf.ctl("container destroy web")?;
    leaf.nothing_left("web")
}
