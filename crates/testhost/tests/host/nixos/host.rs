//! A NixOS host with `services.cim-leaf`: its units, reboots, power cuts, and switches to other systems.

use anyhow::{Result, ensure};
use serde_json::Value;
use testhost::nixos::Systems;

use super::{PATIENT, leaf_on_nixos};
use crate::leaf::Leaf;
use crate::{Outcome, Trials};

pub(crate) const TRIALS: Trials = &[
    (
        "on_nixos_leafd_and_its_helper_start_by_their_units_and_what_the_readme_does_by_hand_works",
        by_hand,
    ),
    (
        "on_nixos_containers_are_back_after_a_reboot_and_after_a_power_cut",
        boots,
    ),
    (
        "a_switch_of_the_host_to_another_leafd_to_none_and_back_disturbs_no_container_and_no_job",
        switches,
    ),
];

/// Puts the busybox of the host where the tests' own small systems are built from.
fn with_tools(leaf: &Leaf) -> Outcome {
    leaf.host.put(
        include_bytes!("../leaf/system.nix"),
        "/var/tmp/system.nix",
        "0644",
    )?;
    leaf.host.ok(
        "mkdir -p /var/tmp/tools && cp $(nix-store --query --requisites /run/current-system | grep busybox)/bin/busybox \
         /var/tmp/tools/busybox",
    )?;
    Ok(())
}

fn by_hand() -> Outcome {
    let leaf = leaf_on_nixos(&Systems::here()?)?;
    leaf.host.ok(
        "[ $(ps -o user= -p $(systemctl show -P MainPID leafd)) = leafd ] && systemctl is-active leaf-helper.socket && \
         [ -z \"$(systemctl --failed --no-legend)\" ]",
    )?;
    leaf.host
        .ok("leafd check-config /etc/cim-leaf/leafd.toml && leafd inventory --json | jq -e .devices")?;
    let shown = leaf.ctl("leaf show")?;
    ensure!(shown["name"] == "leaf", "{shown}");
    leaf.ctl("leaf list")?;
    leaf.ctl("hardware list")?;
    with_tools(&leaf)?;
    leaf.running("web")?;
    // The helper was called, by its socket.
    leaf.host.ok("systemctl is-active leaf-helper.service")?;
    leaf.ctl("container stop web")?;
    leaf.ctl("container destroy web")?;
    leaf.nothing_left("web")?;

    // A leaf that a person starts, in the place of the one of the units, with the nats-server that those have from the store.
    leaf.host.ok("systemctl stop leafd")?;
    leaf.host.ok(
        "nats=$(nix-store --query --requisites /run/current-system | grep nats-server) && \
         systemd-run --quiet --unit=by-hand -p Environment=PATH=$nats/bin:$PATH -- \
         $(command -v leafd) run --embedded-nats --state-dir /var/tmp/demo --name demo",
    )?;
    leaf.until("the leaf by hand answers", || {
        let shown = leaf
            .host
            .run("leafctl --json --context /var/tmp/demo/context.json leaf show")?;
        Ok(shown.status == 0 && shown.stdout.contains("\"demo\""))
    })?;
    leaf.host.ok("systemctl stop by-hand && systemctl start leafd")?;
    leaf.answers()
}

/// Creates a container of each kind of start.
fn two_kinds(leaf: &Leaf, toplevel: &str) -> Outcome {
    leaf.create(
        "early",
        toplevel,
        "autostart = 'with_host'\nlimits = { tasks = 150 }",
    )?;
    leaf.create("late", toplevel, "")
}

/// Checks that both are there, as they were.
fn both_run(leaf: &Leaf) -> Outcome {
    leaf.until_phase("early", "running")?;
    leaf.until_phase("late", "running")?;
    for name in ["early", "late"] {
        let state = leaf.inside(name, "systemctl is-active multi-user.target")?;
        ensure!(state == "active\n", "container {name}: {state}");
    }
    leaf.host
        .ok("[ $(cat /sys/fs/cgroup/machine.slice/container@early.service/payload/pids.max) = 150 ]")?;
    leaf.agrees()
}

