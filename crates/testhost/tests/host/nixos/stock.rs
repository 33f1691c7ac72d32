//! The stock program `nixos-container` beside a leaf, on a NixOS host.

use anyhow::{Context as _, ensure};
use testhost::nixos::Systems;

use super::{PATIENT, SLOW, leaf_on_nixos};
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[(
    "nixos_container_manages_a_leafs_containers_and_its_own_are_adopted_or_left_alone",
    beside,
)];

fn beside() -> Outcome {
    let systems = Systems::here()?;
    let leaf = leaf_on_nixos(&systems)?;
    let goodbye = systems.container("goodbye")?;
    leaf.bring_tools()?;
    leaf.running("ours")?;

    // Ours, by theirs.
    let listed = leaf.host.ok("nixos-container list")?;
    ensure!(
        listed.lines().collect::<Vec<_>>() == ["declared", "ours"],
        "{listed}"
    );
    leaf.host.ok("[ $(nixos-container status ours) = up ]")?;
    leaf.host
        .ok("nixos-container stop ours && [ $(nixos-container status ours) = down ]")?;
    leaf.until_phase("ours", "stopped")?;
    leaf.host.ok("nixos-container start ours")?;
    leaf.until_phase("ours", "running")?;

    // Theirs, by ours: shown, and left alone.
    let created = format!(
        "nixos-container create theirs --system-path {goodbye} && nixos-container start theirs || \
         {{ journalctl --no-pager --lines=40 --unit=container@theirs >&2; exit 1; }}"
    );
    leaf.host.ok_within(&created, SLOW)?;
    let list = leaf.ctl("container list")?;
    let foreign = list["foreign"].as_array().context("others' containers")?;
    let names: Vec<_> = foreign.iter().filter_map(|one| one["name"].as_str()).collect();
    ensure!(names == ["declared", "theirs"], "{list}");
    for name in names {
        for command in ["stop", "destroy"] {
            let problem = leaf.refused(&format!("container {command} {name}"))?;
            ensure!(problem.to_string().contains(name), "{problem}");
        }
    }
    leaf.host.ok("[ $(nixos-container status theirs) = up ]")?;

    // One of the host's configuration is no one's to adopt.
    let problem = leaf.refused("container adopt declared")?;
    ensure!(problem.to_string().contains("declared"), "{problem}");
    leaf.host.ok_within(
        "[ -L /etc/nixos-containers/declared.conf ] && nixos-container start declared",
        SLOW,
    )?;
    leaf.host.ok_within(
        "[ $(nixos-container status declared) = up ] && nixos-container stop declared",
        SLOW,
    )?;

    // What is adopted keeps its files, and is ours from then on.
    leaf.host.ok_within(
        "nixos-container stop theirs && echo theirs >/var/lib/nixos-containers/theirs/root/mark",
        SLOW,
    )?;
    leaf.ctl("container adopt theirs")?;
    leaf.ctl(&format!("{PATIENT} container start theirs"))?;
    let inside = leaf.inside(
        "theirs",
        "cat /root/mark; systemctl is-active multi-user.target; readlink /run/current-system",
    )?;
    ensure!(inside == format!("theirs\nactive\n{goodbye}\n"), "{inside}");
    leaf.host.ok("nixos-container list | grep -qx theirs")?;
    leaf.ctl(&format!("{PATIENT} container destroy theirs"))?;
    leaf.nothing_left("theirs")?;
    let listed = leaf.host.ok("nixos-container list")?;
    ensure!(
        listed.lines().collect::<Vec<_>>() == ["declared", "ours"],
        "{listed}"
    );
    leaf.agrees()
}