fn boots() -> Outcome {
    let systems = Systems::here()?;
    let mut leaf = leaf_on_nixos(&systems)?;
    two_kinds(&leaf, systems.container("hello")?)?;
    leaf.host.ok("sync")?;
    leaf.host.reboot()?;
    leaf.answers()?;
    both_run(&leaf)?;
    leaf.host.cut_power();
    leaf.host.boot()?;
    leaf.answers()?;
    both_run(&leaf)
}

/// What must not change while the host is switched.
fn runs(leaf: &Leaf) -> Result<String> {
    leaf.host.ok(
        "for name in early late; do machinectl show $name --property=Leader --value; \
         systemctl show container@$name -P ActiveEnterTimestampMonotonic -P NRestarts -P MainPID; done",
    )
}

fn switch(leaf: &Leaf, toplevel: &str) -> Result<String> {
    // In a unit of its own, since it may stop what runs this command.
    leaf.host.ok(&format!(
        "systemd-run --quiet --wait --pipe --collect -p Environment=PATH=$PATH {toplevel}/bin/switch-to-configuration switch 2>&1"
    ))
}

/// Returns the state of the one job that there is.
fn job(leaf: &Leaf) -> Result<Value> {
    let jobs = leaf.ctl("nix jobs")?;
    Ok(jobs["jobs"][0]["state"].clone())
}

fn switches() -> Outcome {
    let systems = Systems::here()?;
    let mut leaf = leaf_on_nixos(&systems)?;
    with_tools(&leaf)?;
    two_kinds(&leaf, systems.container("hello")?)?;
    let before = runs(&leaf)?;
    let program = leaf
        .host
        .ok("readlink /proc/$(systemctl show -P MainPID leafd)/exe")?;

    // A build that ends when it is told to.
    leaf.host.put(
        b"derivation { name = \"waits\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; \
          args = [ \"-c\" \"echo begun; until [ -e /go/now ]; do :; done; echo done >$out\" ]; }",
        "/var/tmp/waits.nix",
        "0644",
    )?;
    leaf.host.ok("install -d -m 0755 /go")?;
    leaf.ctl("nix build --detach --file /var/tmp/waits.nix")?;
    leaf.until("the job builds", || {
        Ok(leaf.host.run("pgrep --full '[e]cho begun; until'")?.status == 0)
    })?;
    let builder = leaf.host.ok("pgrep --full --oldest '[e]cho begun; until'")?;

    switch(&leaf, systems.host("next")?)?;
    leaf.answers()?;
    let now = leaf
        .host
        .ok("readlink /proc/$(systemctl show -P MainPID leafd)/exe")?;
    ensure!(now != program, "the other leafd was not started: {now}");
    ensure!(
        runs(&leaf)? == before,
        "a container noticed: {before} {}",
        runs(&leaf)?
    );
    ensure!(job(&leaf)? == "running", "{}", job(&leaf)?);
    leaf.host.ok(&format!(
        "[ $(pgrep --full --oldest '[e]cho begun; until') = {} ]",
        builder.trim()
    ))?;

    // Without cim-leaf, containers run on.
    switch(&leaf, systems.host("without")?)?;
    leaf.host.ok(
        "! systemctl is-active leafd && ! systemctl is-active leaf-helper.socket && ! command -v leafctl",
    )?;
    ensure!(
        runs(&leaf)? == before,
        "a container noticed: {before} {}",
        runs(&leaf)?
    );

    switch(&leaf, systems.host("leaf")?)?;
    leaf.answers()?;
    ensure!(
        runs(&leaf)? == before,
        "a container noticed: {before} {}",
        runs(&leaf)?
    );
    both_run(&leaf)?;
    leaf.ctl(&format!(
        "{PATIENT} container update late --toplevel {}",
        systems.container("goodbye")?
    ))?;

    leaf.host.ok("sync")?;
    leaf.host.reboot()?;
    leaf.answers()?;
    both_run(&leaf)
}
